"""Checks of each run of a comparison: problems to know before believing it."""

from btp.report.text.executed_stages import fired
from btp.report.text.floor_effect import floor
from btp.report.text.run_text import Remark, foreign_set
from btp.results.reader import RunFolder


def checks(run: RunFolder) -> list[Remark]:
    """A model that answers nothing, pictures of another set, inertness, stages that withdrew nothing or that the budget
    moved; worst first.
    """
    found = [*_floor(run), *_calibrated(run), *_inert(run), *_idle(run), *_moved(run)]
    rank = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda remark: rank[remark.kind])


def moved(layers: int) -> str:
    """By how many layers stages went towards the input, in words."""
    return f"{layers} layer{'' if layers == 1 else 's'}"


def _floor(run: RunFolder) -> list[Remark]:
    return [Remark("bad", "the unpruned model answers nothing: look at prompt and processor")] if floor(run) else []


def _calibrated(run: RunFolder) -> list[Remark]:
    name = (run.run.get("calibration") or {}).get("name")
    return [Remark("note", f"calibrated on {name}, not on the task's own pictures")] if foreign_set(run) else []


def _inert(run: RunFolder) -> list[Remark]:
    inert = run.run.get("inert")
    if not inert:
        return [Remark("note", "inertness not checked")] if len(run.samples) else []
    if inert.get("identical"):
        return [Remark("good", f"inert on {inert.get('checked', '?')} samples")]
    return [Remark("bad", f"not inert: logits differ by up to {inert.get('max_logit_difference', '?')}")]


def _idle(run: RunFolder) -> list[Remark]:
    if not len(run.samples):
        return []
    return [
        Remark("bad", f"{stage['site']} of {stage['title']} withdrew nothing")
        for stage in fired(run)
        if not stage["fired"]
    ]


def _moved(run: RunFolder) -> list[Remark]:
    return [
        Remark("note", f"stages of {arm.title} moved {moved(int(arm.budget['moved']))} towards the input")
        for arm in run.arms
        if arm.budget.get("moved")
    ]
