"""In which settings the runs of a comparison differ."""

from collections.abc import Sequence
from typing import Any

from btp.report.load import RunFolder
from btp.report.variants import flat

_UNSET = "–"
_MOST = 48  # characters of a value that the page shows at once
_ELSEWHERE = ("output", "logger.", "trainer.devices", "hydra.")  # where a run goes, not what it does


def differences(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The dotted keys of the configs whose values are not the same in every run, in the order of the configs.

    Returns:
        Per key: key, and values (per run: text, and whole where text is cut, else "").
    """
    settings = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    out = []
    for key in keys:
        said = [_said(one[key]) if key in one else _UNSET for one in settings]
        if len(set(said)) > 1 and not key.startswith(_ELSEWHERE):
            out.append({"key": key, "values": [{"text": _cut(v), "whole": v if _cut(v) != v else ""} for v in said]})
    return out


def _said(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
