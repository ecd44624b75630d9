"""A published checkpoint of Vim or PlainMamba as a folder that runs load: `python -m btp.models.convert FILE.pth OUT`.

The files are pickles. Nothing is unpickled but tensors, plain containers and argparse.Namespace, which the training
scripts left in them; a run never reads a pickle.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from btp.models.plainmamba import PlainMambaConfig, PlainMambaForImageClassification
from btp.models.vim import VimConfig, VimForImageClassification

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as both were trained


def convert(file: Path, out: Path, image_size: int = 224) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into `out`.

    Args:
        file: File as published: vim_*_midclstok_*.pth (state under `model`) or l1.pth to l3.pth (under `state_dict`).
        out: a new folder.
        image_size: side of the pictures that the model takes.

    Raises:
        ValueError: it is no such checkpoint, or holds more than tensors and settings; or `out` is there already.
    """
    if out.exists():
        raise ValueError(f"{out} is there already. Name a new folder.")
    weights = _weights(file)
    try:
        model, weights = _empty(weights, file, image_size)
        lost, strange = model.load_state_dict(weights, strict=False)
    except KeyError as error:
        raise ValueError(f"{file} lacks {error.args[0]}, by which the model is built. Name a whole one.") from None
    except RuntimeError as error:
        shape = " ".join(str(error).splitlines()[-1].split())
        raise ValueError(f"{file} holds tensors that do not go together: {shape} Name a whole one.") from None
    if lost or strange:
        what = f"lacks {lost[0]}" if lost else f"holds {strange[0]}, which the model has no place for"
        raise ValueError(
            f"{file} {what}. Vim is read with its class token in the middle and without rotary positions "
            "(vim_*_midclstok_*.pth), PlainMamba as its authors published it (l1.pth to l3.pth)."
        )
    about = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image_size * 256 // 224},
        "crop_size": {"height": image_size, "width": image_size},
        "resample": 3,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as begun:  # whole or not at all
        made = Path(begun) / out.name
        model.save_pretrained(made)
        (made / "preprocessor_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        made.rename(out)


def _empty(
    weights: dict[str, Tensor], file: Path, image_size: int
) -> tuple[VimForImageClassification | PlainMambaForImageClassification, dict[str, Tensor]]:
    """The model that weights are of, and these under its names."""
    if "cls_token" in weights:
        return VimForImageClassification(_vim(weights, file, image_size)), weights
    if not any(name.endswith("direction_Bs") for name in weights):
        raise ValueError(
            f"{file} holds neither a Vim with a class token nor a PlainMamba. Name one of their checkpoints."
        )
    weights = {re.sub(r"^head\.fc\.", "head.", name.removeprefix("backbone.")): x for name, x in weights.items()}
    return PlainMambaForImageClassification(_plainmamba(weights, image_size)), weights


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read as tensors and settings alone: {str(error).splitlines()[0]} Nothing else is "
            "unpickled."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{file} holds no table of tensors, under `model`, `state_dict` or by itself.")
    return dict(found)


def _vim(weights: Mapping[str, Tensor], file: Path, image_size: int) -> VimConfig:
    patch, rows = weights["patch_embed.proj.weight"].shape[-1], weights["pos_embed"].shape[1] - 1
    side = round(rows**0.5)
    stride = (image_size - patch) // max(side - 1, 1)
    if stride < 1 or stride > patch or side * side != rows or (side - 1) * stride + patch != image_size:
        raise ValueError(
            f"{file} has positions for {rows} patches of {patch} pixels, which do not lie on a picture of "
            f"{image_size}. Say --image-size."
        )
    inner, states = weights["layers.0.mixer.A_log"].shape
    width = weights["pos_embed"].shape[2]
    found = VimConfig(
        image_size=image_size,
        patch_size=patch,
        patch_stride=stride,
        hidden_size=width,
        num_hidden_layers=_layers(weights),
        state_size=states,
        expand=inner // width,
        conv_kernel=weights["layers.0.mixer.conv1d.weight"].shape[-1],
    )
    found.num_labels = len(weights["head.bias"])
    return found


def _plainmamba(weights: Mapping[str, Tensor], image_size: int) -> PlainMambaConfig:
    inner, states = weights["layers.0.mamba.A_log"].shape
    width = weights["pos_embed"].shape[2]
    layers = _layers(weights)
    found = PlainMambaConfig(
        image_size=image_size,
        patch_size=2 * weights["patch_embed.projection.weight"].shape[-1],
        hidden_size=width,
        num_hidden_layers=layers,
        state_size=states,
        expand=inner // width,
        conv_size=weights["layers.0.mamba.conv2d.weight"].shape[-1],
        stem_convs=sum(name.startswith("patch_embed.convs.") and x.dim() == 4 for name, x in weights.items()),
        dwconv_layers=[i for i in range(layers) if f"layers.{i}.dw.0.weight" in weights],
    )
    found.num_labels = len(weights["head.bias"])
    return found


def _layers(weights: Mapping[str, Tensor]) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(r"layers\.(\d+)\.", name)))


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m btp.models.convert", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.pth")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--image-size", type=int, default=224)
    asked = parser.parse_args(words)
    try:
        convert(asked.file, asked.out, asked.image_size)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{asked.out} is ready: model.path={asked.out}")


if __name__ == "__main__":
    main()
