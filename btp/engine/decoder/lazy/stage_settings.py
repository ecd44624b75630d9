"""Settings of a stage of phase `both`: which tokens may leave, how many stay, and whether they may be revived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btp.core.host import PROMPT_TOKENS, Host
from btp.core.schedule import IN_DECODE, Stage
from btp.engine.decoder.lazy.state import State
from btp.engine.decoder.prefill import Run


@dataclass(frozen=True)
class Rule:
    """A stage's settings.

    Attributes:
        stage: Stage whose rule it is.
        revive: tokens that stayed behind may come back, and every decode step asks anew who is seen.
        protect: "generated" tokens never leave, or "none" are spared.
        first: tokens at the beginning of the prompt that never leave.
        scope: whom the stage counts and may let go: "visual", "text" (the answer too) or "all" tokens. None: what the
            host counts as such, visual tokens, or all tokens of a text model.
    """

    stage: Stage
    revive: bool = True
    protect: str = "none"
    first: int = 0
    scope: str | None = None

    @classmethod
    def of(cls, stage: Stage) -> Rule:
        """Read them from a stage."""
        return cls(stage, **{name: stage.settings[name] for name in IN_DECODE if name in stage.settings})

    def counts_answers(self, host: Host) -> bool:
        """Whether tokens of the answer are in scope."""
        return self.scope in ("all", "text") or (self.scope is None and host.unit == PROMPT_TOKENS)

    def domain(self, host: Host, run: Run, state: State) -> Tensor:
        """[B, T] bool, columns in scope."""
        visual = run.ledger.visual
        scope = self.scope or ("all" if host.unit == PROMPT_TOKENS else "visual")
        prompt = {"all": torch.ones_like(visual), "visual": visual, "text": ~visual}[scope] & run.ledger.valid
        answer = prompt.new_full((len(prompt), state.total - prompt.shape[1]), self.counts_answers(host))
        return torch.cat([prompt, answer], dim=1)

    def free(self, own: Tensor, run: Run, state: State) -> Tensor:
        """[B, T] bool, those of `own` that may leave; the newest token never does."""
        free = own & (state.position >= self.first)
        free = free.scatter(1, state.newest, False)
        if self.protect == "generated":
            free = free & (torch.arange(state.total, device=free.device) < run.prompt_length)
        return free

    def kept(
        self, host: Host, run: Run, totals: Sequence[int], alive: Sequence[int], shares: Sequence[float]
    ) -> tuple[int, ...]:
        """How many of the tokens in scope stay, per row.

        The newest token counts where a share of those alive goes, and stands beside the others everywhere else.

        Args:
            totals: tokens in scope of the prompt.
            alive: tokens in scope in front of the stage.
            shares: what stayed of them in the prefill; () in the prefill itself.
        """
        stage, answers = self.stage, self.counts_answers(host)
        if stage.of == "alive" and isinstance(stage.keep, float):
            return tuple(stage.kept(n, a) for n, a in zip(totals, alive, strict=True))
        if stage.of == "alive" and shares:  # a number that was the prompt's
            return tuple(a - int(a * (1 - s) + 1e-6) for a, s in zip(alive, shares, strict=True))
        beside = 1 if answers else 0
        more = run.call.decode_steps if answers and isinstance(stage.keep, float) else 0
        pairs = zip(totals, alive, strict=True)
        return tuple(stage.kept(n - beside + more, a - beside) + beside for n, a in pairs)
