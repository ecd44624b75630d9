"""The inertness control: hooks attached at every stage, nothing pruned, nothing may differ by a bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.runner.arms import Arm, inert
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.model_inputs import model_inputs
from btp.runner.evaluation.oracle_targets import aim
from btp.tasks.sample import Sample


def check_inert(loaded: Loaded, arm: Arm, samples: Sequence[Sample], new_tokens: int) -> dict[str, Any]:
    """Generate twice, without the engine and with the method attached but keeping everything.

    Args:
        arm: its method and the sites of its schedule are used, every keep set to 1.0.
        samples: one batch.

    Returns:
        checked samples, whether tokens and logits are bit-identical, and the largest difference of a logit.
    """
    batch = Collate(loaded.processor)(samples)

    def run() -> Any:
        return loaded.host.generate(
            **model_inputs(loaded, batch),
            max_new_tokens=new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )

    with torch.inference_mode():
        plain = run()
        schedule: Schedule = inert(arm.schedule)
        chooses = any(not stage.withdraws_all for stage in arm.schedule)
        pruner = arm.build() if chooses else None
        aim(pruner, samples, batch.clips)
        with attach(loaded.host, pruner, schedule):
            attached = run()
    same = torch.equal(plain.sequences, attached.sequences)
    pairs = list(zip(plain.logits, attached.logits, strict=False))
    gap = max(float((a - b).abs().max()) for a, b in pairs)
    return {
        "checked": len(samples),
        "identical": same and all(torch.equal(a, b) for a, b in pairs),
        "max_logit_difference": gap,
    }
