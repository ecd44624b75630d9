"""Disk cache of projected picture features, for methods that prune behind the projector."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from btp.models.families.packed import PackedLVLM
from btp.models.lvlm import LVLM
from btp.results.atomic import write_array
from btp.results.disk import CannotWrite, make_folder

SPARE = 10  # of the free disk, one part in ten at most
USED = ".used"  # touched in a folder whenever a run begins to use it


@dataclass(frozen=True)
class Shelf:
    """A folder of cached features.

    Attributes:
        folder: Folder of everything that makes them: checkpoint, dtype, pictures. Several processes may share it.
        limit: bytes that this folder and those beside it may take together; the longest unused of those give way.
    """

    folder: Path
    limit: float


class PictureFeatures:
    """Features by picture. What is missing is computed by the model itself, in the batch that asks for it.

    Args:
        host: the model; its towers are not cut while this is used.
        shelf: Folder of cached features.
        pictures: how many a run has, to see whether there is room for them.
    """

    def __init__(self, host: LVLM, shelf: Shelf, pictures: int) -> None:
        self.host, self.folder, self.pictures, self.limit = host, shelf.folder, pictures, shelf.limit
        self._room: bool | None = None

    @staticmethod
    def fits(host: LVLM) -> bool:
        """Whether this family takes ready features, one tensor per picture: LLaVA-1.5 and its like."""
        base = getattr(host.model, "model", None)
        tower = host.towers.get("vision")
        if base is None or tower is None or tower.feature is None or not hasattr(base, "get_image_features"):
            return False
        if isinstance(host, PackedLVLM):
            return False  # packed by sizes that ready features do not carry
        return "mm_encoder_outputs" in inspect.signature(base.forward).parameters

    def instead(self, inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The inputs of a forward with features in place of pictures.

        Args:
            inputs: Inputs with pixel_values [P, 3, H, W].
            names: Names of the P pictures, fit for a file.
        """
        if inputs.get("pixel_values") is None:
            return dict(inputs)
        rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
        return rest | {
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=self._of(inputs, names))}
        }

    def _of(self, inputs: Mapping[str, Any], names: Sequence[str]) -> list[Tensor]:
        files = [self.folder / f"{name}.npy" for name in names]
        with contextlib.suppress(FileNotFoundError):  # not there yet, or given up for another model's meanwhile
            found = torch.stack([torch.from_numpy(np.load(file)) for file in files])
            return list(found.view(self.host.dtype).to(inputs["pixel_values"].device))
        features = self.host.base.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
        made = list(features.pooler_output)
        if self._has_room(made[0]):
            self._keep(files, made)
        return made

    def _keep(self, files: Sequence[Path], made: Sequence[Tensor]) -> None:
        """Write features down, and none any more once the disk is full: a run does without."""
        try:
            for file, feature in zip(files, made, strict=True):
                _write(file, feature)
        except CannotWrite as error:
            self._room = False
            warnings.warn(f"pictures are not kept any more: {error}", stacklevel=2)

    def _has_room(self, feature: Tensor) -> bool:
        if self._room is None:
            make_folder(self.folder)
            (self.folder / USED).touch()
            needed = self.pictures * feature.numel() * feature.element_size()
            fits = make_room(self.folder, needed, self.limit)
            self._room = fits and needed * SPARE <= shutil.disk_usage(self.folder).free
        return self._room


def make_room(folder: Path, needed: int, limit: float) -> bool:
    """Remove folders beside this one, longest unused first, until it may grow to `needed` bytes.

    Args:
        folder: Folder of one model and task; those beside it are other ones'.
        needed: bytes of all its pictures.
        limit: bytes of all folders together.

    Returns:
        Whether there is room; nothing is removed where there cannot be.
    """
    if needed > limit:
        return False
    others = [other for other in folder.parent.iterdir() if other.is_dir() and other != folder]
    sizes = {other: sum(file.stat().st_size for file in other.glob("*.npy")) for other in others}
    for other in sorted(others, key=_last_used):
        if needed + sum(sizes.values()) <= limit:
            break
        shutil.rmtree(other, ignore_errors=True)
        del sizes[other]
    return True


def _last_used(folder: Path) -> float:
    used = folder / USED
    return (used if used.exists() else folder).stat().st_mtime


def _write(file: Path, feature: Tensor) -> None:
    """Whole or not at all; bytes, since numpy has no bfloat16."""
    make_folder(file.parent)  # it may have been given up for another model's
    write_array(file, feature.detach().cpu().contiguous().view(torch.uint8).numpy())
