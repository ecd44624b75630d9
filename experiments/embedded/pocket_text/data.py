"""Training samples of pocket_text: one text and several questions packed behind it, or a random string to copy from."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from btp.tasks.pocketdocs.questions import ABILITIES, ask
from btp.tasks.pocketdocs.text import Sentence, draw_text

KINDS = (*ABILITIES, "copy")
DOCUMENTS = 16  # classes of the head that names documents
NOTHING = -100


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
    odds = np.array([weights[a] for a in ABILITIES], float)
    drawn = [list(ABILITIES)[i] for i in rng.choice(len(ABILITIES), 2 * questions, p=odds / odds.sum())]
    text = draw_text(rng, "train", length, ABILITIES[drawn[0]][0])
    parts: dict[str, tuple] = {}
    for ability in drawn:
        if len(parts) < questions and (asked := ask(ability, text, rng)):
            question, answer, _ = asked
            tail = encode.words(["question", ":", *question.split()]) + encode.answer
            parts.setdefault(question, (KINDS.index(ability), tail, encode.words(answer.split()) + [encode.end]))
    return {"parts": list(parts.values())} | _prefix(text, encode)


def _prefix(text: list[Sentence], encode: Encoder) -> dict:
    """Token ids of the text; at the tokens of a value, what it belongs to and in which document it stands."""
    ids = list(encode.start)
    keys, homes = [NOTHING] * len(ids), [NOTHING] * len(ids)
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
    return {"prefix": ids, "key": keys, "home": homes}


def draw_copy(rng: np.random.Generator, encode: Encoder, longest: int, parts: int, more: int = 8) -> dict:
    """A random string; each part shows two tokens that follow each other in it and asks for those behind them."""
    string = rng.choice(encode.plain, int(rng.integers(6, longest + 1)))
    ids = encode.start + string.tolist()
    found = []
    for _ in range(parts):
        start = int(rng.integers(len(string) - 2))
        piece = string[start : start + 2 + more].tolist()
        found.append((KINDS.index("copy"), piece[:2], piece[2:]))
    return {"prefix": ids, "key": [NOTHING] * len(ids), "home": [NOTHING] * len(ids), "parts": found}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Texts of a batch, padded behind, and their questions.

    Returns:
        `prefix`, `key`, `home` [B, P] and `length` [B] of the texts; `ids`, `segment` (from 1; 0 is padding),
        `position` (which goes on behind the text) and `target` (-100 where nothing is asked) [B, T]; `kind` [B, Q],
        what each segment asks for, -1 where there is none.
    """
    rows = len(samples)
    length = torch.tensor([len(s["prefix"]) for s in samples])
    shared = -(-int(length.max()) // 8) * 8
    width = -(-max(sum(len(q) + len(a) for _, q, a in s["parts"]) for s in samples) // 8) * 8
    prefix = torch.zeros(rows, shared, dtype=torch.long)
    key, home = (torch.full((rows, shared), NOTHING) for _ in range(2))
    ids, segment, position = (torch.zeros(rows, width, dtype=torch.long) for _ in range(3))
    target = torch.full((rows, width), NOTHING)
    kind = torch.full((rows, max(len(s["parts"]) for s in samples)), -1)
    for row, sample in enumerate(samples):
        for tensor, name in ((prefix, "prefix"), (key, "key"), (home, "home")):
            tensor[row, : length[row]] = torch.tensor(sample[name])
        start = 0
        for number, (what, q, a) in enumerate(sample["parts"]):
            end = start + len(q) + len(a)
            ids[row, start:end], segment[row, start:end] = torch.tensor(q + a), number + 1
            position[row, start:end] = torch.arange(end - start) + length[row]
            target[row, start + len(q) - 1 : end - 1] = torch.tensor(a)
            kind[row, number] = what
            start = end
    return {
        "prefix": prefix,
        "key": key,
        "home": home,
        "length": length,
        "ids": ids,
        "segment": segment,
        "position": position,
        "target": target,
        "kind": kind,
    }
