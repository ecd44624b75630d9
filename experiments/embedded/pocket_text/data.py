"""Training samples of pocket_text: one text and several questions packed behind it, or a random string to copy from."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from btp.tasks.pocketdocs.questions import ABILITIES, QA, ask
from btp.tasks.pocketdocs.text import MOST, Sentence, draw_text
from btp.tasks.pocketdocs.vocabulary import CATEGORIES

SOLD = "sold"  # asked in training alone: the second step of a question over two sentences
KINDS = (*ABILITIES, "copy", SOLD)
DOCUMENTS = 16  # classes of the head that names documents
TIMES = MOST + 1  # and of the one that counts documents from a city
NOTHING = -100
TOLD = ("key", "kin", "home", "times")  # what heads tell at the tokens of the text
KIND_OF = {word: kind[0] for kind in CATEGORIES.values() for word in kind}  # a kind is named by its first word
OF_ONE_THING = ("lookup", "hop", "latest", "count", "few_shot", SOLD)  # those whose answer is told of one thing


class Encoder:
    """Token ids of words; the same as the tokenizer's, without building strings."""

    def __init__(self, vocabulary: Mapping[str, int]):
        self.ids = dict(vocabulary)
        self.end = self.ids["</s>"]
        self.start = self.words(["<s>", "USER", ":"])
        self.answer = self.words(["ASSISTANT", ":"])
        special = {"<pad>", "<s>", "</s>", "<unk>"}
        self.plain = np.array(sorted(i for word, i in self.ids.items() if word not in special))

    def words(self, words: Sequence[str]) -> list[int]:
        """A number is one token a digit."""
        return [self.ids[c] for word in words for c in (word if word.isdigit() else (word,))]


def draw_docs(
    rng: np.random.Generator, encode: Encoder, length: int, questions: int, weights: Mapping[str, float]
) -> dict:
    """A freshly drawn text of the train split with different questions about it.

    Args:
        rng: Source of everything drawn.
        encode: Words to token ids.
        length: Tokens of the text.
        questions: How many questions, at most.
        weights: How often each ability is asked.
    """
    odds = np.array(list(weights.values()), float)
    drawn = [list(weights)[i] for i in rng.choice(len(weights), 2 * questions, p=odds / odds.sum())]
    text = draw_text(rng, "train", length, "sells" if drawn[0] == SOLD else ABILITIES[drawn[0]][0])
    parts: dict[str, tuple] = {}
    for ability in drawn:
        if len(parts) < questions and (asked := _ask(ability, text, rng)):
            question, answer, evidence = asked
            tail = encode.words(["question", ":", *question.split()]) + encode.answer
            hint = NOTHING
            if ability in OF_ONE_THING:
                key = evidence[-1].value if ability == "count" else evidence[-1].key
                hint = encode.ids[KIND_OF.get(key, key)]
            parts.setdefault(question, (KINDS.index(ability), tail, encode.words(answer.split()) + [encode.end], hint))
    return {"parts": list(parts.values())} | _prefix(text, encode)


def _ask(ability: str, text: list[Sentence], rng: np.random.Generator) -> QA | None:
    if ability != SOLD:
        return ask(ability, text, rng)
    sold = [s for s in text if s.kind == "sells"]
    if not sold:
        return None
    one = sold[rng.integers(len(sold))]
    return f"what is sold in {one.key} ?", one.value, (one,)


def _prefix(text: list[Sentence], encode: Encoder) -> dict:
    """Token ids of the text; at the tokens of a value, what it belongs to, of which kind that is, in which document it
    stands, and how many documents so far are from it.
    """
    ids = list(encode.start)
    keys, kinds, homes, times = ([NOTHING] * len(ids) for _ in range(4))
    met: Counter[str] = Counter()
    for sentence in text:
        bound = sentence.kind not in ("filler", "poem")
        place = 5 if sentence.kind == "header" else len(sentence.words) - 2
        for number, word in enumerate(sentence.words):
            tokens = encode.words([word])
            ids += tokens
            value = bound and number == place
            keys += [encode.ids[sentence.key] if value else NOTHING] * len(tokens)
            named = sentence.kind == "header" and number in (3, 5)
            homes += [sentence.document if named else NOTHING] * len(tokens)
            kind = encode.ids[KIND_OF[sentence.key]] if value and sentence.kind == "gives" else NOTHING
            kinds += [kind] * len(tokens)
            counted = value and sentence.kind == "header"
            met.update([word] if counted else [])
            times += [met[word] if counted else NOTHING] * len(tokens)
    return {"prefix": ids, "key": keys, "kin": kinds, "home": homes, "times": times}


def draw_copy(rng: np.random.Generator, encode: Encoder, longest: int, parts: int, more: int = 8) -> dict:
    """A random string; each part shows two tokens that follow each other in it and asks for those behind them."""
    string = rng.choice(encode.plain, int(rng.integers(6, longest + 1)))
    ids = encode.start + string.tolist()
    found = []
    for _ in range(parts):
        start = int(rng.integers(len(string) - 2))
        piece = string[start : start + 2 + more].tolist()
        found.append((KINDS.index("copy"), piece[:2], piece[2:], NOTHING))
    return {"prefix": ids, "parts": found} | {name: [NOTHING] * len(ids) for name in TOLD}


def collate(samples: list[dict], tail: int = 1) -> dict[str, Tensor]:
    """Texts of a batch, padded behind, and their questions.

    Args:
        samples: What `draw_docs` and `draw_copy` return.
        tail: Last tokens of a question that are told whose value its answer is.

    Returns:
        `prefix`, those of TOLD [B, P] and `length` [B] of the texts; `ids`, `segment` (from 1; 0 is padding),
        `position` (which goes on behind the text), `target` and, at a question's tail and its answer, `hint`, whose
        value that is (-100 where nothing is asked) [B, T]; `kind` [B, Q], what each segment asks for, -1 where there is
        none.
    """
    rows = len(samples)
    length = torch.tensor([len(s["prefix"]) for s in samples])
    shared = -(-int(length.max()) // 8) * 8
    width = -(-max(sum(len(q) + len(a) for _, q, a, _ in s["parts"]) for s in samples) // 8) * 8
    prefix = torch.zeros(rows, shared, dtype=torch.long)
    told = {name: torch.full((rows, shared), NOTHING) for name in TOLD}
    ids, segment, position = (torch.zeros(rows, width, dtype=torch.long) for _ in range(3))
    target, hint = (torch.full((rows, width), NOTHING) for _ in range(2))
    kind = torch.full((rows, max(len(s["parts"]) for s in samples)), -1)
    for row, sample in enumerate(samples):
        for name, tensor in {"prefix": prefix, **told}.items():
            tensor[row, : length[row]] = torch.tensor(sample[name])
        start = 0
        for number, (what, q, a, of) in enumerate(sample["parts"]):
            end = start + len(q) + len(a)
            ids[row, start:end], segment[row, start:end] = torch.tensor(q + a), number + 1
            position[row, start:end] = torch.arange(end - start) + length[row]
            target[row, start + len(q) - 1 : end - 1] = torch.tensor(a)
            hint[row, start + len(q) - tail : end - 1] = of
            kind[row, number] = what
            start = end
    return {
        "prefix": prefix,
        **told,
        "length": length,
        "ids": ids,
        "segment": segment,
        "position": position,
        "target": target,
        "hint": hint,
        "kind": kind,
    }
