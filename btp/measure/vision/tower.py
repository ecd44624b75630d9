"""Floating point operations of a vision model without a language model, from the sizes of its modules.

A multiply-add counts as two. Norms, activations, softmax and biases are left out, as in `btp.measure.flops`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from btp.core.trace import Call

SCAN = 9  # operations of a selective scan for each channel, state and row (Gu and Dao 2023, as papers count it)


@dataclass(frozen=True)
class LayerCost:
    """What one row costs in a layer.

    Attributes:
        attention: operations of its linear maps in the attention block, or in the mixer.
        mlp: Operations of the layers behind it.
        pairs: operations of each pair of rows that attend to each other.
        scan: Operations of convolutions and scans, all directions.
    """

    attention: int
    mlp: int = 0
    pairs: int = 0
    scan: int = 0


@dataclass(frozen=True)
class TowerCost:
    """What a model costs.

    Attributes:
        layers: Layers of its tower, in order.
        fixed: rows that are no patches.
        patch: operations of making a row of a patch.
        head: Operations of the head, for a picture.
    """

    layers: tuple[LayerCost, ...]
    fixed: int
    patch: int
    head: int

    def flops(self, call: Call) -> int:
        """Operations of one forward, all rows of its batch together, selection and signals left out."""
        total = sum(call.total) * self.patch + len(call.total) * self.head
        inside = {stage.site.layer: stage.after for stage in call.stages if stage.site.kind == "mlp"}
        for at, (cost, entered) in enumerate(zip(self.layers, call.visual, strict=True)):
            for patches, passed in zip(entered, inside.get(at, entered), strict=True):
                rows = patches + self.fixed
                total += rows * (cost.attention + cost.scan) + rows**2 * cost.pairs + (passed + self.fixed) * cost.mlp
        return total


def tower_cost(model: nn.Module, layers: Sequence[nn.Module], fixed: int, attention: str | None) -> TowerCost:
    """Read the sizes off a model.

    Args:
        model: Model with its head.
        layers: Layers of its tower.
        fixed: rows that are no patches.
        attention: name of the attention block inside a layer; None of a state space layer, which is a mixer.
    """
    inside = {id(m) for layer in layers for m in layer.modules()}
    outside = {name: m for name, m in model.named_modules() if id(m) not in inside}
    config: Any = model.config
    patch = _embedding([m for m in outside.values() if isinstance(m, nn.Conv2d | nn.Conv3d)], config.patch_size)
    detection = {name: m for name, m in outside.items() if name.startswith(DETECTION)}
    readers = getattr(config, "num_detection_tokens", 1)
    head = _linear(detection.values()) * readers if detection else _linear(outside.values())
    return TowerCost(tuple(_layer(layer, attention) for layer in layers), fixed, patch, head)


DETECTION = ("class_labels_classifier", "bbox_predictor")  # heads that each detection token passes


def _layer(layer: nn.Module, attention: str | None) -> LayerCost:
    if attention is None:
        return LayerCost(_linear(layer.modules()), scan=_scans(layer))
    block = layer.get_submodule(attention)
    mine = _linear(block.modules())
    narrow = next(m for m in block.modules() if isinstance(m, nn.Linear))  # the queries' map: heads * head size wide
    return LayerCost(mine, _linear(layer.modules()) - mine, 4 * narrow.out_features)


def _linear(modules: Iterable[nn.Module]) -> int:
    return sum(2 * m.weight.numel() for m in modules if isinstance(m, nn.Linear))


def _embedding(convolutions: Iterable[nn.Conv2d | nn.Conv3d], patch: int | Sequence[int]) -> int:
    """Convolutions one behind the other that end in a row for each patch, for one patch."""
    side, step, total = patch if isinstance(patch, int) else patch[0], 1, 0
    for conv in convolutions:
        step *= conv.stride[-1]
        total += 2 * conv.weight.numel() * (side // step) ** 2
    return total


def _scans(layer: nn.Module) -> int:
    """Convolutions and scans of a mixer: a direction has its own decays (A_log), or all share them (PlainMamba)."""
    decays: Mapping[str, nn.Parameter] = {n: p for n, p in layer.named_parameters() if n.split(".")[-1][:1] == "A"}
    directions: list[Any] = [m.direction_Bs for m in layer.modules() if hasattr(m, "direction_Bs")]
    sharing = len(directions[0]) - 1 if directions else 1
    scans = sum(SCAN * p.numel() * sharing for p in decays.values())
    return scans + sum(2 * m.weight.numel() for m in layer.modules() if isinstance(m, nn.Conv1d | nn.Conv2d))
