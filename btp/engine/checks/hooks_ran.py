"""Check behind each forward that hooks ran: every planned stage, and every layer behind a cut."""

from __future__ import annotations

from collections.abc import Sequence

from btp.core.host import Host
from btp.engine.checks.plan import PlannedStage
from btp.engine.decoder.prefill import Run


def check_followed(run: Run, host: Host, plan: Sequence[PlannedStage], first: int) -> None:
    """Refuse a forward in which a planned stage, or a layer behind a cut, did not run.

    Args:
        run: Prefill of the forward.
        host: the model.
        plan: all stages.
        first: decoder layer from which on each has a hook.

    Raises:
        RuntimeError: a stage or a layer was passed over; names it.
    """
    done = [record.site for record in run.call.stages]
    passed = [f"schedule.{p.index} at {p.stage.site}" for p in plan if run.in_prefill and p.stage.site not in done]
    if not passed and run.entered != list(range(first, host.num_layers)):
        lost = sorted(set(range(first, host.num_layers)) - set(run.entered))
        passed = [f"decoder layer {at}" for at in lost] or ["the order of the decoder layers"]
    if passed:
        raise RuntimeError(
            f"{passed[0]} was passed over in a forward of {type(host.model).__name__}: layers ran without the hooks "
            "that attach had set. This happens where layers were exchanged, traced or exported since, or where "
            "torch.compiler.set_stance lets compiled code run inside the attach. Leave the model as it is until the "
            "attach is left."
        )
