"""A folder of trained modules: `modules.safetensors`, and `trained.yaml`, which says where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from btp.core.trained import Trained
from btp.results.atomic import write_bytes, write_text
from btp.results.disk import make_folder

WEIGHTS, CARD = "modules.safetensors", "trained.yaml"
FORMAT = 1
ADVICE = "Name another folder in pruner.weights, or train anew: pruner.weights=auto, action=train."


def write_weights(pruner: Trained, folder: Path, origin: Mapping[str, Any]) -> str:
    """Write a pruner's modules; the card comes last, so that a folder without one is not finished.

    Args:
        origin: what the card says beside format, pruner, width and digest: host, data, steps, losses, versions.

    Returns:
        The digest of the weights.
    """
    make_folder(folder)
    (folder / CARD).unlink(missing_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in pruner.modules.state_dict().items()}
    content = save(state)
    write_bytes(folder / WEIGHTS, content)
    digest = hashlib.sha256(content).hexdigest()
    card = {"format": FORMAT, "pruner": pruner.name, "width": pruner.width, "digest": digest, **origin}
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    return digest


def read_card(folder: Path | str) -> dict[str, Any]:
    """The card of a folder.

    Raises:
        ValueError: there is none, or it is broken.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        there = "it was not finished" if (Path(folder) / WEIGHTS).exists() else "there is no such folder of modules"
        raise ValueError(f"pruner.weights is {folder}, but it holds no {CARD}: {there}. {ADVICE}")
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}. {ADVICE}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT or not isinstance(card.get("digest"), str):
        raise ValueError(f"{path} is no card of trained modules of format {FORMAT}. {ADVICE}")
    return card


def read_weights(pruner: Trained, folder: str, digest: str | None = None) -> None:
    """Take up modules that `write_weights` wrote.

    Args:
        digest: Digest that they must have; None takes what the card says.

    Raises:
        ValueError: they are of another method, of other settings, or not what the card says.
    """
    card, path = read_card(folder), Path(folder) / WEIGHTS
    if card.get("pruner") != pruner.name:
        raise ValueError(
            f"the modules in {folder} were trained for pruner {card.get('pruner')!r}, not for {pruner.name!r}. {ADVICE}"
        )
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}. {ADVICE}") from None
    if found != card["digest"] or (digest is not None and digest != found):
        raise ValueError(
            f"{path} is not what {CARD} beside it says: its SHA-256 begins with {found[:12]}, not with "
            f"{(digest or card['digest'])[:12]}. {ADVICE}"
        )
    pruner.width = card.get("width")
    for key in dict.fromkeys(name.partition(".")[0] for name in state):
        module = pruner.make_module(card["width"])
        mine = {name.partition(".")[2]: value for name, value in state.items() if name.partition(".")[0] == key}
        try:
            module.load_state_dict(mine)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the modules in {folder} have other shapes than pruner {pruner.name!r} makes with its settings: "
                f"{reason}. Set pruner.method as {CARD} there says, or name another folder in pruner.weights."
            ) from None
        pruner.modules[key] = module.requires_grad_(False).eval()
    pruner.origin = str(folder)
