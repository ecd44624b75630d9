"""Floor effect: an unpruned model with hardly any right answer, on which nothing is learnt about pruning."""

from collections.abc import Sequence

from btp.results.reader import RunFolder

NEXT_TO_NOTHING = 0.02  # share of right answers below which a comparison tells nothing
_LONGEST = 160  # characters of a prompt, a prediction or a reference


def nothing_right(scores: Sequence[float]) -> str:
    """What to say of the unpruned model's scores where hardly any answer is right; "" where enough are.

    Args:
        scores: Scores in [0, 1], of all samples.
    """
    if not len(scores) or sum(scores) / len(scores) >= NEXT_TO_NOTHING:
        return ""
    right = sum(score > 0 for score in scores)
    count = f"{right} of {len(scores)} samples score above 0"
    if not right:
        return f"The unpruned model answers nothing right ({count}): look at prompt and processor."
    return f"The unpruned model answers next to nothing right ({count}): look at prompt and processor."


def example(sample: str, prompt: str | None, prediction: str, reference: str) -> str:
    """One sample in a sentence: what was asked, what came, what is right; each cut where nobody would read on."""
    asked = f"prompt {_quoted(prompt)}, " if prompt else ""
    return f"For example, sample {sample}: {asked}prediction {_quoted(prediction)}, reference {_quoted(reference)}."


def floor(run: RunFolder) -> str:
    """As `nothing_right`, of a run's unpruned answers, with one of them; "" where enough are right."""
    rows = run.rows(run.baseline.arm) if run.baseline else run.samples[:0]
    said = nothing_right(rows["score"].tolist())
    if not said:
        return ""
    shown = run.run.get("prompt") or {}
    name = shown.get("sample") if shown.get("sample") in rows.index else rows.index[0]
    row = rows.loc[name]
    prompt = shown["text"] if shown.get("sample") == name else row["question"]
    return f"{said} {example(name, prompt, row['prediction'], row['reference'])}"


def _quoted(text: str) -> str:
    plain = " ".join(str(text).split())
    return f'"{plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"}"'
