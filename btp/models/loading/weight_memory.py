"""Memory of a model's weights, and free memory of a device."""

from __future__ import annotations

import json
import math
from pathlib import Path

import psutil
import torch
from torch import nn

from btp.models.loading.checkpoint import read_config, weight_files

GIB = 2**30
BITS = {None: None, "8bit": 8, "4bit": 4.5, "torchao_int8": 8}  # of a quantised weight with its scales


def stored_bytes(folder: Path, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Bytes that a checkpoint's weights take once they are loaded, from the heads of its files alone.

    Args:
        folder: Folder of the checkpoint.
        dtype: Data type that floating-point weights are loaded in; those quantised already stay as they are.
        quantize: As in model.quantize; matrices are counted as quantised, apart from embeddings.

    Raises:
        ValueError: a file is corrupt or cut off.
    """
    ready = "quantization_config" in read_config(folder)
    total = 0.0
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            total += file.stat().st_size  # a pickle does not say what it holds; most are stored in 16 bits
            continue
        for name, entry in _head(file).items():
            start, end = entry["data_offsets"]
            count, floating = math.prod(entry["shape"]), entry["dtype"].startswith(("F", "BF"))
            if ready or not floating:
                total += end - start
            elif quantize and len(entry["shape"]) == 2 and not ("embed" in name or "lm_head" in name):
                total += count * BITS[quantize] / 8
            else:
                total += count * dtype.itemsize
    return int(total)


def model_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, on the meta device too."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None


def check_memory(needed: int, device: torch.device, dtype: torch.dtype, random: bool = False) -> None:
    """Refuse to load weights that do not fit.

    Args:
        needed: bytes of the weights.
        dtype: they are in, for the message.
        random: nothing is loaded, so that quantising and spreading are no way out.

    Raises:
        ValueError: fewer bytes are free.
    """
    free = free_bytes(device)
    if free is None or needed <= free:
        return
    ways = [] if random else ["spread the layers with model.device_map=auto", "model.quantize=8bit or 4bit"]
    if dtype.itemsize > 2:
        ways.append(f"model.dtype=bfloat16 ({needed * 2 / dtype.itemsize / GIB:.1f} GiB)")
    ways.append("a smaller model")
    raise ValueError(
        f"the weights alone need {needed / GIB:.1f} GiB in {str(dtype).removeprefix('torch.')}, but {device} has "
        f"{free / GIB:.1f} GiB free. Free some, or choose: {'; '.join(ways)}."
    )


def _head(file: Path) -> dict[str, dict]:
    """name -> dtype, shape, data_offsets of a safetensors file, whose size must be what they say."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > size:
                raise ValueError("its head is longer than the file")
            head = json.loads(opened.read(length))
        head.pop("__metadata__", None)
        whole = 8 + length + max((entry["data_offsets"][1] for entry in head.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{file} is not a file of safetensors ({error}). Download it again; a file of some hundred bytes may be a "
            "git-lfs pointer."
        ) from error
    if size != whole:
        raise ValueError(
            f"{file} has {size} bytes, but its head speaks of {whole}: the download broke off. Complete it (`hf "
            "download` goes on where it stopped)."
        )
    return head
