"""Text models on disk: loaded by their tokenizer and their own class, tried on one question."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import tiny_text
import torch
import yaml
from saved import edit, settings

from btp.models.chat_template import chat_inputs
from btp.models.embedded.pocket_text import build_text_tokenizer
from btp.models.loading.kinds import KINDS
from btp.models.loading.load import find_adapter, load, sketch
from btp.models.loading.random_weights import describe, empty
from btp.models.text import TextLM
from btp.tasks.pocketdocs.vocabulary import words

CPU = torch.device("cpu")
TEXT = "btp.models.text.TextLM"
YAMLS = {p.stem: yaml.safe_load(p.read_text()) for p in Path(__file__).parents[2].glob("conf/model/*.yaml")}
REAL = {name: config for name, config in YAMLS.items() if config["adapter"] == TEXT and config["hub"]}
PUBLISHED = {  # parameters, as the pages of the checkpoints count their files
    "llama31_8b": 8.03e9,
    "llama32_1b": 1.24e9,
    "llama2_7b": 6.74e9,
    "qwen25_7b": 7.62e9,
    "mistral_7b": 7.25e9,
    "opt_6_7b": 6.66e9,
}
CHAT = [{"role": "user", "content": [{"type": "text", "text": "what is the code of mira ?"}]}]


def save(folder, family="llama"):
    """A random model with the embedded text model's tokenizer."""
    tokenizer = build_text_tokenizer(words())
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    host = tiny_text.text_lm(family, vocab_size=len(tokenizer), **ids)
    host.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return host


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "llama"
    save(folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def loaded(folder, **keys):
    return load(settings(folder, adapter=TEXT, **keys), folder, CPU)


@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_what_was_saved_is_loaded(family, tmp_path):
    """Every family, with its weights, and a batch of unequal prompts generates from it."""
    made = save(tmp_path / family, family)
    found = loaded(tmp_path / family)
    assert isinstance(found.host, TextLM)
    assert found.host.unit == "prompt tokens"
    for a, b in zip(made.model.parameters(), found.host.model.parameters(), strict=True):
        assert torch.equal(a, b)
    inputs, texts = chat_inputs(found.processor, [CHAT, CHAT * 2], [[], []])
    assert texts[0] == "<s> USER: what is the code of mira ? ASSISTANT:"
    assert inputs["input_ids"][0, 0] == found.processor.tokenizer.pad_token_id
    assert (inputs["input_ids"][1, :1] == found.processor.tokenizer.bos_token_id).all()
    out = found.host.generate(**inputs, max_new_tokens=2)
    assert out.shape[0] == 2


def test_without_a_chat_the_prompt_is_the_text(copied):
    """No roles; the tokenizer adds what it adds to any text."""
    (copied / "chat_template.jinja").unlink()
    found = loaded(copied, chat=False)
    inputs, texts = chat_inputs(found.processor, [CHAT], [[]])
    assert texts == ["what is the code of mira ?"]
    own = found.processor.tokenizer(texts[0])["input_ids"]
    assert inputs["input_ids"][0].tolist() == own
    with pytest.raises(
        ValueError, match=r"model.chat is true, but the checkpoint in .* has no chat template. Set model"
    ):
        loaded(copied)


def test_pictures_are_refused(whole):
    processor = loaded(whole).processor
    with pytest.raises(ValueError, match="the model takes text alone"):
        processor(text=["a"], images=[object()])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: edit(f / "config.json", model_type="llava"),
            "family llava, which is no language model for text alone",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{"), r"can be read: tokenizer\.json is no JSON"),
        (
            lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].nothing.at_all }}"),
            r"chat_template.jinja \(chat_template\) cannot write a question: .* Set model.chat=false",
        ),
        (lambda f: (f / "chat_template.jinja").write_text("USER"), r"writes 'USER' for the question 'What is it\?'"),
        (
            lambda f: edit(f / "config.json", vocab_size=5),
            "cannot be loaded as a language model|embeddings of 5 tokens",
        ),
    ],
    ids=["kind", "tokenizer", "template", "silent template", "vocabulary"],
)
def test_broken_checkpoints_are_named(copied, spoil, message):
    spoil(copied)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


def test_tokens_beyond_the_embeddings_are_named(copied):
    """A token was added that the weights do not know."""
    about = json.loads((copied / "tokenizer.json").read_text())
    marks = [t for t in about["added_tokens"] if t["content"] == "<s>"]
    assert marks
    tokenizer = build_text_tokenizer([*words(), "zebra"])
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(copied)
    with pytest.raises(ValueError, match=r"gives '<new>' the id \d+, but the model has embeddings of"):
        loaded(copied)


def test_a_text_model_is_no_vision_language_model(whole):
    """The message names the other adapter."""
    with pytest.raises(ValueError, match=r"llama, which answers no questions on pictures.*btp.models.text.TextLM"):
        load(settings(whole), whole, CPU)
    with pytest.raises(ValueError, match=r"is not a subclass of btp.models.lvlm.LVLM, btp.models.text.TextLM or"):
        find_adapter("btp.core.site.Site")


@pytest.mark.parametrize("name", REAL)
def test_the_architecture_is_the_published_one(name):
    """Within one percent, and without memory: modules on the meta device."""
    config = REAL[name]
    model = empty(describe(config["config"]), torch.device("meta"), torch.bfloat16, config["attention"], KINDS["text"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PUBLISHED[name], rel=0.01)
    assert getattr(model.config, "sliding_window", None) is None
    seen = sketch(config | {"weights": "random"}, None)
    inputs = seen.example(2, 5, **config["example"])
    assert inputs["input_ids"].shape == (2, config["example"]["length"])


@pytest.mark.parametrize("name", REAL)
def test_it_is_built_and_runs(name):
    """Small, with random weights and without a tokenizer."""
    small = copy.deepcopy(REAL[name]["config"])
    small |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    narrow = {
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "ffn_dim": 48,
        "word_embed_proj_dim": 64,
        "head_dim": 16,
    }
    small |= {key: value for key, value in narrow.items() if key in small}
    found = load(REAL[name] | {"weights": "random", "config": small}, None, CPU)
    assert found.processor is None
    inputs = found.host.example(2, 5, length=7)
    with torch.inference_mode():
        logits = found.host(**inputs, use_cache=False, logits_to_keep=1).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_norms_behind_a_block_are_not_taken_for_norms_in_front():
    """OPT-350M alone has them there, so nothing can be previewed in it."""
    assert tiny_text.text_lm("opt").towers["llm"].attention_norm == "self_attn_layer_norm"
    behind = tiny_text.text_lm("opt", do_layer_norm_before=False)
    assert behind.towers["llm"].attention_norm is None
    assert behind.towers["llm"].attention == "self_attn"
    assert behind.norm is None
