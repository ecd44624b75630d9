"""Puts modules that were trained for an embedded model into the package: weights in float16, card and curve beside.

python -m experiments.embedded.ship_modules outputs/.store/trained/ID   # -> btp/models/checkpoints/modules/PRUNER_MODEL
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save
from transformers import AutoConfig, AutoImageProcessor

from btp.models import plainmamba, vim  # noqa: F401  (AutoConfig knows their models then)
from btp.pruners.bavit import CONFIG
from btp.pruners.trained_folder import CARD, read_card
from btp.results.shipped import CONF
from btp.runner.identity import model_checkpoint, pictures
from experiments.embedded.ship import CHECKPOINTS

CURVE = "curve.jsonl"


def held(model: Path, key: str) -> str | None:
    """What an embedded model's runs have for `checkpoint` or `pictures`."""
    if key == "pictures":
        return pictures(AutoImageProcessor.from_pretrained(model), AutoConfig.from_pretrained(model))
    named = yaml.safe_load((CONF / "model" / f"{model.name}.yaml").read_text(encoding="utf-8"))
    return model_checkpoint(named, model)


def ship_modules(trained: Path, checkpoints: Path = CHECKPOINTS) -> Path:
    """Write a folder of modules again with weights in float16.

    Args:
        trained: What `action=train` leaves.
        checkpoints: Folder of the embedded models; modules go below `modules`.

    Returns:
        The folder written.

    Raises:
        ValueError: They were trained for another model than the one that ships under its name, or the folder holds a
            model.
    """
    card = read_card(trained)
    weights = next(trained.glob("*.safetensors"), None)
    if weights is None:
        raise ValueError(f"{trained} holds no modules, but what a model became: python -m experiments.embedded.ship.")
    name, bound = card["host"]["name"], {k: v for k, v in card["host"].items() if k != "name"}
    model = checkpoints / name
    if not model.is_dir() or any(held(model, key) != value for key, value in bound.items()):
        said = ", ".join(f"{key} {value}" for key, value in bound.items())
        raise ValueError(
            f"the modules in {trained} were trained with {name} ({said}), which is not what {model} holds. Train them "
            "with the model that ships."
        )
    shipped = checkpoints / "modules" / f"{card['pruner']}_{name}"
    shipped.mkdir(parents=True, exist_ok=True)
    content = save({key: value.to(torch.float16) for key, value in load_file(weights).items()})
    (shipped / weights.name).write_bytes(content)
    for file in (trained / CURVE, trained / CONFIG):
        if file.is_file():
            shutil.copy(file, shipped / file.name)
    card["digest"] = hashlib.sha256(content).hexdigest()
    (shipped / CARD).write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return shipped


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="outputs/.store/trained/IDENTITY")
    try:
        shipped = ship_modules(parser.parse_args().folder)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{shipped} holds {sum(f.stat().st_size for f in shipped.iterdir()) / 2**20:.1f} MiB.")


if __name__ == "__main__":
    main()
