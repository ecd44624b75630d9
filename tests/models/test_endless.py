"""Small files of a checkpoint that would have no end are refused before anything is built."""

import json
import time

import pytest
import torch
from saved import copied, edit, settings, whole

from btp.models.loading import trial
from btp.models.loading.checkpoint import MOST_LAYERS, check_depth, find_checkpoint, read_config
from btp.models.loading.load import load
from btp.models.loading.random_weights import describe
from btp.models.loading.time_limit import Endless, time_limit

__all__ = ["copied", "whole"]  # fixtures
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}<image>"
LONG = "{% for m in messages %}{% for c in m['content'] %}<image>{% endfor %}{% endfor %}{{ 'a' * 1000001 }}"


def loaded(folder):
    config = settings(folder)
    return load(config, find_checkpoint(config), torch.device("cpu"))


@pytest.mark.parametrize(
    ("template", "limit_s", "message"),
    [
        (
            LOOP,
            0.3,
            r"chat_template.jinja \(chat_template\) cannot write .*: it does not end within 0.3 s. Look for a loop",
        ),
        (LONG, 60, r"chat_template.jinja \(chat_template\) makes 1,000,\d\d\d characters of a question of 11"),
    ],
)
def test_a_template_without_end_is_refused(copied, monkeypatch, template, limit_s, message):
    monkeypatch.setattr(trial, "TEMPLATE_S", limit_s)
    (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


def test_what_ends_in_time_is_left_alone():
    with time_limit(0.2):
        pass
    time.sleep(0.3)  # the alarm is off

    def forever():
        with time_limit(0.1):
            while True:
                pass

    with pytest.raises(Endless, match=r"does not end within 0\.1 s"):
        forever()


def test_a_million_layers_are_refused_before_one_is_built(copied):
    about = json.loads((copied / "config.json").read_text())
    edit(copied / "config.json", text_config=about["text_config"] | {"num_hidden_layers": 10**6})
    with pytest.raises(ValueError, match=r"config\.json: num_hidden_layers says 1,000,000 layers, more than the 1,000"):
        read_config(copied)
    with pytest.raises(ValueError, match=r"model\.config: num_hidden_layers says"):
        describe({"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 10**6}})


@pytest.mark.parametrize(
    "key", ["n_layer", "num_layers", "depth", "layers", "n_blocks", "decoder_layers", "num_hidden_layers"]
)
def test_a_number_of_layers_is_known_by_whatever_name(key):
    check_depth({key: MOST_LAYERS}, "it")
    with pytest.raises(ValueError, match=f"it: {key} says"):
        check_depth({"vision_config": {key: MOST_LAYERS + 1}}, "it")
    with pytest.raises(ValueError, match="layer_types says"):
        check_depth({"layer_types": ["full"] * (MOST_LAYERS + 1)}, "it")
    check_depth({"vocab_size": 10**6, "max_position_embeddings": 10**7, "vision_feature_layer": -2}, "it")
