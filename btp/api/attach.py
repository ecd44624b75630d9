"""`btp.attach`: a method by its yaml's name around any model, solved for a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from btp.api.hosts import host_of
from btp.api.plan import Pictures, arm_for, words_of
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule
from btp.core.trace import Trace
from btp.engine.attach import attach as engine_attach


@contextmanager
def attach(
    model: Any,
    method: str | Sequence[str] | Pruner,
    schedule: str | Schedule | None = None,
    *,
    budget: float | None = None,
    calibration: Pictures | None = None,
    processor: Any = None,
    tokens: int | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Iterator[Trace]:
    """Prune whatever the model computes inside the `with` block; nothing of it stays behind.

    Names, defaults and the solving of budgets are those of the yamls in conf/, as on the command line:
    `btp.attach(model, "fastv", budget=0.22)` is `pruner=fastv budget.share=0.22`. Every prompt is solved for its own
    number of visual tokens.

    Args:
        model: Model of transformers, a pipeline around one, or an `LVLM`.
        method: name of a yaml (`btp.methods()`), several that work as one, or a pruner of your own with its schedule.
        schedule: paper | uniform | calibrated, in place of the method's own stages; the stages of your own pruner.
        budget: visual tokens averaged over the decoder layers: a share up to 1, a number above; None takes the
            default of conf/config.yaml.
        calibration: pictures, or a folder of them, for methods that find their stages by looking at some, as btp.
        processor: makes inputs of these; None takes that of the checkpoint which the model was loaded from.
        tokens: visual tokens of a usual prompt, which decides how far stages may have to move; None takes those of
            the picture in the model's yaml.
        overrides: further words of the command line, such as "budget.nearest=true" or "stages=2".
        settings: Settings of the method, as `pruner.method` has them: score="probs".

    Yields:
        The trace: what each stage did, `tokens_avg`, `fired`.

    Raises:
        ValueError: an unknown name or setting, a budget out of reach, pictures that are missing, a plan that cannot be
            on this model; says what to change.
        RuntimeError: the model is attached already.
    """
    host = host_of(model)
    if isinstance(method, Pruner):
        if not isinstance(schedule, Schedule) or budget is not None or settings:
            raise ValueError(
                f"{type(method).__name__} is a pruner of your own: pass its stages as a btp.core.schedule.Schedule, "
                "and no budget or settings."
            )
        pruner, stages = method, schedule
    else:
        if isinstance(schedule, Schedule):
            raise ValueError(
                'A Schedule goes with a pruner of your own. Of a yaml, schedule is "paper" or a like name.'
            )
        words = words_of(method, schedule, budget, settings, overrides)
        arm = arm_for(host, words, calibration, processor, tokens)
        pruner, stages = arm.build(), arm.schedule
    with engine_attach(host, pruner, stages) as trace:
        yield trace
