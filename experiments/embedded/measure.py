"""Measures an embedded model with controls only, and writes the tables of its card.

python -m experiments.embedded.measure pocket                                  # the shipped model
python -m experiments.embedded.measure pocket --checkpoint work/pocket/model   # one just trained
"""

import argparse
import importlib
import json
from pathlib import Path

from experiments.embedded.train import load_recipe

HERE = Path(__file__).parent


def main() -> None:
    """Print the tables and the acceptance; with --out also write them, as NAME.json and NAME.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="a file of experiments/embedded/recipes")
    parser.add_argument("--checkpoint", type=Path, help="folder; the shipped one unless given")
    parser.add_argument("--samples", type=int, default=480, help="questions of each arm")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    args = parser.parse_args()
    try:
        load_recipe(args.name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    known = sorted(p.stem for p in (HERE / "measures").glob("pocket*.py"))
    if args.name not in known:
        raise SystemExit(f"error: {args.name} has no measure. There are: {', '.join(known)}.")
    checkpoint = args.checkpoint or Path("btp/models/checkpoints") / args.name
    if not (checkpoint / "config.json").is_file():
        raise SystemExit(
            f"error: no model in {checkpoint}. Train it: python -m experiments.embedded.train {args.name}, and name "
            f"its folder: --checkpoint work/{args.name}/model"
        )
    measured = importlib.import_module(f"experiments.embedded.measures.{args.name}").measure(
        checkpoint, args.split, args.samples
    )
    text = "\n\n".join([*measured["tables"].values(), acceptance(measured["acceptance"])])
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        found = {k: v for k, v in measured.items() if k != "tables"}
        (args.out / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.out / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")


def acceptance(checks: list[dict]) -> str:
    """The table of what was asked and what was found."""
    lines = ["| what | asked | found | |", "|:--|:--|--:|:--|"]
    for check in checks:
        lines.append(
            f"| {check['what']} | {check['asked']} | {check['found']} | {'yes' if check['met'] else '**no**'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
