"""Hardware and software versions of a measurement, and its peak memory."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def hardware(device: torch.device, dtype: torch.dtype) -> dict[str, str | int | None]:
    """Hardware and versions to print beside a latency: processor, threads, GPU, versions, precision. JSON-able."""
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


def peak_above_mib(fn: Callable[[], object], device: torch.device) -> float:
    """Most memory of torch's allocator while `fn` ran, in MiB of 2^20 bytes, beyond what was held when it began.

    So weights do not count, and neither does what a library allocates on its own. On a CPU torch keeps no such count,
    but its profiler sees every block come and go; `fn` takes longer then.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        return (peak_memory_mib(fn, device) or 0.0) - held / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        fn()
    seen = watched.profiler.kineto_results.events()  # type: ignore[union-attr]
    blocks = [event for event in seen if event.name() == "[memory]"]
    held, most = 0, 0
    for block in sorted(blocks, key=lambda event: event.start_ns()):
        held += block.nbytes()  # type: ignore[attr-defined]
        most = max(most, held)
    return most / 2**20
