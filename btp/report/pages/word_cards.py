"""Kept-word cards: words of some prompts, shaded by what each layer's cache still holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from btp.report.drawing_errors import Spared
from btp.report.pages.sample_cards import explain_commands
from btp.results.reader import RunFolder

MOST = 4  # samples on the page


def word_cards(run: RunFolder, spared: Spared) -> list[dict[str, Any]]:
    """Per sample: id, ability, reference, left_out, explain (the command that says more of it, "" where no arm has a
    stage), and per arm: arm, title, answer, mark, layers (layer, held: the share of its words, runs: see `shaded`).
    """
    titles, explain = {arm.arm: arm.title for arm in run.arms}, explain_commands(run)
    found = []
    for sample, entry in list(run.words.items())[:MOST]:
        with spared.part(f"the words of sample {sample}"):
            asked = run.samples[run.samples["sample"] == sample].set_index("arm")
            arms = [
                _arm(arm, titles[arm], asked.loc[arm], layers, entry)
                for arm, layers in entry["arms"].items()
                if arm in asked.index and layers
            ]
            first = asked.iloc[0]
            found.append(
                {
                    "id": sample,
                    "ability": str(first["ability"]),
                    "reference": str(first["reference"]),
                    "left_out": entry["left_out"],
                    "explain": explain.get(sample, ""),
                    "arms": arms,
                }
            )
    return [card for card in found if card["arms"]]


def _arm(arm: str, title: str, row: Any, layers: Mapping[str, Sequence[int]], entry: Mapping[str, Any]) -> dict:
    score = float(row["score"])
    return {
        "arm": arm,
        "title": title,
        "answer": str(row["prediction"]),
        "mark": "right" if score == 1 else "wrong" if score == 0 else "partly",
        "layers": [
            {"layer": at, "held": sum(shares) / max(len(shares), 1), "runs": shaded(entry["words"], shares)}
            for at, shares in layers.items()
        ],
    }


def shaded(words: Sequence[str], shares: Sequence[int]) -> list[dict[str, Any]]:
    """Neighbouring words of one shade together: text, and share of the heads that hold it in percent."""
    pairs = groupby(zip(words, shares, strict=True), key=lambda pair: pair[1])
    return [{"text": "".join(word for word, _ in run), "share": share} for share, run in pairs]
