"""Families that transformers has and the engine cannot follow yet are refused by name, and not in the tenth layer."""

import pytest
import torch
import transformers
from toys import Scatter, plan
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from btp.engine.checks.plan import make_plan
from btp.models.families.molmo import Molmo2
from btp.models.lvlm import LVLM

LINEAR = r"Qwen3_5\w*TextModel has layers of type linear_attention"
LENT = r"Gemma4TextModel take per_layer_input and shared_kv_states"
LENT_TOO = r"Gemma4UnifiedTextModel take shared_kv_states"
REFUSED = {
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "minicpmv4_6": LINEAR,
    "minicpmv4_7": LINEAR,
    "gemma4": LENT,
    "gemma4_unified": LENT_TOO,
}


def host(family):
    """Of the size that transformers builds by itself, without memory for its weights."""
    if family not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    with torch.device("meta"):
        return LVLM(AutoModelForImageTextToText.from_config(AutoConfig.for_model(family)).eval())


@pytest.mark.parametrize("family", REFUSED)
def test_refused_before_anything_runs(family):
    """The message names the class and what it does otherwise."""
    with pytest.raises(ValueError, match=REFUSED[family]):
        make_plan(host(family), Scatter(), plan(("llm.layer.1", 0.5)))


def test_molmo2_is_refused_where_its_tokens_are_looked_for():
    """Its own class, whose layout says why."""
    lvlm = host("molmo2")
    assert isinstance(lvlm, Molmo2)
    with pytest.raises(ValueError, match="Molmo2ForConditionalGeneration says in image_token_pooling"):
        lvlm.layout({"input_ids": torch.zeros(1, 4, dtype=torch.long)})
