"""Counts the operators that each method launches, and where the host waits: on a GPU that is what a choice costs.

    python -m experiments.launches.count --out docs/launches.md

Counted on the device that is not there (claimed.py), so that what runs is what a GPU would run. Views launch nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from experiments.launches.claimed import Event
from experiments.launches.follow import BTP, SHARE, SLOTS, Followed, cache_methods, follow, names, ours, waits
from experiments.launches.small import LAYERS, SIDE

LOOPED = 8  # executions of a line beyond which it is in a loop, or twice the number of stages
PARTS = ("opening", "signals", "checks", "choice", "cut")
OPENED = "read at engine/decoder/prefill.py (_read)"  # of every prefill
_OPENING = (("engine/decoder/prefill.py", "open_run"), ("engine/decoder/stream.py", "_expect_text_last"))
HEAD = f"""# Launches and waits

What a GPU is asked for on account of a method, found without one: `python -m experiments.launches.count --out
docs/launches.md` lets a LLaVA of {LAYERS} layers and {SIDE * SIDE} visual tokens run on a device that is not there
(`experiments/launches`), and notes every operator and every wait of the host. An operator is what PyTorch dispatches
and is no view: about one kernel. Each costs some microseconds of the host, whatever the size of the model, so the
numbers are those of a large model too.

- *choice*: in the method itself, from its signals to its selection. *in loops*: those of them that come with every
  pick, by lines that run again and again; where Triton is at hand, farthest points have one launch in their place.
- *signals*: looked at for it. *checks*: that nothing is NaN or inf, and that the selection keeps its contract; they
  are read later. *cut*: tokens shown, moved and remembered, masks, positions.
- All are means over the stages, for one prompt at {SHARE:.0%} of the visual tokens (of methods of the cache with
  {SLOTS} slots a layer, over the layers).
- *opening*: once a prefill, where tokens lie and how many there are.
- *waits*: how often a prefill waits for the device. Once is how many tokens each row has, in front of the first layer,
  with where they lie on their grid for who spreads tokens over it. No other method waits in a stage or at a pick.
  FastVID and HoliTom cut videos into segments by values on the host, stages of phase both (LazyLLM and its kin) learn
  how many rows each forward computes, and oracles compare with their targets. `tests/device` holds all of this.

| method | stages | choice | in loops | signals | checks | cut | opening | waits |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Launches:
    """Operators of one prefill.

    Attributes:
        stages: of the schedule; of methods of the cache, one a layer.
        parts: outside of loops, over all stages, by PARTS.
        looped: in loops, likewise.
    """

    stages: int
    parts: Counter[str]
    looped: Counter[str]

    def per_stage(self, part: str) -> float:
        """Operators of a stage outside of loops."""
        return self.parts[part] / max(self.stages, 1)


def launches(followed: Followed, stages: int | None = None) -> Launches:
    """What a prefill launched by btp's doing.

    Args:
        stages: None takes those of the schedule.
    """
    stages = followed.stages if stages is None else stages
    mine = [event for event in followed.prefill if ours(event) is not None]
    chains = Counter(map(_chain, mine))
    parts: Counter[str] = Counter()
    looped: Counter[str] = Counter()
    for event in mine:
        (looped if chains[_chain(event)] > max(LOOPED, 2 * stages) else parts)[part_of(event)] += 1
    return Launches(stages, parts, looped)


def part_of(event: Event) -> str:
    """Which of PARTS an operator belongs to."""
    places = [(frame.file.removeprefix(BTP), frame.name) for frame in event.stack if frame.file.startswith(BTP)]
    files = [file for file, _ in places]
    if any(file.startswith("pruners/") for file in files):
        return "choice"
    if any(place in _OPENING for place in places):
        return "opening"
    if "engine/checks/finite.py" in files or places[0][1] in ("is_sound", "_flows_into"):
        return "checks"
    seen = ("engine/decoder/probe.py", "engine/cache/slot_signals.py", "engine/hooks/attention_rows.py")
    if any(file in seen for file in files[:-1]) or any(name in ("_look", "_see_hidden") for _, name in places):
        return "signals"
    return "cut"


def row(name: str) -> str:
    """A method's line of the table."""
    followed = follow(name)
    found = launches(followed, LAYERS if name in cache_methods() else None)
    loops = sum(found.looped.values()) / max(found.stages, 1)
    each = [found.per_stage(part) for part in ("choice", "signals", "checks", "cut")]
    cells = [f"{each[0]:.0f}", f"{loops:.0f}", *(f"{n:.0f}" for n in each[1:]), str(found.parts["opening"])]
    return f"| `{name}` | {followed.stages} | {' | '.join(cells)} | {sum(waits(followed.prefill).values())} |"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    parser.add_argument("--only", nargs="+", help="methods to count; None are all")
    args = parser.parse_args()
    lines = []
    for name in args.only or names():
        lines.append(row(name))
        print(lines[-1], flush=True)
    args.out.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _chain(event: Event) -> tuple[str, tuple[tuple[str, int], ...]]:
    """An operator, and the lines of btp that it was called through."""
    lines = ((code.co_filename, line) for code, line in event.lines if code.co_filename.startswith(BTP))
    return event.op, tuple(lines)


if __name__ == "__main__":
    main()
