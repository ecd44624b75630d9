"""The language model inside a host: its layers, its RoPE, its norm; the same for models with pictures and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypedDict, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from btp.core.host import Packed, Tower, unwrapped

_NORMS = ("norm", "final_layer_norm")
_PARTS = {
    "attention": ("self_attn", "attn", "attention"),
    "mlp": ("mlp",),
    "attention_norm": ("input_layernorm", "self_attn_layer_norm", "layer_norm1", "norm1", "layernorm_before"),
    "mlp_norm": ("pre_feedforward_layernorm", "layernorm_after", "post_attention_layernorm", "layer_norm2", "norm2"),
}


class Generating(Protocol):
    """A model of transformers that generates, or a wrapper around one."""

    def generate(self, **inputs: Any) -> Any:
        """Token ids, or an output that holds them."""
        ...


class DecoderHost:
    """A thin view of a transformers model with the standard decoder loop; it changes nothing in it.

    What torch.compile, peft and data parallelism put around a model is taken off for the engine; calls still go
    through it.

    Attributes:
        unit: what a prunable token is called in reports and messages, in the plural.
        kind: Kind of these models, a key of `btp.models.loading.kinds.KINDS`.

    Args:
        model: a model of transformers with `input_ids`.
        decoder: path of the language model, which builds masks and RoPE.
        layers: path of the decoder layers inside it.

    Raises:
        ValueError: a path does not exist, or the decoder or its layers were not found; the message names the
            key. Or it is no model of transformers, or a wrapper that cannot be taken off.
    """

    unit: ClassVar[str]
    kind: ClassVar[str]
    vision: nn.Module | None = None
    projector: nn.Module | None = None

    def __init__(self, model: Any, *, decoder: str | None = None, layers: str | None = None) -> None:
        self._outside = model
        self.model = cast(PreTrainedModel, unwrapped(model))
        model = self.model
        if not hasattr(model, "config") or not (decoder or hasattr(model, "get_decoder")):
            raise ValueError(
                f"{type(model).__name__} is no model of transformers: it has no config, or no get_decoder. If it is a "
                f"wrapper of your own, give the model inside of it: {type(self).__name__}(wrapper.model)."
            )
        self.config = model.config
        self.decoder = given_module("decoder", model, decoder) if decoder else model.get_decoder()
        stack = given_module("layers", model, layers) if layers else find_module(self.decoder, ("layers",))
        if not isinstance(stack, nn.ModuleList):
            raise ValueError(
                f"{type(model).__name__} has no ModuleList of decoder layers at "
                f"{type(self.decoder).__name__}.layers. "
                "Set model.layers to its path."
            )
        self.towers = {"llm": Tower("llm", cast(Sequence[nn.Module], stack), **parts_of(stack))}
        self.decoder = unwrapped(self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.towers["llm"].layers  # type: ignore[return-value]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder's hidden states."""
        return self.config.get_text_config().hidden_size

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's RoPE module."""
        return getattr(self.decoder, "rotary_emb", None)

    @property
    def norm(self) -> nn.Module | None:
        """The decoder's final norm."""
        return find_module(self.decoder, _NORMS)

    @property
    def device(self) -> torch.device:
        """Where the inputs belong: of a model that is spread, where its first layers compute."""
        places = (getattr(self.model, "hf_device_map", None) or {}).values()
        if len(set(places)) > 1:  # what lies on the host or on disk is computed on the device of the others
            return torch.device(next((place for place in places if place not in ("cpu", "disk")), "cpu"))
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    def generate(self, **inputs: Any) -> Any:
        """The model's own generate."""
        outside = self._outside if hasattr(self._outside, "generate") else self.model
        return cast(Generating, outside).generate(**inputs)

    def __call__(self, **inputs: Any) -> Any:
        """The model's own forward."""
        return self._outside(**inputs)

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """None: the vision tower's tokens are handed on in order, one to one, or there are none."""
        return None

    def prompt(self, batch: int, placeholders: Sequence[int], words: int) -> dict[str, Tensor]:
        """`batch` equal rows of input_ids and attention_mask [B, S]: `placeholders`, then `words` ordinary tokens."""
        ordinary = self.words()
        drawn = torch.randint(len(ordinary), (words,), generator=torch.Generator().manual_seed(0))
        row = torch.tensor([*placeholders, *(ordinary[i] for i in drawn.tolist())], device=self.device)
        ids = row.expand(batch, -1).contiguous()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def words(self) -> list[int]:
        """Some ids of ordinary text tokens, for `example`."""
        config = self.config.to_dict()
        special = {v for k, v in config.items() if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)}
        return [i for i in range(3, min(1000, self.config.get_text_config().vocab_size)) if i not in special]


def given_module(key: str, root: nn.Module, path: str) -> nn.Module:
    """The module at a path that model.KEY names.

    Raises:
        ValueError: there is none.
    """
    found = find_module(root, (path,))
    if found is None:
        raise ValueError(f"model.{key} is {path!r}, but {type(root).__name__} has no module there. Correct the path.")
    return found


def find_module(root: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """The module at the first of some paths where there is one."""
    for path in paths:
        at: Any = root
        for name in path.split("."):
            at = getattr(at, name, None)
        if isinstance(at, nn.Module):
            return at
    return None


class Parts(TypedDict, total=False):
    """Names of the blocks and norms inside a layer, as `Tower` takes them."""

    attention: str | None
    mlp: str | None
    attention_norm: str | None
    mlp_norm: str | None
    attention_exit: str
    mlp_exit: str


def parts_of(layers: nn.ModuleList) -> Parts:
    """The names that the blocks and norms inside a layer go by."""

    def name_of(part: str) -> str | None:
        return next((name for name in _PARTS[part] if isinstance(getattr(layers[0], name, None), nn.Module)), None)

    found = Parts(
        attention=name_of("attention"),
        mlp=name_of("mlp"),
        attention_norm=name_of("attention_norm"),
        mlp_norm=name_of("mlp_norm"),
    )
    if found.get("mlp_norm") == "pre_feedforward_layernorm":  # norms on both sides of each block
        found["attention_exit"], found["mlp_exit"] = "post_attention_layernorm", "post_feedforward_layernorm"
    elif hasattr(layers[0], "post_self_attn_layernorm"):
        found["attention_exit"], found["mlp_exit"] = "post_self_attn_layernorm", "post_mlp_layernorm"
    return found
