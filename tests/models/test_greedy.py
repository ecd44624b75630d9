"""Answers are greedy and cached whatever a checkpoint's files ask for; its special tokens alone are taken from it."""

import json
import re

import pytest
import torch
from saved import copied, edit, settings, whole
from transformers import DynamicCache

from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load

__all__ = ["copied", "whole"]  # fixtures
FILE = "generation_config.json"
ODD = [
    {"do_sample": True, "temperature": 5.0},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 1.3},
    {"encoder_repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(5, 60))},
    {"begin_suppress_tokens": list(range(5, 60))},
    {"bad_words_ids": [[7], [8]]},
    {"sequence_bias": [[[9], 50.0]]},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 2},
    {"exponential_decay_length_penalty": [1, 2.0]},
    {"min_length": 60},
    {"min_new_tokens": 60},
    {"max_time": 1e-9},
    {"max_new_tokens": -1},
    {"stop_strings": ["a"]},
    {"guidance_scale": 3.0},
    {"watermarking_config": {"bias": 20.0}},
    {"return_dict_in_generate": True, "output_scores": True},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"cache_implementation": "nothing that there is"},
    {"prompt_lookup_num_tokens": 2},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "low"},
    {"prefill_chunk_size": 4},
    {"compile_config": {"mode": "slow"}},
]


def loaded(folder):
    config = settings(folder)
    return load(config, find_checkpoint(config), torch.device("cpu"))


def answers(host, **more):
    with torch.inference_mode():
        return host.generate(**host.example(2, 6, 24, 24), max_new_tokens=5, **more)


def shown(keys):
    """How a note lists settings."""
    return [f"{key}={value!r:.40}" for key, value in keys.items()]


@pytest.fixture(scope="module")
def plain(whole):
    """The checkpoint as it is."""
    return loaded(whole)


@pytest.fixture(scope="module")
def plainly(plain):
    """What it answers."""
    return answers(plain.host)


@pytest.mark.long
@pytest.mark.parametrize("keys", ODD, ids=lambda keys: "-".join(keys))
def test_generation_settings_of_a_checkpoint_are_set_aside_and_said(plain, plainly, copied, keys):
    edit(copied / FILE, **keys)
    odd = loaded(copied)
    assert torch.equal(answers(odd.host), plainly)
    assert plain.notes == ()
    (note,) = odd.notes
    assert "answers are greedy, with a cache; " in note
    assert all(one in note for one in shown(keys))


@pytest.mark.parametrize(
    "keys",
    [{"use_cache": False}, {"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}],
    ids=lambda keys: "-".join(keys),
)
@pytest.mark.parametrize("of_text", [False, True])
def test_so_is_what_a_config_says_of_forwards(plainly, copied, keys, of_text):
    """A forward returns what it does from any other checkpoint, with a cache that grows."""
    config = json.loads((copied / "config.json").read_text())
    edit(copied / "config.json", **({"text_config": config["text_config"] | keys} if of_text else keys))
    odd = loaded(copied)
    assert torch.equal(answers(odd.host), plainly)
    with torch.inference_mode():
        out = odd.host(**odd.host.example(2, 6, 24, 24))
    assert isinstance(out.past_key_values, DynamicCache)
    assert out.attentions is None
    assert out.hidden_states is None
    assert shown(keys)[0] in odd.notes[0]


def test_without_the_file_a_configs_settings_are_set_aside_too(plain, plainly, copied):
    (copied / FILE).unlink()
    edit(copied / "config.json", repetition_penalty=1.7, num_beams=2)
    odd = loaded(copied)
    assert torch.equal(answers(odd.host), plainly)
    assert all(word in odd.notes[0] for word in ("repetition_penalty=1.7", "num_beams=2"))
    eos = plain.host.model.generation_config.eos_token_id
    assert odd.host.model.generation_config.eos_token_id == eos == 2


def test_who_generates_may_still_ask_for_something_else(plain):
    out = answers(plain.host, return_dict_in_generate=True, output_logits=True)
    assert len(out.logits) == 5


def test_all_tokens_that_end_an_answer_are_the_checkpoints(plainly, copied):
    """The first of them that comes ends the answer."""
    said = plainly[0, -5:].tolist()
    edit(copied / FILE, eos_token_id=[2, said[2]])
    odd = loaded(copied)
    ended = said[: said.index(said[2]) + 1]
    assert answers(odd.host)[0, 15:].tolist() == ended + [odd.processor.tokenizer.pad_token_id] * (5 - len(ended))
    assert odd.notes == ()


def test_what_stands_behind_a_shorter_answer_is_not_decoded(plain, copied):
    """A checkpoint may name an ordinary word as padding; an answer would end in it in a batch, and not alone."""
    inputs = plain.host.example(2, 6, 24, 24)
    inputs["input_ids"][1, 9:] = torch.arange(20, 26)
    with torch.inference_mode():
        one, other = (row.tolist() for row in plain.host.generate(**inputs, max_new_tokens=5)[:, 15:])
    end = next(token for token in one if token not in other)
    edit(copied / FILE, eos_token_id=end, pad_token_id=30)
    odd = loaded(copied)
    with torch.inference_mode():
        said = odd.host.generate(**inputs, max_new_tokens=5)[:, 15:].tolist()
    assert said[1] == other
    assert said[0] == one[: one.index(end) + 1] + [odd.processor.tokenizer.pad_token_id] * (4 - one.index(end))
    assert odd.notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"generation_config.json cannot be read: .*Restore it from the original model, or remove it"),
        ('{"eos_token_id": "2"}', r"generation_config.json: eos_token_id is '2', but it is the id of a token"),
        ('{"eos_token_id": [[2]]}', r"generation_config.json: eos_token_id is \[\[2\]\], but"),
        ('{"bos_token_id": true}', r"generation_config.json: bos_token_id is True, but"),
    ],
)
def test_a_broken_file_is_named(copied, text, message):
    (copied / FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


def test_a_note_stays_short(copied):
    edit(copied / FILE, suppress_tokens=list(range(500)))
    (note,) = loaded(copied).notes
    assert len(note) < 200
    assert re.search(r"suppress_tokens=\[0, 1, 2", note)


def test_a_decoding_of_its_own_is_set_aside(plainly, copied):
    """transformers would run it in place of generate, where code of the checkpoint is trusted."""
    (copied / "custom_generate").mkdir()
    (copied / "custom_generate" / "generate.py").write_text("def generate(model, **inputs):\n    return 'own'\n")
    config = settings(copied, trust_remote_code=True)
    odd = load(config, copied, torch.device("cpu"))
    assert torch.equal(answers(odd.host), plainly)
    assert "custom_generate=" in odd.notes[0]


def test_an_architecture_without_weights_is_greedy_too(copied):
    edit(copied / FILE, num_beams=3)
    config = settings(copied, weights="random")
    host = load(config, copied, torch.device("cpu")).host
    assert host.model.generation_config.num_beams == 1
    assert answers(host, min_new_tokens=5).shape[0] == 2
