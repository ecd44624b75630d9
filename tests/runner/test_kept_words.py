"""What layers hold of a prompt's words, from the trace to the report's page."""

from dataclasses import replace

import pytest
import tiny_text
import torch
from lazy_toys import both
from oracle import steps
from slot_methods import METHODS

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.embedded.pocket_text import build_text_tokenizer
from btp.models.loading.load import Loaded
from btp.models.text_processor import TextProcessor
from btp.pruners.fastv import FastV
from btp.pruners.lazyllm import LazyLLM
from btp.report.pages.word_cards import shaded
from btp.runner.arms import Arm
from btp.runner.explain.kept_words import MOST_WORDS, held, kept_words, pieces
from btp.runner.explain.layers import MOST_LAYERS
from btp.tasks.pocketdocs.task import PocketDocs
from btp.tasks.pocketdocs.vocabulary import words

KNORM = {"_target_": "btp.pruners.knorm.KNorm"}
FASTV = {"_target_": "btp.pruners.fastv.FastV", "score": "probs", "query": "last", "seed": 0}


def call_of(method, schedule, n=3):
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([17])
    with attach(host, method, schedule) as trace:
        steps(host, inputs, n=n)
    return trace.last, host.layout(inputs).visual[0]


@pytest.mark.parametrize("name", ["snapkv", "tova", "a2sf", "paged heads"])
def test_what_a_cache_holds(name):
    """As many places as slots, and those that did not leave; heads are counted one by one, steps not at all."""
    call, visual = call_of(*METHODS[name])
    shares = held(call, visual)
    assert shares.sum(1).tolist() == pytest.approx([layer[0] for layer in call.held], abs=1e-4)
    for at in range(4):
        heads = call.gone(f"llm.cache.{at}", step=0)[0]
        for place in range(17):
            assert shares[at, place] == pytest.approx(sum(place not in gone for gone in heads) / len(heads), abs=1e-6)


@pytest.mark.parametrize("method", [FastV(score="probs", query="last", seed=0), LazyLLM()], ids=["fastv", "lazyllm"])
def test_what_enters_a_layer(method):
    """Of stages between layers: the tokens that went on, and the last one, from there on."""
    pairs = (("llm.layer.1", 0.7), ("llm.layer.3", 0.5))
    schedule = both(*pairs) if isinstance(method, LazyLLM) else Schedule(tuple(Stage(*pair) for pair in pairs))
    call, visual = call_of(method, schedule)
    shares = held(call, visual)
    assert set(shares.unique().tolist()) == {0.0, 1.0}
    assert shares.sum(1).tolist() == [layer[0] for layer in call.tokens]
    assert shares[:, -1].all()
    assert torch.equal(shares[1], shares[2])


def test_words_of_a_prompt():
    """Per sample, arm and layer; nothing of arms without stages; long prompts lose their middle."""
    tokenizer = build_text_tokenizer(words())
    host = tiny_text.text_lm("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    loaded = Loaded(host, TextProcessor(tokenizer, chat=True))
    samples = [replace(PocketDocs("test", 0, 9, lengths=[n])[0], id=str(n)) for n in (256, 1024)]
    cache, cut = Schedule((Stage("llm.cache.*", 64),)), Schedule((Stage("llm.layer.2", 40),))
    arms = [Arm.unpruned(99), Arm("knorm", "method", KNORM, cache), Arm("fastv", "control", FASTV, cut)]
    found = kept_words(loaded, arms, samples)
    short, long = (found[s.id] for s in samples)
    assert set(short["arms"]) == {"knorm", "fastv"}
    assert "".join(short["words"]).startswith(" <s> USER :")
    assert short["left_out"] == 0
    for shares in short["arms"]["knorm"].values():
        assert sum(shares) == pytest.approx(100 * 64, abs=len(shares))
    assert list(short["arms"]["fastv"]) == ["2", "3"]
    assert all(sum(shares) == 100 * 41 for shares in short["arms"]["fastv"].values())
    assert len(short["arms"]["knorm"]) <= MOST_LAYERS
    assert len(long["words"]) == MOST_WORDS == len(long["arms"]["fastv"]["2"])
    assert long["left_out"] > 0


def test_pieces_have_their_spaces():
    """Tokenizers that mark the beginning of a word, and those whose tokens are words."""

    class Marked:
        names = ("▁the", "▁co", "de")

        def convert_ids_to_tokens(self, ids):
            return [self.names[i] for i in ids]

        def decode(self, ids):
            return self.names[ids[0]].removeprefix("▁")

    assert pieces(Marked(), [0, 1, 2]) == [" the", " co", "de"]
    tokenizer = build_text_tokenizer(words())
    ids = tokenizer("document 3 :", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == " document 3 :"


def test_neighbours_of_one_shade_are_one_piece_of_the_page():
    assert shaded([" a", " b", " c"], [100, 100, 0]) == [{"text": " a b", "share": 100}, {"text": " c", "share": 0}]
