"""Puts a trained model into the package: weights in float16, tokenizer and configs as they are.

python -m experiments.embedded.ship pocket_text     # work/pocket_text/model -> btp/models/checkpoints/pocket_text
python -m experiments.embedded.ship pocket --mean 2_together 0.4    # 0.4 of an earlier phase, 0.6 of the last
python -m experiments.embedded.ship pocket_vim_tuned --trained outputs/.store/trained/ID    # of training.train=host
"""

import argparse
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from btp.models import plainmamba, vim
from btp.pruners.trained_folder import CARD, read_card
from btp.results.shipped import CONF
from btp.runner.training.train import HOST
from experiments.embedded.train import RECIPES, load_recipe

CHECKPOINTS = Path("btp/models/checkpoints")


def ship(trained: Path, shipped: Path, earlier: Path | None = None, share: float = 0.0) -> None:
    """Write a checkpoint again with weights in float16; its card stays.

    Args:
        trained: Folder of `save_pretrained`.
        shipped: Folder to write.
        earlier: Weights of a finished phase (done.pt) to take the mean with.
        share: Of `earlier` in that mean.
    """
    model = model_class(trained).from_pretrained(trained, dtype=torch.float32)
    if earlier is not None:
        found = torch.load(earlier, weights_only=True, map_location="cpu")
        state = model.state_dict()
        model.load_state_dict({key: state[key].lerp(found[f"model.{key}"], share) for key in state})
    model = model.to(torch.float16)
    for file in trained.iterdir():
        if file.suffix in (".json", ".jinja", ".txt"):
            shutil.copy(file, shipped / file.name)
    model.save_pretrained(shipped)
    (shipped / "model.safetensors").chmod(0o644)


def model_class(folder: Path) -> type[PreTrainedModel]:
    """The class that wrote a checkpoint: of transformers, or one of the project's own architectures.

    Raises:
        ValueError: It is none of them.
    """
    name = AutoConfig.from_pretrained(folder).architectures[0]
    found = next((getattr(room, name) for room in (transformers, vim, plainmamba) if hasattr(room, name)), None)
    if found is None:
        raise ValueError(f"config.json of {folder} names the architecture {name}, which nobody here knows.")
    return found


def model_folder(name: str, trained: Path | None) -> Path:
    """Where the model to ship lies: what a recipe leaves, or what one of the models became in action=train.

    Raises:
        ValueError: it is neither, or would take the place of a model that has a recipe.
    """
    known = sorted(p.stem for p in RECIPES.glob("pocket*.py"))
    if trained is None or not (trained / CARD).is_file():
        load_recipe(name)
        return trained or Path("work") / name / "model"
    if name in known or not (CONF / "model" / f"{name}.yaml").is_file():
        raise ValueError(
            f"{trained} holds what {read_card(trained)['host']['name']} became with a pruner on, which ships under a "
            f"name of its own, with a conf/model/NAME.yaml, and not as {name}."
        )
    return trained / HOST


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="a file of experiments/embedded/recipes, or a tuned model of conf/model")
    parser.add_argument("--trained", type=Path, help="folder of the model or of action=train; else work/NAME/model")
    parser.add_argument("--mean", nargs=2, metavar=("PHASE", "SHARE"), help="folder of a finished phase, and its share")
    args = parser.parse_args()
    try:
        trained = model_folder(args.name, args.trained)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if not (trained / "config.json").is_file():
        raise SystemExit(f"error: no model in {trained}. Train it: python -m experiments.embedded.train {args.name}")
    shipped = CHECKPOINTS / args.name
    shipped.mkdir(parents=True, exist_ok=True)
    earlier, share = (trained.parent / args.mean[0] / "done.pt", float(args.mean[1])) if args.mean else (None, 0.0)
    if earlier is not None and not (earlier.is_file() and 0 < share < 1):
        raise SystemExit(f"error: --mean takes a finished phase with {earlier} and a share between 0 and 1.")
    ship(trained, shipped, earlier, share)
    print(f"{shipped} holds {sum(f.stat().st_size for f in shipped.iterdir()) / 2**20:.1f} MiB.")


if __name__ == "__main__":
    main()
