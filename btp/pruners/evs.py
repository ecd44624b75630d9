"""EVS: of a video's frames, the tokens that differ from what stood in their place before."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signals
from btp.ops.frames_before import before, distance_before


class EVS(ScorePruner):
    """Efficient video sampling.

    A token is worth one minus its cosine to the token at the same place of the frame before. Tokens of first frames,
    and those off the grid (newlines), are worth more than all others. All videos and frames of a prompt share one
    count. A still picture is a first frame: there is nothing to tell its tokens apart, and the first ones stay.

    Needs no signal: tokens are compared by themselves.

    Source: Bagrov et al. 2025, arXiv:2510.14624, and the implementations in vLLM, which keep at least a frame.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input, where tokens hold nothing of each other."""
        super().check(schedule)
        check_input(schedule, self.name)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] distance to the frame before."""
        return distance_before(tokens.hidden, before(tokens.image, tokens.coord, tokens.valid))


def check_input(schedule: Schedule, method: str, but: Callable[[Stage], bool] = lambda stage: False) -> None:
    """Refuse stages other than `llm.input`.

    Args:
        but: stages that are none of this check's.

    Raises:
        ValueError: names the config key.
    """
    for i, stage in enumerate(schedule):
        if str(stage.site) != "llm.input" and not stage.withdraws_all and not but(stage):
            raise ValueError(
                f"schedule.{i}.site is {stage.site}, but pruner {method!r} compares frames where they enter the "
                f"language model. Set schedule.{i}.site to llm.input."
            )
