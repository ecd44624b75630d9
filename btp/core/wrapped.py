"""Takes off what other libraries put around a model: torch.compile, peft, data parallelism."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that computes, inside of whatever wraps it; the module itself where nothing does.

    Raises:
        ValueError: the wrapper does more than to call it, as peft's prompt learning does.
    """
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    parts = getattr(model, "_modules", {})
    if "_orig_mod" in parts:  # torch.compile
        return parts["_orig_mod"]
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    if type(model).__module__.partition(".")[0] != "peft" and not hasattr(type(model), "get_base_model"):
        return None
    kind = getattr(model, "active_peft_config", None)
    if getattr(kind, "is_prompt_learning", False):
        raise ValueError(
            f"{type(model).__name__} holds an adapter of kind {type(kind).__name__}, which puts learned tokens into "
            "every prompt, where nothing says which tokens are the picture's. Use one that changes weights, such as "
            "LoRA, or the model without it."
        )
    return parts.get("base_model", parts.get("model"))  # peft's wrapper, and its tuner inside
