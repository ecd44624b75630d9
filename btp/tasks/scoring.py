"""Text metrics that several tasks share."""

import re
import unicodedata
from collections import Counter

THOUGHT = "</think>"  # behind it stands the answer
_BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\})*)|<answer>\s*([^<]*)", re.IGNORECASE)
_MARKUP = (  # (what is written, what is meant); the end of an answer may be cut off by its length
    (re.compile(r"<(?:br|p)\b[^<>]*>", re.IGNORECASE), "\n"),
    (re.compile(r"</?(?:b|i|u|p|em|strong|code|span|mark)\b[^<>]*>", re.IGNORECASE), ""),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}?"), r"\1"),
    (re.compile(r"(?<!\w)(\*\*|__)(?=\S)(.+?)(?:\1|$)", re.MULTILINE), r"\2"),
    (re.compile(r"(?<![\w*])([*`_])([^\s*`_](?:[^*`_\n]*[^\s*`_])?)\1(?![\w*])"), r"\2"),
    (re.compile(r"\$([^$\n]+)\$(?!\d)"), r"\1"),
    (re.compile(r"^\s*#+\s+", re.MULTILINE), ""),
)
_PREFIX = re.compile(r"^(?:(?:final|the|my|correct)\s+)*answer\s*(?::|=|is\s*:)\s*", re.IGNORECASE)


def normalise(text: str) -> str:
    """Lower case, single blanks, no blank between digits, no full stop at the end."""
    text = re.sub(r"\s+", " ", text.strip().lower()).rstrip(" .")
    return re.sub(r"(?<=\d) (?=\d)", "", text)


def bare(text: str) -> str:
    r"""An answer without the markup that a model puts around it.

    What stands behind the thinking; of that the last `\boxed{}` or <answer>, where there is one; without bold, code,
    TeX, HTML and headings. Words are left alone.
    """
    text = unicodedata.normalize("NFKC", text).rpartition(THOUGHT)[2]
    boxed = [one or other for one, other in _BOX.findall(text)]
    text = boxed[-1] if boxed and boxed[-1].strip() else text
    for written, meant in _MARKUP:
        text = written.sub(meant, text)
    return text.strip()


def plain_answer(text: str) -> str:
    """A short answer without markup and without `Answer:` in front of it."""
    return _PREFIX.sub("", bare(text))


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where both say the same behind `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def list_f1(prediction: str, reference: str) -> float:
    """F1 of the comma-separated items of two lists, each item counted as often as it is named."""
    said, true = (Counter(part.strip() for part in normalise(t).split(",")) for t in (prediction, reference))
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total())
