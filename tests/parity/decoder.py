"""Recorded tiny decoders as hosts of the engine: an official run is played again through attach(), prefill and decode.

`tiny` builds the decoder from recorded weights, `play` runs a prompt of embeddings through it and feeds the steps
behind it one by one, each at the position that it has in the unpruned sequence.
"""

import re
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from btp.core.host import Layout
from btp.core.trace import Trace
from btp.engine.attach import attach
from btp.models.lvlm import LVLM

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
NO_WORDS = 2  # vocabulary of a decoder recorded without embedding and head


class SpanHost(LVLM):
    """A language model alone, whose visual tokens lie where `spans` says.

    Attributes:
        spans: per row, (begin, end) of each picture in the prompt, padding counted.
        coord: [B, S, 3] (frame, row, column); None puts each picture's tokens in one row.
    """

    def __init__(self, model, spans=(), coord=None):
        super().__init__(model)
        self.spans, self.coord = spans, coord

    def layout(self, inputs):
        """As the spans say, for ids or embeddings."""
        given = inputs.get("inputs_embeds")
        B, S = (inputs["input_ids"] if given is None else given).shape[:2]
        image = torch.full((B, S), -1)
        column = torch.full((B, S), -1)
        for b, row in enumerate(self.spans):
            for number, (begin, end) in enumerate(row):
                image[b, begin:end] = number
                column[b, begin:end] = torch.arange(end - begin)
        coord = torch.stack([column.clamp(max=0), column.clamp(max=0), column], dim=-1)
        return Layout(image >= 0, coord if self.coord is None else self.coord, image)


def tiny(weights, heads, eps, base=10000.0, family="llama", attention="sdpa", dtype=torch.float32):
    """A decoder with these weights.

    Args:
        weights: name -> tensor, [out, in]. Names as in a checkpoint, with or without `model.`, `self_attn.`, `mlp.` and
            `.weight`. Embedding, head and biases may be missing; they are 0 then.
        heads: query heads; all other sizes are those of the weights.
        eps: of the norms.
        base: of RoPE.
        family: llama | qwen2 (with biases of queries, keys and values).
        attention: sdpa | eager.
    """
    full = {_full(name): value.to(dtype) for name, value in weights.items()}
    q, k = (full[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    words = next((full[n] for n in ("lm_head.weight", "model.embed_tokens.weight") if n in full), None)
    config_type, model_type = FAMILIES[family]
    config = config_type(
        vocab_size=NO_WORDS if words is None else len(words),
        hidden_size=q.shape[1],
        intermediate_size=len(full["model.layers.0.mlp.gate_proj.weight"]),
        num_hidden_layers=len({name for name in full if name.endswith("q_proj.weight")}),
        num_attention_heads=heads,
        num_key_value_heads=len(k) * heads // len(q),
        head_dim=len(q) // heads,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = model_type._from_config(config, attn_implementation=attention, dtype=dtype).eval()
    state = {name: full.get(name, torch.zeros_like(value)) for name, value in model.state_dict().items()}
    optional = ("lm_head.weight", "model.embed_tokens.weight")
    absent = [name for name in state if name not in full and name not in optional and not name.endswith(".bias")]
    unknown = sorted(full.keys() - state.keys())
    assert not absent, f"not recorded: {absent}"
    assert not unknown, f"recorded, but not part of the decoder: {unknown}"
    model.load_state_dict(state)
    return SpanHost(model)


def _full(name):
    """A weight's name in transformers."""
    name = name.removeprefix("model.")
    name = re.sub(r"^(layers\.\d+\.)([qkvo]_proj)", r"\1self_attn.\2", name)
    name = re.sub(r"^(layers\.\d+\.)((?:gate|up|down)_proj)", r"\1mlp.\2", name)
    name = name if name.endswith((".weight", ".bias")) else f"{name}.weight"
    return name if name.startswith("lm_head") else f"model.{name}"


@dataclass
class Forward:
    """One forward. B rows, S' rows of the sequence behind the last cut, L layers.

    Attributes:
        logits: [B, S', V].
        hidden: [B, S', D] behind the final norm.
        lengths: rows that entered each layer.
        positions: [B, rows] position ids of each layer.
        slots: K/V slots of each layer afterwards.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    lengths: list[int]
    positions: list[torch.Tensor]
    slots: list[int]


@dataclass
class Played:
    """A prefill and the steps behind it."""

    trace: Trace
    prefill: Forward
    steps: list[Forward] = field(default_factory=list)

    @property
    def step_logits(self):
        """[B, T, V]."""
        return torch.cat([step.logits for step in self.steps], dim=1)

    @property
    def step_hidden(self):
        """[B, T, D] behind the final norm."""
        return torch.cat([step.hidden for step in self.steps], dim=1)

    @property
    def step_positions(self):
        """[T, L] of row 0."""
        return torch.tensor([[int(p[0, 0]) for p in step.positions] for step in self.steps])

    @property
    def kept(self):
        """Per stage, original visual indices that stayed in row 0."""
        return [stage.kept[0] for stage in self.trace.last.stages]


def play(host, spans, embeds, pruner=None, schedule=None, steps=None, mask=None, coord=None):
    """Run a prompt and the steps behind it inside attach().

    Args:
        host: of `tiny`.
        spans: (begin, end) pairs of visual tokens, the same in each row; or a list of such lists, one per row.
        embeds: [B, S, D] what enters the first layer.
        pruner, schedule: as attach takes them.
        steps: [T] or [B, T] ids, or [B, T, D] embeddings, fed one by one.
        mask: [B, S] of padded prompts; positions count real tokens then.
        coord: see SpanHost.
    """
    B, S = embeds.shape[:2]
    host.spans = spans if spans and isinstance(spans[0][0], (tuple, list)) else [spans] * B
    host.coord = coord
    steps = torch.empty(B, 0, dtype=torch.long) if steps is None else torch.as_tensor(steps)
    steps = steps.expand(B, -1) if steps.dim() == 1 else steps
    real = torch.ones(B, S, dtype=torch.long) if mask is None else mask.long()
    cache = DynamicCache(config=host.config)
    with torch.no_grad(), attach(host, pruner, schedule) as trace, _Watch(host) as watch:
        positions = (real.cumsum(1) - 1).clamp(min=0)
        prompt = embeds.to(host.dtype)
        played = Played(trace, watch.forward(cache, inputs_embeds=prompt, attention_mask=mask, position_ids=positions))
        for t in range(steps.shape[1]):
            new = steps[:, t : t + 1]
            new = {"input_ids": new.long()} if new.dim() == 2 else {"inputs_embeds": new.to(host.dtype)}
            grown = None if mask is None else torch.cat([mask, mask.new_ones(B, t + 1)], dim=1)
            at = real.sum(1, keepdim=True) + t
            played.steps.append(watch.forward(cache, position_ids=at, attention_mask=grown, **new))
    return played


class _Watch:
    """Notes what enters each layer and what leaves the final norm; hooks behind the engine's own."""

    def __init__(self, host):
        self.host, self.hooks = host, []

    def __enter__(self):
        for layer in self.host.layers:
            self.hooks.append(layer.register_forward_pre_hook(self._layer, with_kwargs=True))
        self.hooks.append(self.host.norm.register_forward_hook(self._norm))
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()

    def forward(self, cache, **inputs):
        self.lengths, self.positions, self.hidden = [], [], None
        out = self.host.model(past_key_values=cache, use_cache=True, **inputs)
        slots = [cache.get_seq_length(i) for i in range(self.host.num_layers)]
        return Forward(out.logits, self.hidden, self.lengths, self.positions, slots)

    def _layer(self, module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        self.lengths.append(hidden.shape[1])
        self.positions.append(kwargs["position_ids"].expand(len(hidden), -1))

    def _norm(self, module, args, output):
        self.hidden = output  # the last one of a forward; signals may be normed too
