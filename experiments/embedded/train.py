"""Trains an embedded model by its recipe, phase after phase; a killed training goes on where it stopped.

python -m experiments.embedded.train pocket                 # state and log in work/pocket, model in work/pocket/model
python -m experiments.embedded.train pocket --minutes 30    # stops in time, to be gone on with
python -m experiments.embedded.train pocket --init btp/models/checkpoints/pocket  # the last phase alone
"""

import argparse
import importlib
import json
import warnings
from pathlib import Path

import torch

from experiments.embedded.fit import train_phase
from experiments.embedded.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name: str) -> Recipe:
    """The recipe of `recipes/NAME.py`.

    Raises:
        ValueError: There is none.
    """
    known = sorted(p.stem for p in RECIPES.glob("*.py") if p.stem != "__init__")
    if name not in known:
        raise ValueError(f"There is no recipe {name!r}. Choose from: {', '.join(known)}; each is a file in {RECIPES}.")
    return importlib.import_module(f"experiments.embedded.recipes.{name}").RECIPE


def check_state(recipe: Recipe, out: Path) -> None:
    """Refuse a folder that another recipe has trained in.

    Raises:
        ValueError: It holds the state of another recipe.
    """
    card = out / "recipe.json"
    if card.exists() and (found := json.loads(card.read_text(encoding="utf-8"))["name"]) != recipe.name:
        raise ValueError(
            f"{out} holds a training of {found!r}, not of {recipe.name!r}. Give another folder with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    card.write_text(json.dumps({"name": recipe.name, "seed": recipe.seed}) + "\n", encoding="utf-8")


def train(recipe: Recipe, out: Path, *, minutes: float = 1e9, device: str = "cpu", init: Path | None = None) -> bool:
    """Train all phases that are not finished, and save the model.

    Args:
        recipe: Recipe of the model.
        out: Folder for state, log and model.
        minutes: Time for each phase after which the training stops, to be gone on with.
        device: cpu | cuda.
        init: Checkpoint to begin the last phase with, in place of the phases before it.

    Returns:
        Whether the model is finished.
    """
    check_state(recipe, out)
    torch.manual_seed(recipe.seed)
    learner = recipe.build()
    if init is not None:
        recipe.load(learner, init)
    first = 0 if init is None else len(recipe.phases) - 1
    for number, phase in list(enumerate(recipe.phases))[first:]:
        folder = out / f"{number}_{phase.name}"
        if not train_phase(recipe, phase, learner, folder, minutes=minutes, device=device):
            return False
    recipe.save(learner.cpu().eval(), out / "model")
    return True


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="a file of experiments/embedded/recipes")
    parser.add_argument("--out", type=Path, help="folder for state, log and model; work/NAME unless given")
    parser.add_argument("--init", type=Path, help="checkpoint to begin the last phase with")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # grown layers begin at zero: tiny gradients cost a third of a step otherwise
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    out = args.out or Path("work") / args.name
    try:
        finished = train(load_recipe(args.name), out, minutes=args.minutes, device=args.device, init=args.init)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    model = f"The model is in {out / 'model'}." if finished else "Not finished: the same command goes on."
    print(model)


if __name__ == "__main__":
    main()
