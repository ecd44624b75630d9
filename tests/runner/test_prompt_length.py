"""A prompt that is longer than what the model reads is named before the first answer."""

import pytest
from families import kit
from PIL import Image

from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.prompts.prompt_length import check_lengths, context_of
from btp.tasks.sample import Sample


def sample(name, words):
    return Sample(name, [Image.new("RGB", (60, 60))], " ".join(["red"] * words), "a", "all")


@pytest.fixture
def loaded():
    """A model whose text config says its context; it gets its own back."""
    found = kit.loaded("llava15")
    text, tokenizer = found.host.model.config.get_text_config(), found.processor.tokenizer
    before = text.max_position_embeddings, tokenizer.model_max_length
    yield found
    text.max_position_embeddings, tokenizer.model_max_length = before


def measured(loaded, one):
    """Tokens of a prompt, and those of its picture."""
    inputs = Collate(loaded.processor)([one]).inputs
    return inputs["input_ids"].shape[1], int(loaded.host.visual_mask(inputs)[0].sum())


@pytest.mark.parametrize("says", ["max_position_embeddings", "model_max_length"])
def test_a_prompt_longer_than_the_context(loaded, says):
    few, many = sample("few", 2), sample("many", 40)
    (length, visual), collate = measured(loaded, many), Collate(loaded.processor)
    of = {
        "max_position_embeddings": loaded.host.model.config.get_text_config(),
        "model_max_length": loaded.processor.tokenizer,
    }
    setattr(of[says], says, length)
    check_lengths([few, many], [visual, visual], loaded, collate)
    setattr(of[says], says, length - 1)
    said = rf"sample many: its prompt has {length} tokens, {visual} of them visual, but the model reads {length - 1} at"
    for order in ([few, many], [many, few]):
        with pytest.raises(ValueError, match=said):
            check_lengths(order, [visual, visual], loaded, collate)
    assert says in context_of(loaded)[1]


def test_only_doubtful_prompts_are_made(loaded):
    made = []

    def collate(samples):
        made.extend(one.id for one in samples)
        return Collate(loaded.processor)(samples)

    samples = [sample(f"s{words}", words) for words in (1, 2, 3, 200)]
    (length, visual) = measured(loaded, samples[-1])
    loaded.host.model.config.get_text_config().max_position_embeddings = length
    check_lengths(samples, [visual] * 4, loaded, collate)
    assert set(made) <= {"s1", "s200"}
