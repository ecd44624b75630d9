"""Label mapping: the task's class of each of a model's outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from btp.tasks.shown import short

_NUMBERED = re.compile(r"LABEL_\d+")


def names_of(labels: Mapping[int, str], task: Any) -> dict[int, str]:
    """The task's name for each output of a model.

    By name where the model knows all of the task's classes by name; otherwise in order, where there are as many, or
    where the classes are but numbers.

    Args:
        labels: the model's names by number (id2label of its config.json).
        task: Task with `classes`, in order.

    Raises:
        ValueError: the two know other classes.
    """
    classes = list(task.classes)
    if set(classes) <= set(labels.values()):
        return dict(labels)
    numbered = classes == [str(i) for i in range(len(classes))]  # a list of clips may not come to the last number
    if len(classes) == len(labels) or (numbered and len(classes) < len(labels)):
        return {i: classes[place] if place < len(classes) else str(place) for place, i in enumerate(sorted(labels))}
    unknown = next(name for name in classes if name not in labels.values())
    raise ValueError(
        f"task={task.name} has {len(classes)} classes, but the model tells {len(labels)} apart and knows no "
        f"{short(unknown, 40)!r} among them (id2label of its config.json). Set task.dataset.classes to the names of "
        "all its classes, in their order, or choose another model."
    )


def categories_of(labels: Mapping[int, str], task: Any) -> dict[int, str]:
    """The task's name for each output of a detector that means one of the task's objects; others are left out.

    By name, whatever the case; by order where the model's names are only numbered.

    Raises:
        ValueError: the model knows none of the task's objects.
    """
    names = list(task.names)
    if all(_NUMBERED.fullmatch(name) for name in labels.values()):
        return dict(zip(sorted(labels), names, strict=False))
    aliases = {other.lower(): own for own in names for other in (own, *task.aliases.get(own, ()))}
    found = {i: aliases[name.lower()] for i, name in labels.items() if name.lower() in aliases}
    if not found:
        raise ValueError(
            f"task={task.name} asks for {short(', '.join(names), 80)}, but the model finds none of them: it knows "
            f"{short(', '.join(labels.values()), 80)} (id2label of its config.json). Choose another model, or rename "
            "them there."
        )
    return found
