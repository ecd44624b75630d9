"""Config diff: settings in which the runs of a comparison differ."""

from collections.abc import Sequence
from typing import Any

from btp.report.comparison.series_names import command_words, flat
from btp.results.reader import RunFolder

_UNSET = "–"
_MOST = 48  # characters of a value that the page shows at once
_ELSEWHERE = ("output", "logger.", "trainer.devices", "hydra.", "command")  # where a run goes, not what it does
_OFFERED = "pruner.published."  # what schedule=paper would take; what is taken stands in the schedule


def differences(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The dotted keys of the configs whose values are not the same in every run: first what the commands differ in, in
    their order, then the others in the order of the configs. What a pruner offers as published is no setting.

    Returns:
        Per key: key, and values (per run: text, and whole where text is cut, else "").
    """
    settings = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    words = [command_words(run) for run in runs]
    said = [word for word in dict.fromkeys(word for one in words for word in one) if _vary(words, word)]
    asked = [key for word in said for key in keys if key == word or _of_group(key, word)]
    out = []
    for key in dict.fromkeys([*asked, *keys]):
        values = [_said(one[key]) if key in one else _UNSET for one in settings]
        if len(set(values)) > 1 and not key.startswith((*_ELSEWHERE, _OFFERED)):
            out.append({"key": key, "values": [{"text": _cut(v), "whole": v if _cut(v) != v else ""} for v in values]})
    return out


def _vary(words: Sequence[dict[str, str]], word: str) -> bool:
    return len({one.get(word) for one in words}) > 1


def _of_group(key: str, word: str) -> bool:
    """Whether a key names the choice that a word makes: pruner.name of pruner=fastv."""
    return key in (f"{word}.name", f"{word}.kind")


def _said(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
