"""Multiple choice: which option a free answer names, by its letter or by its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from string import ascii_uppercase

from btp.tasks.scoring import bare, normalise

CUE = 160  # letters in front of a letter that may say what it is
# What cannot follow an article: in front of one of these, "A" is a letter.
_AFTER_LETTER = frozenset(
    (
        *("is", "isn't", "was", "are", "would", "must", "should", "can", "has", "does", "not", "if", "so"),
        *("seems", "appears", "looks", "fits", "matches", "shows", "that", "which", "because", "since", "as"),
        *("and", "or", "but", "for", "in", "on", "at", "to", "of", "by", "with", "from", "due", "based", "given"),
    )
)
_SAYS = r"(?:is|are|was|be|being|must be|should be|would be|will be|seems|appears to be)"
_NAMED = r"(?:option|choice|letter|answer|answer choice|alternative)"
_CUES = re.compile(  # directly in front of a letter that is declared to be the answer
    rf"(?:\b(?:answer|option|choice|letter|solution|alternative)s?\b(?:[^.!?\n]{{0,80}}?\b{_SAYS}\b)?"
    r"\s*[:=]*\s*(?:[-–]\s+)?(?:(?:most\s+)?[a-z]+ly\s+)?"
    rf"|\b(?:it|this|that)(?:\s+{_SAYS}|'s)\s+"
    r"|\b(?:choose|chose|select|pick|go with|going with|say|answer with)\s+"
    r"|答案(?:是|为)?\s*[:是]?\s*|选(?:择|项)?\s*)"
    rf"(?:(?:the\s+)?{_NAMED}\s*:?\s*)?$",
    re.IGNORECASE,
)
_MENTION = re.compile(rf"(?:(?:\bthe\s+)?\b{_NAMED}\s*)$", re.IGNORECASE)  # only names an option: "option B"
_VERDICT = re.compile(
    rf"\s*,?\s*{_SAYS}\s+(?:(?:clearly|definitely|likely|probably|most likely)\s+)?(?:the\s+)?(?:most\s+)?"
    r"(?:correct|right|best|answer|accurate|appropriate|true)",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    rf"(?:\b(?:not|neither|nor|never|unlike|except|rather than|instead of|cannot be)|n't)(?:\s+be)?\s+"
    rf"(?:(?:an?|the)\s+)?(?:{_NAMED}\s+)?$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\s*,?\s*(?:(?:is|are|was|does|do|can|could|would|seems)\s*(?:n't|not)|cannot"
    r"|(?:is|are|was|seems|looks)\s+(?:\w+ly\s+|also\s+)?(?:wrong|incorrect|false|impossible|excluded|ruled out))",
    re.IGNORECASE,
)
_JOINED = re.compile(
    rf"\s*(?:,|/|&|\+|\||,?\s*and/or|,?\s*and|,?\s*or|,?\s*to)?\s*(?:(?:the\s+)?{_NAMED}\s*)?", re.IGNORECASE
)
_LABEL = re.compile(r"\s*(?:[.:)\]]|[-–—]\s|,|$)")
_REASON = re.compile(r"\s+(?:because|since|as|is|was|seems|fits|matches|shows)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """A letter that stands for an option.

    Attributes:
        letter: Letter in upper case.
        before, after: the text on both sides of it and of its brackets.
        bracketed: it stands in brackets.
        start, end: Place of its first sign and behind its last, brackets included.
    """

    letter: str
    before: str
    after: str
    bracketed: bool
    start: int
    end: int

    @property
    def alone(self) -> bool:
        """Nothing else is on its line but punctuation."""
        line = self.before.rpartition("\n")[2] + self.after.partition("\n")[0]
        return not re.search(r"\w", line)

    @property
    def declared(self) -> bool:
        """It is said to be the answer."""
        cue = _CUES.search(self.before[-CUE:])
        said = cue is not None and not _MENTION.fullmatch(cue[0].strip() + " ")
        return said or _VERDICT.match(self.after) is not None

    @property
    def denied(self) -> bool:
        """It is said not to be the answer."""
        return bool(_DENIED_BEFORE.search(self.before[-CUE:]) or _DENIED_AFTER.match(self.after))


class Answer:
    """One answer to a question with options.

    Args:
        text: without markup.
        choices: texts of the options.
    """

    def __init__(self, text: str, choices: Sequence[str]):
        self.text = re.sub(r"(?<=\d) (?=\d)", "", text)
        self.letters = ascii_uppercase[: len(choices)]
        self.options = [normalise(bare(choice)) for choice in choices]

    def letter(self) -> str | None:
        """The option that it names, None where it names none or several."""
        whole = normalise(self.text)
        if whole.upper() not in self.letters and self.options.count(whole) == 1:
            return self.letters[self.options.index(whole)]
        declared = [m for m in self.mentions if m.declared]
        if declared:
            return None if self._open(declared[-1]) else declared[-1].letter
        for found in (self._alone(), self._leading(), self._named(), self._last()):
            if found:
                return found if len(found) == 1 else None
        return self._by_text() or self._only()

    @cached_property
    def mentions(self) -> list[Mention]:
        """Letters of options: no articles, none inside an option's text, none that is ruled out."""
        inside = [span for option, span in self.quoted if len(option) > 1]
        found = []
        for match in _letter_pattern(self.letters).finditer(self.text):
            bracketed = match[1] is not None
            letter = match[1] or match[2]
            if not bracketed and not _stands_for_option(letter, self.text[match.end() :]):
                continue
            if any(start <= match.start() and match.end() <= end for start, end in inside):
                continue
            before, after = self.text[: match.start()], self.text[match.end() :]
            found.append(Mention(letter.upper(), before, after, bracketed, match.start(), match.end()))
        return [mention for mention in found if not mention.denied]

    @cached_property
    def quoted(self) -> list[tuple[str, tuple[int, int]]]:
        """Options whose text stands in the answer, and where; none that is ruled out."""
        found = []
        for option in dict.fromkeys(self.options):
            words = r"\s+".join(map(re.escape, option.split()))
            for match in (
                re.finditer(rf"(?<!\w)(?<!\d[.,]){words}(?!\w|[.,]\d)", self.text, re.IGNORECASE) if words else ()
            ):
                if not _DENIED_BEFORE.search(self.text[max(0, match.start() - CUE) : match.start()]):
                    found.append((option, match.span()))
        return found

    def _open(self, mention: Mention) -> bool:
        """Another option stands beside it as well: `A or B`."""
        return any(
            other.letter != mention.letter
            and _JOINED.fullmatch(self.text[min(mention.end, other.end) : max(mention.start, other.start)])
            for other in self.mentions
        )

    def _alone(self) -> str:
        return _distinct(m for m in self.mentions if m.alone)

    def _leading(self) -> str:
        """The letter that opens the answer; all where it begins with a list of options."""
        opening = [m for m in self.mentions if not re.search(r"\w", m.before.rpartition("\n")[2])]
        opening = [m for m in opening if _LABEL.match(m.after) or m.bracketed]
        first = next((m for m in self.mentions if not re.search(r"\w", m.before)), None)
        if first is None:
            return ""
        repeated = _distinct(m for m in self.mentions if self._own_text(m))
        if len(_distinct(opening)) > 1 or self._open(first) or len(repeated) == len(self.letters):
            return self.letters
        says = first.bracketed or _LABEL.match(first.after) or _REASON.match(first.after) or self._own_text(first)
        return first.letter if says else ""

    def _own_text(self, mention: Mention) -> bool:
        """The option's text stands behind its letter."""
        own = self.options[self.letters.index(mention.letter)]
        return bool(own) and normalise(re.sub(r"^[\W_]+", "", mention.after)).startswith(own)

    def _named(self) -> str:
        """`option B`, or a letter in brackets."""
        return _distinct(m for m in self.mentions if m.bracketed or _MENTION.search(m.before))

    def _last(self) -> str:
        ends = [m for m in self.mentions if not re.search(r"\w", m.after)]
        return self.letters if ends and self._open(ends[-1]) else _distinct(ends)

    def _by_text(self) -> str | None:
        """The longest option whose text stands in the answer."""
        inside = list(dict.fromkeys(option for option, _ in self.quoted))
        longest = [c for c in inside if not any(c != other and c in other for other in inside)]
        one = len(longest) == 1 and self.options.count(longest[0]) == 1
        return self.letters[self.options.index(longest[0])] if one else None

    def _only(self) -> str | None:
        """The only letter in an answer that quotes no option."""
        found = _distinct(self.mentions)
        return found if len(found) == 1 and not self.quoted else None


def chosen(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: the whole answer is an option's text; a letter that is said to be the answer, the last of these; a
    letter on a line of its own; a letter that opens the answer; `option B` or a letter in brackets; a letter that ends
    the answer; the longest option whose text stands in it; the only letter in it. "A" in front of a noun is an article,
    letters in lower case count where no word follows, and `not B` or `B is wrong` does not name B.
    """
    return Answer(bare(prediction), choices).letter()


@lru_cache(maxsize=32)
def _letter_pattern(letters: str) -> re.Pattern[str]:
    """A letter in brackets (group 1), or one that is no part of a word (group 2), in its quotation marks."""
    both = letters + letters.lower()
    word = r"A-Za-zÀ-ɏ0-9_"
    free = rf"(?<![{word}])(?<![{word}][-'’./])[\"“'‘]?([{both}])(?![{word}]|['’./\-][{word}])[\"”'’]?"
    return re.compile(rf"[(\[]\s*([{both}])\s*[)\]]|{free}")


def _stands_for_option(letter: str, after: str) -> bool:
    """False of an article, of the pronoun I, and of a letter in lower case in front of a word."""
    word = re.match(r"[ \t]+([^\W\d_]+(?:'[^\W\d_]+)?)", after)
    return word is None or word[1].lower() in _AFTER_LETTER or (letter.isupper() and letter not in "AI")


def _distinct(mentions: Iterable[Mention]) -> str:
    """Their letters, each once."""
    return "".join(dict.fromkeys(mention.letter for mention in mentions))
