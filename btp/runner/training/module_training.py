"""The training class for a pruner's modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from btp.runner.training.train import Training
from btp.runner.training.vision import ForegroundTraining

CLASSIFIER = "btp.pruners.bavit.BAViT"


def module_training(config: Mapping[str, Any], *rest: Any) -> Training:
    """The training of the modules of a pruner, the last of `rest`, which are as those of `Training`."""
    method = rest[-1]["method"] or {}
    return (ForegroundTraining if method.get("_target_") == CLASSIFIER else Training)(config, *rest)
