"""BAViT: keeps the patches that a small ViT classifies as foreground."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import top_k
from btp.ops.token_classifier import TokenClassifier, foreground

CONFIG, WEIGHTS = "bavit.json", "bavit.safetensors"
SHAPE = ("layers", "width", "heads", "patch", "grid")
SELECT = ("budget", "threshold")
FRONT = Site.parse("vision.layer.0")


class BAViT(Pruner):
    """Background-aware ViT: keeps the patches that its token classifier takes for foreground.

    Args:
        select: budget, the stage's count of the likeliest patches | threshold, all from `threshold` on, however many a
            picture has; a stage's keep is an aim then.
        threshold: probability from which on a patch is foreground.
        background: share of the background patches that stays too, the likeliest first (partial pruning); 0 drops all.
        floor: share of all patches that stays at least.
        weights: folder of a trained classifier, as `save` writes it; null builds one of random weights, which is a
            control.
        layers, width, heads, patch, grid: as `TokenClassifier`; where weights are given they must be theirs. Null takes
            those of the weights; without any, the model's own width, patch and grid.
        seed: Seed of the random weights.
        digest: SHA-256 of the weights, where it is known.

    Raises:
        ValueError: a value is out of range, the folder holds no classifier, or one of another shape or digest.

    Source: Sah et al. 2024, arXiv:2410.09324 (abstract; no code was published). What the abstract leaves open is ours.
    """

    def __init__(
        self,
        *,
        select: str,
        threshold: float,
        background: float,
        floor: float,
        layers: int | None,
        width: int | None,
        heads: int | None,
        patch: int | None,
        grid: int | None,
        seed: int,
        weights: str | None = None,
        digest: str | None = None,
    ) -> None:
        check_one_of("pruner.method.select", select, SELECT)
        for key, value in (("threshold", threshold), ("background", background), ("floor", floor)):
            if not 0 <= value <= 1:
                raise ValueError(f"pruner.method.{key} is {value!r}. Write a number from 0 to 1.")
        self.mode, self.adaptive = select, select == "threshold"
        self.threshold, self.background, self.floor = threshold, background, floor
        self.shape: dict[str, Any] = dict(zip(SHAPE, (layers, width, heads, patch, grid), strict=True))
        self.seed, self.classifier = seed, None
        if weights is not None:
            self.classifier = _read(Path(weights).expanduser(), self.shape, digest)
        elif missing := next((key for key in ("layers", "heads") if self.shape[key] is None), None):
            raise ValueError(
                f"pruner.method.weights is null and so is pruner.method.{missing}. Name the folder of a trained "
                "classifier, or give layers and heads for an untrained one."
            )
        elif None not in self.shape.values():
            self.begin((0, 0), 0, 0)

    def begin(self, size: tuple[int, int], patches: int, width: int) -> TokenClassifier:
        """The classifier, made where there is none yet.

        Args:
            size: height and width of a picture in pixels.
            patches: Patches that the model cuts it into.
            width: Width of the model.
        """
        if self.classifier is None:
            side = round((size[0] * size[1] / max(patches, 1)) ** 0.5)
            patch = self.shape["patch"] or side
            own = {"width": width, "patch": side, "grid": max(size) // max(patch, 1)}
            shape = {key: own[key] if value is None else value for key, value in self.shape.items()}
            shape["heads"] = gcd(shape["heads"], shape["width"])  # of a model whose width they do not divide
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.classifier = TokenClassifier(**shape)
            self.classifier.requires_grad_(False).eval()
        return self.classifier

    def check(self, schedule: Schedule) -> None:
        """Refuse more than one stage, and one that does not stand in front of the first vision layer."""
        super().check(schedule)
        sites = [str(stage.site) for stage in schedule]
        if sites != [str(FRONT)]:
            raise ValueError(
                f"pruner 'bavit' looks at the picture once, in front of the first layer, but its stages stand at "
                f"{', '.join(sites)}. Leave schedule.0.site={FRONT} alone."
            )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The picture itself."""
        return () if stage.withdraws_all else (Signal("pixels", FRONT),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Classify, and keep what is foreground.

        Raises:
            ValueError: the picture's patches are not those of the model behind.
        """
        probability = self._probability(tokens, signals[self.needs(stage)[0]])
        if self.mode == "budget" or stage.keep == 1.0:
            return Selection(top_k(probability, tokens.keep_counts(stage), tokens.valid), scores=probability)
        scores, counts = foreground(probability, tokens.valid, self.threshold, self.background, self.floor)
        return Selection(top_k(scores, counts, tokens.valid), scores=scores, counts=counts)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The probability of being foreground."""
        return {"foreground": self._probability(tokens, signals[self.needs(stage)[0]])}

    def save(self, folder: Path) -> str:
        """Write the classifier for `weights`; returns the digest of its weights.

        Raises:
            ValueError: there is none yet.
        """
        if self.classifier is None:
            raise ValueError("pruner 'bavit' has no classifier yet. Call begin, or give all of its shape.")
        folder.mkdir(parents=True, exist_ok=True)
        shape = {
            "layers": len(self.classifier.blocks),
            "width": self.classifier.embed.out_channels,
            "heads": self.classifier.blocks[0].heads,
            "patch": self.classifier.patch,
            "grid": self.classifier.positions.shape[-1],
        }
        (folder / CONFIG).write_text(json.dumps(shape, indent=2) + "\n", encoding="utf-8")
        content = save({k: v.detach().cpu().contiguous() for k, v in self.classifier.state_dict().items()})
        (folder / WEIGHTS).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def _probability(self, tokens: Tokens, pixels: Tensor) -> Tensor:
        """[B, N] of each token's patch, in float32."""
        total = tokens.host_total or tuple(tokens.total.tolist())
        high, wide = pixels.shape[-2:]
        module = self.begin((high, wide), max(total), tokens.hidden.shape[-1]).to(pixels.device)
        with torch.no_grad():
            scores = module(pixels.float())
        patches = scores.shape[1]
        if patches < max(total):
            raise ValueError(
                f"pruner 'bavit' cuts a picture of {pixels.shape[-2]}x{pixels.shape[-1]} pixels into {patches} patches "
                f"of {module.patch}x{module.patch}, but the model has {max(total)} tokens of it. Set "
                "pruner.method.weights to a classifier of the model's patch size (or pruner.method.patch)."
            )
        return scores.softmax(-1)[..., 1].gather(1, tokens.index.clamp(min=0))


def _read(folder: Path, given: Mapping[str, Any], digest: str | None) -> TokenClassifier:
    try:
        shape = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        module = TokenClassifier(**shape)
        content = (folder / WEIGHTS).read_bytes()
        module.load_state_dict(load(content))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"pruner.method.weights is {folder}, where no token classifier can be read: {str(error).splitlines()[0]} "
            f"Set it to a folder with {CONFIG} and {WEIGHTS}."
        ) from error
    other = next((key for key, value in given.items() if value not in (None, shape[key])), None)
    if other is not None:
        raise ValueError(
            f"pruner.method.{other} is {given[other]}, but the classifier in {folder} was trained with {shape[other]}. "
            "Set it to that or to null, or name another folder in pruner.weights."
        )
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{folder / WEIGHTS} is not what its card says. Train anew, or name another folder.")
    return module.requires_grad_(False).eval()
