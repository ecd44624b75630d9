"""Tensors that claim to lie on a GPU, on a machine without one, and what a GPU would have been asked.

A claimed tensor says that it is on `cuda:0` and holds its numbers on the CPU, so that whatever runs runs for real.
Every operation on one is first put to PyTorch's `FakeTensorMode`, which refuses operands of two devices as a GPU would,
and then made on the CPU. Beside it is noted what the host would wait for: values that it reads, and copies to the
device that block; and every operator that would have been launched, which leaves out those that only make a view.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CLAIM = torch.device("cpu"), torch.device("cuda", 0)
_COPY, _COPY_INTO = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
_NOTHING = (torch.ops.aten._unsafe_view, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided)
_TORCH = str(Path(torch.__file__).parent)
_OUTSIDE: set[CodeType] = set()  # functions of PyTorch and of this file
_CUDA_TYPE, _META_TYPE = 1, 14  # of c10::DeviceType


class Claimed(Tensor):
    """A tensor that says it is on the device. Its numbers are `held` on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Claimed:
        """Claim a CPU tensor."""
        claimed = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CLAIM,
        )
        claimed.held = held
        return claimed

    def tolist(self) -> Any:
        """One read."""
        return self.cpu().tolist()

    def __repr__(self, **more: Any) -> str:
        """One read."""
        return f"Claimed({self.cpu()!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing reaches this: `Device` is asked first."""
        raise RuntimeError(f"{func} was called on a claimed tensor outside of Device.open().")


@dataclass(frozen=True)
class Frame:
    """A line of a program: file, line and name of the function."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.name})"


@dataclass(frozen=True)
class Event:
    """An operator on the device.

    Attributes:
        op: its name.
        wait: why the host waits for the device: "read", "upload", or "" where it does not.
        lines: code and line of who asked for it, innermost first, without PyTorch's own.
    """

    op: str
    wait: str
    lines: tuple[tuple[CodeType, int], ...]

    @property
    def stack(self) -> tuple[Frame, ...]:
        """The same to be read."""
        return tuple(Frame(code.co_filename, line, code.co_name) for code, line in self.lines)


class Device(TorchDispatchMode):
    """The device that is not there. `events` grows by one for each operator.

    Raises, inside of `open`:
        RuntimeError: an operation mixes devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._fake = FakeTensorMode(allow_non_fake_inputs=False)
        self._known: dict[Any, str] = {}  # what was judged before

    @contextmanager
    def open(self) -> Iterator[Device]:
        """Claim what is made inside; attention is computed by its plain formula, as no fused kernel is at hand."""
        _give_guard()
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), self._fake, self:
            yield self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Judge an operation, make it on the CPU, and note it."""
        flat, shape = pytree.tree_flatten((args, kwargs or {}))
        claimed = {id(x.held): x for x in flat if isinstance(x, Claimed)}
        asked = next((x for x in flat if isinstance(x, torch.device)), None)
        if not claimed and (asked is None or asked.type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        wait = "read" if func in _READS else _blocks(func, flat, asked)
        if not wait and func not in _READS:
            wait = self._judged(func, flat, shape)
        held = [x.held if isinstance(x, Claimed) else CPU if isinstance(x, torch.device) else x for x in flat]
        args, kwargs = pytree.tree_unflatten(held, shape)
        with unset_fake_temporarily():
            out = func(*args, **kwargs)
        if wait or not _is_view(func):
            self.events.append(Event(str(func), wait, _lines()))
        if asked is not None and asked.type == "cpu":
            return out
        return pytree.tree_map(lambda x: claimed.get(id(x), x) if id(x) in claimed else claim(x), out)

    def _judged(self, func: Any, flat: list[Any], shape: Any) -> str:
        """Let PyTorch look at the devices; "read" where the result's shape depends on values."""
        key = (func, str(shape), *map(_outline, flat))
        if key not in self._known:
            args, kwargs = pytree.tree_unflatten([_faked(x) for x in flat], shape)
            try:
                func(*args, **kwargs)
                self._known[key] = ""
            except (DynamicOutputShapeException, DataDependentOutputException):
                self._known[key] = "read"
        return self._known[key]


def claim(x: Any) -> Any:
    """Tensors of a nest of containers, claimed."""
    return pytree.tree_map(lambda t: Claimed(t) if isinstance(t, Tensor) and not isinstance(t, Claimed) else t, x)


def back(x: Any) -> Any:
    """The numbers of claimed tensors of a nest of containers, on the CPU."""
    return pytree.tree_map(lambda t: t.held if isinstance(t, Claimed) else t, x)


def move(module: nn.Module) -> nn.Module:
    """Let all parameters and buffers of a module be claimed, in place."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, x in table.items():
                if x is not None:
                    table[name] = Claimed(x.detach())  # type: ignore[assignment]
    return module


def _blocks(func: Any, flat: list[Any], asked: torch.device | None) -> str:
    """ "read" or "upload" where a copy crosses to or from the device and the host waits for it."""
    tensors = [x for x in flat if isinstance(x, Tensor)]
    if func is _COPY and asked is not None:
        here, there = isinstance(tensors[0], Claimed), asked.type != "cpu"
    elif func is _COPY_INTO:
        there, here = (isinstance(x, Claimed) for x in tensors[:2])
    else:
        return ""
    if here == there or (there and any(x is True for x in flat)):  # non_blocking: reading waits all the same
        return ""
    return "read" if here else "upload"


def _faked(x: Any) -> Any:
    """A tensor without numbers on the device that `x` claims."""
    if not isinstance(x, Tensor):
        return x
    device = CLAIM if isinstance(x, Claimed) else x.device
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)


def _outline(x: Any) -> Any:
    """All that a judgement goes by, as something that can be looked up."""
    if isinstance(x, Tensor):
        return (isinstance(x, Claimed), x.shape, x.stride(), x.dtype)
    return (type(x), str(x))


def _is_view(func: Any) -> bool:
    """Whether an operator launches nothing: what it returns is a view of an operand, or memory as it is."""
    if func.overloadpacket in _NOTHING:
        return True
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _lines() -> tuple[tuple[CodeType, int], ...]:
    lines, frame = [], sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code not in _OUTSIDE:
            if code.co_filename.startswith(_TORCH) or code.co_filename in (__file__, "<string>"):
                _OUTSIDE.add(code)
            else:
                lines.append((code, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


def _give_guard() -> None:
    """Let C++ switch to a device that is not there, with the guard of `meta` tensors, which does nothing.

    Builds with CUDA bring a guard; without one, operators as simple as `~x` fail before anybody is asked.
    """
    if torch.backends.cuda.is_built():
        torch._C._ensureCUDADeviceGuardSet()
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 32).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA_TYPE] = guards[_META_TYPE]
