"""Searches the layer at which a model can do without its picture, for VTW.

Source: Lin et al. 2024, arXiv:2405.05803.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from btp.core.check_settings import check_one_of
from btp.core.schedule import Schedule, Stage
from btp.core.site import Site
from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.ops.kl_search import DIRECTIONS, divergence, first_passing
from btp.results.shapes import keys, listed, number, whole
from btp.runner.calibration.artifact import made, origin
from btp.runner.calibration.reference import forward, reference, run_reference
from btp.runner.calibration.search_artifact import find_search, search_identity
from btp.runner.devices import Machine
from btp.runner.evaluation.batch_size import BatchSize, Pass
from btp.runner.evaluation.data import Batch, Batches
from btp.runner.identity import digest


def search_vtw(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    pruner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Search the first layer whose withdrawal leaves the next token's distribution nearly as it was.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        pruner: config of the pruner, where it is not the run's own.

    Returns:
        The artifact: `layer`, which is the number of layers where no candidate passes (`passes` is false then, and
        `note` says so), and `curve`, the mean divergence of each candidate. What lies in the store is the curve alone;
        the layer is chosen from it anew, so that another eta needs no other search.

    Raises:
        ValueError: settings out of range, no candidate, or an artifact that is of something else.
    """
    pruner = pruner or dict(config["pruner"])
    settings, layers = pruner["search"], loaded.host.num_layers
    check_one_of("pruner.search.direction", settings["direction"], DIRECTIONS)
    candidates = list(range(settings["first"], layers))
    if not candidates or candidates[0] < 0:
        raise ValueError(
            f"pruner.search.first is {settings['first']}, but the model has layers 0 to {layers - 1}. Lower it."
        )
    positions = pruner["schedule"][0].get("positions", "original")

    curve_settings = {k: v for k, v in settings.items() if k != "eta"}

    def make() -> dict[str, Any]:
        begin = partial(Withdrawals, loaded, candidates, positions, settings["direction"])
        module = run_reference(config, loaded, settings["samples"], machine, begin, "search: withdraw")
        curve = [{"layer": k, "divergence": d / module.rows} for k, d in zip(candidates, module.totals, strict=True)]
        return {
            **origin(config, loaded, checkpoint, identity),
            "kind": "vtw",
            "search": curve_settings,
            "positions": positions,
            "curve": curve,
            **made(),
        }

    identity = digest("vtw", search_identity(__name__, config, checkpoint, pruner, curve_settings), positions, layers)
    curve = listed(keys(layer=whole(0, layers - 1), divergence=number()), 1)
    artifact = find_search("vtw", settings, identity, keys(curve=curve), config, checkpoint, store, machine, make)
    return artifact | {"search": dict(settings)} | _chosen(artifact["curve"], settings["eta"], layers)


def _chosen(curve: Sequence[Mapping[str, Any]], eta: float, layers: int) -> dict[str, Any]:
    """The layer, whether there is one, and what to say about it."""
    means, candidates = ([point[key] for point in curve] for key in ("divergence", "layer"))
    layer = first_passing(means, candidates, eta, layers)
    note = f"layer {layer} is the first whose withdrawal moves the next token's distribution by at most {eta:g}"
    if layer == layers:
        least = min(curve, key=lambda point: point["divergence"])
        note = (
            f"no layer passes pruner.search.eta={eta:g}, so nothing would be withdrawn; the least divergence is "
            f"{least['divergence']:.6g}, at layer {least['layer']}"
        )
    return {"layer": layer, "passes": layer < layers, "note": note}


def layer_found(artifact: Mapping[str, Any]) -> int:
    """The layer to withdraw at.

    Raises:
        ValueError: no candidate passed, so that there is nothing to run.
    """
    if not artifact["passes"]:
        raise ValueError(
            f"pruner.layer is search, but {artifact['note']}. Raise pruner.search.eta, or set pruner.layer to a layer."
        )
    return artifact["layer"]


class Withdrawals(Pass):
    """Adds up, over samples, how far the next token's distribution moves when a candidate layer withdraws the image.

    Args:
        loaded: model and processor.
        candidates: layers.
        positions: Positions of the stage that withdraws.
        direction: Direction as `divergence`.
        batches: Batches of the calibration set.
        size: Size of the batches.
    """

    def __init__(
        self,
        loaded: Loaded,
        candidates: Sequence[int],
        positions: str,
        direction: str,
        batches: Batches,
        size: BatchSize,
    ) -> None:
        super().__init__(batches, size)
        self.host, self.direction = loaded.host, direction
        self.schedules = [Schedule((Stage(Site("llm", "layer", layer), 0, positions),)) for layer in candidates]
        self.totals, self.rows = [0.0] * len(candidates), 0

    def step(self, batch: Batch) -> None:
        """One full prefill, and one without the vision tower per candidate."""
        full = reference(self.host, batch.to(self.host.device, self.host.dtype).inputs)
        found: list[float] = []
        for schedule in self.schedules:
            with attach(self.host, None, schedule):
                _, out = forward(self.host, full.inputs)
            moved = divergence(out.logits[:, -1].float().log_softmax(-1), full.logprobs, self.direction)
            found.append(float(moved.double().sum()))
        self.totals = [total + more for total, more in zip(self.totals, found, strict=True)]
        self.rows += len(batch.samples)
