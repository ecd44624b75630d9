"""The harness: recorded weights arrive where they belong, and prompts, batches and steps are played as they should."""

import pytest
import torch

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from parity.decoder import play, tiny
from parity.plain_llama import PlainLlama, Walk, part, recorded

PDROP, _ = recorded("pdrop")
TRANSPRUNE, FACTS = recorded("transprune")


class Replay(Pruner):
    """Keeps what was recorded, stage by stage."""

    def __init__(self, *recorded):
        self.recorded = list(recorded)

    def select(self, tokens, signals, stage):
        return Selection(self.recorded.pop(0).long().expand(len(tokens.hidden), -1))


def pdrop(attention="sdpa"):
    return tiny(part(PDROP, "w"), heads=4, eps=1e-6, attention=attention)


def test_unpruned_decoder():
    """Without a pruner, the states of a decoder written out by hand."""
    embeds = PDROP["one/inputs_embeds"]
    plain = Walk(PlainLlama(part(PDROP, "w"), heads=4, eps=1e-6), embeds, 5, 32).through(None, ())
    ours = play(pdrop(), [(5, 37)], embeds)
    assert torch.allclose(ours.prefill.hidden, plain.x, atol=1e-5)
    assert ours.prefill.lengths == [46] * 7
    assert ours.trace.last.total == (32,)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 2])
def test_several_stages_and_ids(rows, attention):
    """PyramidDrop's recorded choices at three stages, positions closed: its states, logits, positions and caches."""
    official = part(PDROP, "one")
    keeps = []
    for i, alive in enumerate((32, 16, 8)):
        rows_kept = official[f"keep_stage{i}"][0]
        keeps.append(rows_kept[(rows_kept >= 5) & (rows_kept < 5 + alive)] - 5)
    stages = [Stage(f"llm.layer.{2 * i + 2}", len(keep), "renumber") for i, keep in enumerate(keeps)]
    embeds = official["inputs_embeds"].expand(rows, -1, -1)
    ours = play(pdrop(attention), [(5, 37)], embeds, Replay(*keeps), Schedule(tuple(stages)), official["decode_tokens"])
    assert ours.prefill.lengths == official["layer_lengths"].tolist()
    assert ours.prefill.slots == official["kv_lengths_after_prefill"].tolist()
    assert ours.steps[-1].slots == official["decode_kv_lengths"].tolist()
    assert torch.equal(ours.step_positions, official["decode_position_ids"])
    for b in range(rows):
        assert torch.allclose(ours.prefill.hidden[b], official["hidden_final"][0], atol=1e-5)
        assert torch.allclose(ours.prefill.logits[b, -1], official["prefill_logits_last"][0], atol=1e-5)
        assert torch.allclose(ours.step_logits[b], official["decode_logits"], atol=1e-5)


def test_states_and_embeddings():
    """TransPrune's: no head, names as in a checkpoint, a step that comes as an embedding."""
    official, shape, facts = part(TRANSPRUNE, "a"), FACTS["cases"]["a"], FACTS["model"]
    host = tiny(part(TRANSPRUNE, "w"), facts["num_heads"], facts["rms_norm_eps"], facts["rope_theta"])
    keeps = [official[f"stage{i}/kept_rel"] for i in range(3)]
    layers = FACTS["hyperparameters"]["prune_after_layers_1based"]
    stages = [Stage(f"llm.layer.{n}", len(keep), "renumber") for n, keep in zip(layers, keeps, strict=True)]
    span = (shape["prefix"], shape["prefix"] + shape["N"])
    embeds, step = official["inputs_embeds"][None], official["decode_embed"][None]
    ours = play(host, [span], embeds, Replay(*keeps), Schedule(tuple(stages)), step)
    assert ours.kept[-1] == official["stage2/kept_orig"].tolist()
    assert ours.prefill.slots == official["kv_len_per_layer"].tolist()
    assert torch.allclose(ours.prefill.hidden[0], official["last_hidden_state"], atol=5e-5)
    assert torch.allclose(ours.step_hidden[0], official["decode_last_hidden_state"], atol=5e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_as_alone(side):
    """Two prompts of unequal length and span in one batch, each as by itself."""
    embeds, steps = PDROP["one/inputs_embeds"][0], torch.tensor([[3, 17], [42, 3]])
    schedule, keep = Schedule((Stage("llm.layer.2", 4),)), torch.tensor([1, 2, 5, 7])
    alone = [
        play(pdrop(), [span], row[None], Replay(keep), schedule, steps[b : b + 1])
        for b, (row, span) in enumerate(((embeds, (5, 37)), (embeds[:30], (3, 14))))
    ]
    gap = torch.zeros(16, embeds.shape[1])
    left = side == "left"
    short = torch.cat([gap, embeds[:30]] if left else [embeds[:30], gap])
    mask = torch.ones(2, 46, dtype=torch.long)
    mask[1, slice(0, 16) if left else slice(30, 46)] = 0
    spans = [[(5, 37)], [(19, 30) if left else (3, 14)]]
    both = play(pdrop(), spans, torch.stack([embeds, short]), Replay(keep), schedule, steps, mask)
    for b in range(2):
        assert torch.allclose(both.step_logits[b], alone[b].step_logits[0], atol=1e-5)
        assert [int(p[b, 0]) for p in both.steps[0].positions] == alone[b].step_positions[0].tolist()


def test_biases_and_grouped_heads():
    """Qwen2: sizes are read from the weights, and biases that were recorded are used."""
    wide, narrow = torch.randn(32, 32) * 0.2, torch.randn(16, 32) * 0.2
    weights = {"norm": torch.ones(32), "lm_head": torch.randn(11, 32), "embed_tokens": torch.randn(11, 32)}
    for i in range(2):
        weights |= {f"layers.{i}.{n}_proj": wide for n in "qo"} | {f"layers.{i}.{n}_proj": narrow for n in "kv"}
        weights |= {f"layers.{i}.{n}_proj": narrow for n in ("gate", "up")} | {f"layers.{i}.down_proj": narrow.T}
        weights |= {f"layers.{i}.{n}_layernorm": torch.ones(32) for n in ("input", "post_attention")}
    host = tiny(weights, heads=4, eps=1e-6, base=1e6, family="qwen2")
    assert (host.model.config.num_key_value_heads, host.model.config.head_dim, host.num_layers) == (2, 8, 2)
    embeds = torch.randn(1, 9, 32)
    plain = play(host, [(2, 6)], embeds).prefill.hidden
    biased = tiny(weights | {"layers.1.v_proj.bias": torch.ones(16)}, 4, 1e-6, 1e6, "qwen2")
    assert not torch.allclose(play(biased, [(2, 6)], embeds).prefill.hidden, plain, atol=1e-2)
    with pytest.raises(AssertionError, match=r"not recorded: \['model.norm.weight'\]"):
        tiny({k: v for k, v in weights.items() if k != "norm"}, 4, 1e-6)
    with pytest.raises(AssertionError, match=r"not part of the decoder: \['model.extra.weight'\]"):
        tiny(weights | {"extra": wide}, 4, 1e-6)
