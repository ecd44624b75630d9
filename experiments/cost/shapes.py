"""Real architectures scaled to a processor, by name: which yaml of conf/model they are of, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SHAPES = Path(__file__).with_name("shapes.yaml")


def shapes() -> dict[str, Any]:
    """All of shapes.yaml."""
    found: dict[str, Any] = yaml.safe_load(SHAPES.read_text(encoding="utf-8"))
    return found


def words_of(model: str) -> list[str]:
    """What a run's command line would say for a model of conf/model, or for a shape by its name."""
    shape = shapes().get(model)
    return [f"model={model}"] if shape is None else [f"model={shape['model']}", *shape["words"]]


def published_words(pruner: dict[str, Any], model: str) -> list[str]:
    """The words for a pruner's published schedule on a model; none where it has none.

    A schedule for the model itself goes first, then LLaVA-1.5's, then the first that there is; the layers of another
    model's keep their share of the depth, and its numbers of tokens theirs of all.

    Args:
        pruner: the config's group.
        model: the name in its yaml.
    """
    published = pruner.get("published") or {}
    if not published:
        return []
    of = next((name for name in (model, "llava15") if name in published), next(iter(published)))
    return ["schedule=paper", f"schedule.model={of}"]
