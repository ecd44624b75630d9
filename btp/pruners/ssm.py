"""Token pruning in vision state space models: keeps what the scan puts out most at, and leaves gaps behind."""

from __future__ import annotations

from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.ops.scan_importance import KINDS, importance

SCORES = (*KINDS, "norm")
BRANCHES = ("both", "forward", "backward")
GAPS = ("own", "prev", "mean", "bias", "none", "masked")
CONVS = ("aligned", "closed")


class SSM(ScorePruner):
    """ToP: importance from the output of the scan in the block in front, and scans that know of the gaps.

    `alignment` tells the layers behind a cut what a scan does at places whose token is gone.

    Args:
        score: clip, what the scan puts out, negative parts left out | none | l1 | l2 | norm, of the token's state,
            which needs no scan.
        branch: both | forward | backward: whose output counts.
        gap: own | prev | mean | bias | none | masked: how long the state decays over a gap. The paper does not say
            whose step size counts there; none closes the gap; masked computes the whole length with zeros and saves
            nothing in the scan.
        conv: aligned | closed: whether the convolution in front of the scan sees zeros in a gap, or closes up over it.

    Source: Zhan et al. 2024, arXiv:2409.18962. Its released code holds no aligned scan.
    """

    def __init__(self, *, score: str, branch: str, gap: str, conv: str) -> None:
        given = (("score", score, SCORES), ("branch", branch, BRANCHES), ("gap", gap, GAPS), ("conv", conv, CONVS))
        for key, value, known in given:
            check_one_of(f"pruner.method.{key}", value, known)
        if score == "norm" and branch != "both":
            raise ValueError(
                f"pruner.method.branch is {branch}, which has no effect, because pruner.method.score is norm. Set it "
                "to both."
            )
        self.kind, self.branch = score, branch
        self.alignment = {"gap": gap, "conv": conv}

    def check(self, schedule: Schedule) -> None:
        """Refuse stages that are not between layers of a vision tower."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and (stage.site.tower != "vision" or stage.site.kind != "layer"):
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'ssm' cuts between layers of a vision tower. Set "
                    f"schedule.{i}.site to vision.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The gated output of the scan in the layer in front; nothing where the state's norm scores."""
        if self.kind == "norm" or stage.withdraws_all:
            return ()
        return (Signal("scan", stage.site.previous_layer, self.branch),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N], higher = keep."""
        declared = self.needs(stage)
        return importance(signals[declared[0]], self.kind) if declared else tokens.hidden.float().norm(dim=-1)
