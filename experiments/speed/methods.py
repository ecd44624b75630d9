"""Times each method's choice against the plain way to write it, on the CPU, one thread, in one process.

`cases.py` holds the rows, `plain.py` the plain ways. Both sides get the same tensors and hand back kept indices, or the
rows that go on where tokens merge. METHODS.md beside this file says how to run it and what it printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.speed.cases import Case, cases
from experiments.speed.selection import seconds


@dataclass(frozen=True)
class Row:
    """What was measured of a case; times in milliseconds, `alike` is the share of equal results, None for no share."""

    method: str
    what: str
    tokens: int
    kept: int
    width: int
    plain_ms: float
    btp_ms: float
    alike: float | None

    def __str__(self) -> str:
        sizes = f"{self.tokens} | {self.kept} | {self.width}"
        times = f"{self.plain_ms:.2f} | {self.btp_ms:.2f} | {self.plain_ms / self.btp_ms:.2f}"
        same = "-" if self.alike is None else f"{self.alike:.2f}"
        return f"| {self.method} | {self.what} | {sizes} | {times} | {same} |"


def alike(one: list[int] | Tensor, other: list[int] | Tensor) -> float:
    """Share of equal indices at equal places (of the kept set where the order differs), or of equal rows."""
    if isinstance(one, list):
        assert isinstance(other, list)
        return 1.0 if one == other else len(set(one) & set(other)) / max(len(set(one)), 1)
    assert isinstance(other, Tensor)
    if one.shape != other.shape:
        return 0.0
    return float(torch.isclose(one, other, atol=1e-4, rtol=1e-4).all(-1).float().mean())


def measure(case: Case, repeats: int) -> Row:
    """Run both sides, once for their results and then for their times."""
    results = case.plain(), case.ours()
    share = alike(*results) if case.comparable else None
    times = [1e3 * seconds(side, repeats) for side in (case.plain, case.ours)]
    return Row(case.method, case.what, case.tokens, case.kept, case.width, *times, share)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[64, 256], help="of DivPrune's hidden states")
    parser.add_argument("--repeats", type=int, default=3, help="least runs of each")
    parser.add_argument("--only", nargs="+", help="methods to time, as DivPrune")
    parser.add_argument("--out", type=Path, help="file for the numbers, as json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| method | what | N | k | D | plain, ms | btp, ms | times faster | same |")
    print("|" + "---|" * 9)
    rows = []
    with torch.inference_mode():
        for case in cases(args.width):
            if args.only is None or case.method in args.only:
                rows.append(measure(case, args.repeats))
                print(rows[-1], flush=True)
    if args.out is not None:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": args.repeats}
        args.out.write_text(
            json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
