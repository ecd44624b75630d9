"""What a measurement ran on, and the memory it took."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch


def hardware(device: torch.device, dtype: torch.dtype) -> dict[str, str | int | None]:
    """What a latency means nothing without: processor, threads, GPU, versions, precision. JSON-able."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _cpu_model(listing: Path = Path("/proc/cpuinfo")) -> str:
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def peak_memory_mib(fn: Callable[[], object], device: torch.device) -> float | None:
    """Most memory allocated on the device while `fn` ran, weights included, in MiB of 2^20 bytes.

    Returns:
        None on a CPU, where torch keeps no such count; `fn` does not run then.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
