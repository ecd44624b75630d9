"""Weights in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from btp.models.loading.checkpoint import read_config

KINDS = ("8bit", "4bit")


def quantization(kind: str | None, folder: Path, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How transformers should quantise a checkpoint while it loads; None leaves it as it is.

    Args:
        kind: null | 8bit (LLM.int8) | 4bit (NF4).
        folder: of the checkpoint.
        device: it goes to.
        dtype: that 4-bit matrices are multiplied in.

    Raises:
        ValueError: another kind, a checkpoint that is quantised already, no bitsandbytes, or a device it cannot use.
    """
    if kind is None:
        return None
    if kind not in KINDS:
        raise ValueError(f"model.quantize is {kind!r}. Choose from: null, {', '.join(KINDS)}.")
    own = read_config(folder).get("quantization_config")
    if own is not None:
        raise ValueError(
            f"model.quantize is {kind}, but the checkpoint in {folder} is quantised already "
            f"({own.get('quant_method', 'by a method it does not name')}). Set model.quantize=null to load it as it is."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantize is {kind}, which needs bitsandbytes, and it is not installed. Install it (pip install "
            "bitsandbytes), or set model.quantize=null."
        )
    able = _devices()
    if device.type not in able:
        raise ValueError(
            f"model.quantize is {kind}, but bitsandbytes cannot compute on {device.type}, only on "
            f"{', '.join(sorted(able))}. Choose such a device with trainer, or set model.quantize=null."
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _devices() -> set[str]:
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    return set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
