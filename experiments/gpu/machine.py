"""What the steps ran on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from btp.measure.hardware import hardware
from btp.results.shipped import VERSION

PACKAGES = ("transformers", "accelerate", "triton", "flash-attn", "bitsandbytes", "torchao")


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, GPUs with their memory and capability, and versions; None for what is not installed."""
    gpus = []
    for index in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        found = torch.cuda.get_device_properties(index)
        gpus.append(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}")
    known = hardware(device, torch.float32)
    facts = {"system": platform.platform(), "python": platform.python_version(), "cpu": known["cpu"], "gpus": gpus}
    facts |= {"btp": VERSION, "torch": torch.__version__, "cuda": torch.version.cuda}
    return facts | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
