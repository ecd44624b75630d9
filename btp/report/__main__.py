"""`python -m btp.report FOLDER...`: one run folder -> its report again; anything else -> all runs in it compared."""

import argparse
import sys
from pathlib import Path

from rich.console import RenderableType

from btp.report.comparison.compare import compare
from btp.report.pages.run_page import write_report
from btp.report.tables.screen_table import screen_table
from btp.report.terminal import console, settle_locale, settle_output


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 where there is no run to show."""
    settle_output()
    parser = argparse.ArgumentParser(prog="python -m btp.report", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="a run folder, a sweep's folder, or any folder above runs",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where comparison.html and its tables go; by default into `comparison` in the folder, of several: here",
    )
    given = parser.parse_args(arguments)
    screen = console()
    try:
        shown, written = _write(given.folders, given.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    screen.print(shown)
    screen.print()
    for path in written:
        screen.print(str(path), soft_wrap=True, highlight=False)
    return 0


def _write(folders: list[Path], out: Path | None) -> tuple[RenderableType, list[Path]]:
    one = folders[0] if len(folders) == 1 else None
    if one is not None and (one / "run.json").is_file():
        if out is not None:
            raise ValueError(f"--out is for comparisons; the report of one run lies in its folder {one}. Drop --out.")
        page = write_report(one)
        return screen_table(one), [page]
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is no folder. Name one, or leave it out.")
    shown, written = compare(folders, [], out or (one or Path()) / "comparison")
    return shown, [path for path in written if path.suffix != ".png"]


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
