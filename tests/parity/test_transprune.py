"""TransPrune against its released code: the weight of one block, and scores and kept tokens of a whole prefill."""

import pytest
import torch

from btp.core.schedule import Schedule, Stage
from btp.ops.transition import transition_weights
from btp.pruners.transprune import TransPrune
from parity.plain_llama import PlainLlama, Walk, part, recorded

ARRAYS, FACTS = recorded("transprune")
SETTINGS = {"direction": "signed", "alpha": 0.5, "accumulate": 6}
SHARES = FACTS["hyperparameters"]["keep_ratios_of_original_N"]
LAYERS = FACTS["hyperparameters"]["prune_after_layers_1based"]
WHOLE = [name for name in ("a", "b") if f"{name}/inputs_embeds" in ARRAYS]


@pytest.mark.skipif("prim/weight" not in ARRAYS, reason="not among the recorded cases")
def test_weight_of_one_block():
    """Norm ratio times the softmax of 1 - cosine over all rows."""
    before, after = ARRAYS["prim/before"], ARRAYS["prim/after"]
    sizes = torch.stack([after.norm(dim=-1) / before.norm(dim=-1), torch.cosine_similarity(before, after, dim=-1)])
    valid = torch.ones(1, len(before), dtype=torch.bool)
    weights = transition_weights(sizes[:, None], sizes[:, None], valid, "signed")[0]
    assert torch.allclose(weights, ARRAYS["prim/weight"], atol=1e-7, rtol=1e-5)


def through(name, **changed):
    shape = FACTS["cases"][name]
    counted = [layer - FACTS["hyperparameters"]["accumulation_layers_1based"][0] + 1 for layer in LAYERS]
    schedule = Schedule(
        tuple(
            Stage(f"llm.layer.{layer}", share, "renumber", settings={"accumulate": number})
            for layer, share, number in zip(LAYERS, SHARES, counted, strict=True)
        )
    )
    facts = FACTS["model"]
    model = PlainLlama(part(ARRAYS, "w"), facts["num_heads"], facts["rms_norm_eps"], facts["rope_theta"])
    walk = Walk(model, ARRAYS[f"{name}/inputs_embeds"].float()[None], shape["prefix"], shape["N"])
    return walk.through(TransPrune(**SETTINGS | changed), schedule)


@pytest.mark.parametrize("name", WHOLE)
def test_prefill(name):
    """Scores and kept tokens of all stages, cache lengths, final states."""
    walk, arrays = through(name), part(ARRAYS, name)
    for i, stage in enumerate(walk.stages):
        assert torch.allclose(stage["scores"][0], arrays[f"stage{i}/score"], atol=1e-6)
        assert stage["chosen"].keep[0].tolist() == arrays[f"stage{i}/kept_rel"].tolist()
        assert stage["index"][0].tolist() == arrays[f"stage{i}/kept_orig"].tolist()
        assert stage["index"].shape[1] == FACTS["cases"][name]["kept"][i]
    assert walk.lengths == arrays["kv_len_per_layer"].tolist()
    assert torch.allclose(walk.x[0], arrays["last_hidden_state"], atol=5e-5)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("alpha", "term"), [(1.0, "ttv_norm"), (0.0, "iga_norm")])
def test_each_term(name, alpha, term):
    """At the first stage, where nothing is gone yet, alpha 1 and 0 are twice the recorded terms."""
    score = through(name, alpha=alpha).stages[0]["scores"][0]
    assert torch.allclose(score, 2 * ARRAYS[f"{name}/stage0/{term}"], atol=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_the_other_direction_is_another_method(name):
    """The paper's reading does not reproduce what the code keeps."""
    kept = through(name, direction="orthogonal").stages[-1]["index"][0].tolist()
    assert kept != ARRAYS[f"{name}/stage2/kept_orig"].tolist()
