"""Weights in 8 or 4 bits, by bitsandbytes or by torchao."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from btp.models.loading.checkpoint import read_config

KINDS = {  # how, and the package that does it
    "8bit": "bitsandbytes",
    "4bit": "bitsandbytes",
    "torchao_int8": "torchao",
}
Quantization = BitsAndBytesConfig | TorchAoConfig


def quantization(kind: str | None, folder: Path, device: torch.device, dtype: torch.dtype) -> Quantization | None:
    """How transformers should quantise a checkpoint while it loads; None leaves it as it is.

    Args:
        kind: null | 8bit (LLM.int8) | 4bit (NF4) | torchao_int8 (weights alone).
        folder: Folder of the checkpoint.
        device: it goes to.
        dtype: Data type that 4-bit matrices of bitsandbytes are multiplied in.

    Raises:
        ValueError: another kind, a checkpoint that is quantised already, a package that is missing, or a device it
            cannot use.
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
    package = KINDS[kind]
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"model.quantize is {kind}, which needs {package}, and it is not installed. Install it (pip install "
            f"{package}), or set model.quantize=null."
        )
    able = _devices(package)
    if device.type not in able:
        raise ValueError(
            f"model.quantize is {kind}, but {package} cannot compute on {device.type}, only on "
            f"{', '.join(sorted(able))}. Choose such a device with trainer, or set model.quantize=null."
        )
    if package == "torchao":
        made: Any = importlib.import_module("torchao.quantization")
        return TorchAoConfig(made.Int8WeightOnlyConfig())
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _devices(package: str) -> set[str]:
    if package == "torchao":
        return {"cpu", "cuda", "xpu"}
    bitsandbytes: Any = importlib.import_module(package)
    return set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
