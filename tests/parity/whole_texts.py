"""Recorded runs of whole text models: weights, prompts, the answer's tokens, its logits, and what was left where.

A case is found by its name, in any npz that lies here: `a2sf_online_C10_a03` (10 slots, decay 0.3), `h2o_C10`,
`paged_C16_B4` (16 slots, pages of 4), `lazy30` (rate 0.3). What it is made of is found by the end of the names, behind
`/` or `_`; weights may lie beside the cases. What the json says of a case (`heads`, `bounds`, `rate`) goes before what
its name says. A file that holds no case that is known, a case without its parts, and arrays that nobody reads fail by
their names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy
import torch

from btp.core.schedule import Schedule, Stage
from btp.models.text import TextLM
from btp.pruners.a2sf import A2SF
from btp.pruners.lazyllm import LazyLLM
from btp.pruners.pagedeviction import PagedEviction
from parity.decoder import tiny
from parity.plain_llama import HERE

CASE = re.compile(r"(?P<case>a2sf_online_C\d+_a\d+|h2o_C\d+|paged_C\d+_B\d+|lazy\d+)(?:[/_]|$)")
WEIGHT = re.compile(r"(?:^|[/_])((?:model\.)?(?:layers\.\d+\..+|embed_tokens.*|norm(?:\.weight)?|lm_head.*))$")
PARTS = {
    "ids": ("input_ids", "prompt_ids", "ids", "prompts", "prompt"),
    "mask": ("attention_mask", "mask"),
    "tokens": ("tokens", "generated", "answer", "sequences"),
    "logits": ("logits",),
    "left": ("positions", "positions_left", "slots", "left", "kept"),
    "rows": ("rows", "rows_per_step"),
}
NUMBERED = re.compile(r"(?:slots|positions|left|kept)\D*(\d+)$")  # of one layer
SAW = re.compile(r"(?:who_)?(?:saw|seen|sees)(?:_whom)?(?:\D*(\d+))?$")  # of all stages, or of one
BOUNDS = {"lazy30": (2, 4, 6), "lazy60": (2, 5)}  # in front of which layers; the rate is the name's


@dataclass
class WholeText:
    """One case. B prompts of S, T tokens of each answer, L layers.

    Attributes:
        name, facts: what it is called, and what the json says of it.
        weights: by name.
        ids, mask: [B, S], padded in front.
        tokens: [B, T].
        logits: [B, T, V].
        left: [L][B][Hkv] sorted positions held at the end; None where they were not recorded.
        rows: [T, stages, B] rows computed; None where they were not recorded.
        saw: [stages, B, n, n] bool, row i saw column j in the step that computed it; None likewise.
        unread: names of arrays that nothing above was made of.
    """

    name: str
    facts: dict
    weights: dict[str, torch.Tensor]
    ids: torch.Tensor
    mask: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor
    left: list | None
    rows: torch.Tensor | None
    saw: torch.Tensor | None
    unread: list[str]

    def host(self, attention):
        """The model."""
        q = next(w for name, w in self.weights.items() if "q_proj.weight" in name or name.endswith("q_proj"))
        family = "qwen2" if any("q_proj.bias" in name for name in self.weights) else "llama"
        heads = self.facts.get("heads", self.facts.get("num_attention_heads", 4))
        eps, base = self.facts.get("rms_norm_eps", 1e-6), self.facts.get("rope_theta", 10000.0)
        assert q.shape[0] % heads == 0
        return TextLM(tiny(self.weights, heads, eps, base, family, attention).model)

    def method(self):
        """The pruner and its schedule."""
        numbers = [int(n) for n in re.findall(r"\d+", self.name.removeprefix("a2sf").replace("h2o", ""))]
        if self.name.startswith("lazy"):
            rate = self.facts.get("rate", numbers[0] / 100)
            bounds = self.facts.get("bounds", BOUNDS.get(self.name))
            assert bounds, f"{self.name}: the json names no bounds"
            stages = (Stage(f"llm.layer.{at}", 1.0 - rate, phase="both", of="alive") for at in bounds)
            return LazyLLM(), Schedule(tuple(stages))
        if self.name.startswith("paged"):
            page = numbers[1]
            method = PagedEviction(score="v_over_k", heads="mean", page=page, candidates="all", protect=True)
        else:
            digits = self.name.rpartition("_a")[2]  # a03 is 0.3, a095 is 0.95
            decay = 1.0 if self.name.startswith("h2o") else self.facts.get("alpha", float(f"{digits[0]}.{digits[1:]}"))
            method = A2SF(decay=decay, history="always")
        return method, Schedule((Stage("llm.cache.*", numbers[0], phase="both"),))


def cases(folder=HERE):
    """(file, name) of every case that lies in a folder."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        with numpy.load(file) as arrays:
            names = {match["case"] for key in arrays.files if (match := CASE.match(key))}
        found += [(file, name) for name in sorted(names)]
    return found


def strangers(methods, folder=HERE):
    """What is wrong with files that are no method's: they hold no case of a whole text model that is known."""
    known = {file.name for file, _ in cases(folder)}
    files = [file.name for file in sorted(folder.glob("*.npz")) if file.stem not in methods and file.name not in known]
    return [
        f"{name} is read by no handler: it is no method's file, and none of its arrays begins with a case's name "
        f"({CASE.pattern}). Correct the names, or write a handler."
        for name in files
    ]


def read(file, name):
    """A case of `cases`."""
    with numpy.load(file) as arrays:
        every = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    beside = {key: x for key, x in every.items() if not CASE.match(key)}
    mine = {key[len(name) + 1 :]: x for key, x in every.items() if (m := CASE.match(key)) and m["case"] == name}
    weights = _weights(mine) or _weights(beside)
    names = {part: next((key for key in keys if key in mine), None) for part, keys in PARTS.items()}
    lacks = [part for part in ("ids", "tokens", "logits") if names[part] is None] + ["weights"] * (not weights)
    known = "; ".join(f"{part}: {', '.join(keys)}" for part, keys in PARTS.items())
    assert not lacks, (
        f"{file.name}: case {name} lacks {', '.join(lacks)}; it holds {', '.join(sorted(mine))}. Known names are "
        f"{known}, and those of a checkpoint's weights."
    )
    if "lm_head" not in "".join(weights):
        embed = next(x for key, x in weights.items() if "embed_tokens" in key)
        weights["lm_head.weight"] = embed
    found = {part: None if key is None else mine[key] for part, key in names.items()}
    read = {*names.values(), *_weights_of(mine), *(key for key in mine if NUMBERED.match(key) or SAW.match(key))}
    unread = sorted(mine.keys() - read)
    ids = found["ids"].long()
    mask = torch.ones_like(ids) if found["mask"] is None else found["mask"].long()
    B, S = ids.shape
    tokens = found["tokens"].long()
    tokens = tokens[:, S:] if tokens.shape[1] > S and torch.equal(tokens[:, :S], ids) else tokens
    logits = found["logits"].float()
    logits = logits if logits.shape[:2] == tokens.shape else logits.transpose(0, 1)
    facts = file.with_suffix(".json")
    said = json.loads(facts.read_text()) if facts.exists() else {}
    own = _said(said, name)
    left, saw = _left(mine, found, B), _saw(mine, B)
    return WholeText(name, own, weights, ids, mask, tokens, logits, left, found["rows"], saw, unread)


def _weights(arrays):
    return {WEIGHT.search(key)[1]: arrays[key] for key in _weights_of(arrays)}


def _weights_of(arrays):
    return [key for key in arrays if WEIGHT.search(key)]


def _saw(arrays, B):
    stages = sorted((int(match[1] or 0), x) for key, x in arrays.items() if (match := SAW.match(key)))
    if not stages:
        return None
    whole = stages[0][1] if len(stages) == 1 and stages[0][1].dim() == 4 else torch.stack([x for _, x in stages])
    return (whole if whole.shape[1] == B else whole.transpose(0, 1)).bool()


def _said(facts, name):
    entries = facts.get("cases", {})
    listed = {e["case"]: e for e in entries if "case" in e} if isinstance(entries, list) else entries
    own = listed.get(name, {})
    return {**facts.get("model", {}), **(own if isinstance(own, dict) else {})}


def _left(arrays, found, B):
    layers = sorted((int(match[1]), x) for key, x in arrays.items() if (match := NUMBERED.match(key)))
    if found["left"] is None and not layers:
        return None
    whole = torch.stack([x for _, x in layers]) if layers else found["left"]
    whole = whole if whole.shape[1] == B else whole.transpose(0, 1)  # [L, B, Hkv, n]
    return [[[sorted(p for p in head if p >= 0) for head in row] for row in layer] for layer in whole.tolist()]
