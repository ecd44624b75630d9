"""Losses of pocket_text: the answers to questions that share one text, and what throw-away heads tell of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import experiments.embedded.packed  # noqa: F401  (registers the attention)
from experiments.embedded.pocket_text.data import DOCUMENTS, KINDS, NOTHING, SOLD, TIMES, TOLD

DEPTH = 4  # layers in front of the throw-away heads that look at the text
DEEPER = 6  # and of the one that looks at the answers


class BindingHeads(nn.Module):
    """What is told behind `DEPTH` layers (each value's key, the key's kind, its document, how many documents so
    far are from it, and the word before each word), and behind `DEEPER` the key whose value the answer is.
    """

    def __init__(self, width: int, words: int):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.key = nn.Linear(width, words)
        self.before = nn.Linear(width, words)
        self.home = nn.Linear(width, DOCUMENTS)
        self.kin = nn.Linear(width, words)
        self.times = nn.Linear(width, TIMES)
        self.deeper = nn.RMSNorm(width)
        self.hint = nn.Linear(width, words)


@contextmanager
def only(model: LlamaForCausalLM, layers: Sequence[int]) -> Iterator[None]:
    """Run the model without the other layers, for as long as they add nothing."""
    every, config = model.model.layers, model.config
    model.model.layers = nn.ModuleList([every[i] for i in layers])
    config.num_hidden_layers = len(layers)
    try:
        yield
    finally:
        model.model.layers, config.num_hidden_layers = every, len(every)


def text_losses(
    model: LlamaForCausalLM,
    heads: BindingHeads,
    batch: dict[str, Tensor],
    *,
    layers: Sequence[int],
    early: int = 0,
    deep: bool = False,
) -> dict[str, Tensor]:
    """Cross-entropy of answers and heads; the share of answers that is right as a whole, of each ability in the batch.

    Args:
        model: The language model.
        heads: Throw-away heads.
        batch: What `collate` returns.
        layers: Layers that take part; the others must add nothing.
        early: First layers in which the questions do not look at the text.
        deep: Only the questions about what is sold do not, in the first DEEPER layers.
    """
    model.config._attn_implementation = "packed"
    prefix, segment = batch["prefix"], batch["segment"]
    p, t = prefix.shape[1], segment.shape[1]
    places = torch.arange(p, device=prefix.device)
    shown = places < batch["length"][:, None]  # [B, P]
    own = (segment[:, :, None] == segment[:, None, :]).tril()  # [B, T, T]
    rows = torch.cat([shown[:, None].expand(-1, t, -1), own], 2)
    seeing = torch.zeros_like(segment, dtype=torch.bool)
    if deep:
        early, asked = DEEPER, batch["kind"].gather(1, (segment - 1).clamp(min=0))
        seeing = (segment > 0) & (asked != KINDS.index(SOLD))
    blind = torch.cat([rows[:, :, :p] & seeing[:, :, None], own], 2)
    states: list[Tensor] = []
    behind = [max(i for i in layers if i < depth) for depth in (DEPTH, DEEPER)]
    hooks = [model.model.layers[i].register_forward_hook(lambda _, args, out: states.append(out)) for i in behind]
    try:
        with only(model, layers):
            out = model.model(
                input_ids=torch.cat([prefix, batch["ids"]], 1),
                attention_mask=_whole(rows),
                position_ids=torch.cat([places.expand(len(prefix), -1), batch["position"]], 1),
                use_cache=False,
                packed_text=t,
                packed_early=(early, _whole(blind)) if early else None,
            )
    finally:
        for hook in hooks:
            hook.remove()
    found = answers(model.lm_head, out.last_hidden_state[:, p:], batch)
    bound = heads.norm(states[0][:, :p])
    before = F.pad(prefix[:, :-1], (1, 0)).masked_fill(~shown, NOTHING)
    before[:, 0] = NOTHING
    deeper = heads.deeper(states[1][:, p:])
    named = {name: (bound, batch[name]) for name in TOLD} | {"before": (bound, before), "hint": (deeper, batch["hint"])}
    for name, (seen, answer) in named.items():
        told = answer >= 0
        if told.any():
            found[name] = F.cross_entropy(getattr(heads, name)(seen[told]), answer[told])
    return found


def _whole(rows: Tensor) -> Tensor:
    """[B, 1, P + T, P + T] from the rows of the questions; those of the text never ask for theirs."""
    b, t, n = rows.shape
    return torch.cat([rows.new_ones(b, n - t, n), rows], 1)[:, None]


def answers(head: nn.Module, states: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss of the answers; the share of them that is right as a whole, or of their tokens where they are long.

    Args:
        head: From hidden states to words.
        states: [B, T, D] in front of the head.
        batch: `target`, `segment` and `kind` of `collate`.
    """
    target, segment, kind = batch["target"], batch["segment"], batch["kind"]
    asked = target >= 0
    logits = head(states[asked])
    loss = F.cross_entropy(logits, target[asked], reduction="none")
    row = asked.nonzero()[:, 0]
    place = row * kind.shape[1] + segment[asked] - 1  # which answer each token belongs to
    count = torch.zeros(kind.numel(), device=loss.device).index_add_(0, place, torch.ones_like(loss))
    weight = count[place].rsqrt()  # a long answer weighs more than a short one, but not by its length
    wrong = (logits.argmax(-1) != target[asked]).float()
    missed = torch.zeros_like(count).index_add_(0, place, wrong)
    found = {"answer": (loss * weight).sum() / weight.sum()}
    whole = (missed == 0).float()
    for number, name in enumerate(KINDS):
        mine = kind.flatten() == number
        if not mine.any():
            continue
        if name in ("recite", "copy"):  # long answers: the share of tokens
            found[name] = 1 - missed[mine].sum() / count[mine].sum()
        else:
            found[name] = whole[mine].mean()
    return found
