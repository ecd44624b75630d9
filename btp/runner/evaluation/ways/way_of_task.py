"""The way in which a task is answered."""

from __future__ import annotations

from btp.core.check_settings import check_one_of
from btp.runner.evaluation.task_protocol import OwnWay
from btp.runner.evaluation.ways.classify import Classify
from btp.runner.evaluation.ways.detect import Detect
from btp.runner.evaluation.ways.generate import Foreign, Generate
from btp.runner.evaluation.ways.way import GENERATE, Way
from btp.tasks.sample import Task

WAYS = {way.name: way for way in (Generate, Classify, Detect)}


def way_of(task: Task) -> Way:
    """What a task declares as its `way`; text where it declares nothing.

    Raises:
        ValueError: there is no such way.
    """
    if isinstance(task, OwnWay):
        return Foreign(task)
    name = getattr(task, "way", GENERATE)
    check_one_of(f"{type(task).__name__}.way", name, WAYS)
    return WAYS[name](task)
