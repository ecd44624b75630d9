"""The prompt is the one that transformers builds from the same turns, in every family: one BOS, or none, as it does."""

import copy

import numpy as np
import pytest
import torch
from crossings import one_by_one
from PIL import Image
from tokenizers.processors import TemplateProcessing

from btp.models.chat_template import chat_inputs
from btp.runner.evaluation.data import Collate
from btp.tasks.sample import Sample
from families import kit

NAMES = sorted(kit.families())
WRITES = {
    "the template writes BOS": "{{ bos_token }}",
    "the template writes none": "",
    "a system text of its own": "{{ bos_token }}SYSTEM: a single word ",
    "BOS with a system turn alone": "{% if messages[0]['role'] == 'system' %}{{ bos_token }}{% endif %}",
}
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for i, (width, height) in enumerate(((60, 40), (30, 84)))
]


def processor_of(name, begin, adds):
    """A family's processor, whose template begins with `begin` and whose tokenizer adds BOS or does not."""
    made = copy.deepcopy(kit.loaded(name).processor)
    bos = (made.tokenizer.bos_token, made.tokenizer.bos_token_id)
    single = f"{bos[0]} $A" if adds else "$A"
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[bos])
    made.chat_template = begin + made.chat_template
    return made


def turns(question, pictures=(), system=None):
    shown = [{"type": "image", "image": picture} for picture in pictures]
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
    return [*([{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []), asked]


def oracle(processor, chat):
    """What transformers makes of one chat."""
    made = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return made["input_ids"][0].tolist()


def real(inputs):
    """Rows of a batch without their padding."""
    pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


@pytest.mark.parametrize(("begin", "tokenizer"), one_by_one(WRITES, ["adds BOS", "adds none"]))
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_transformers_makes_of_each_alone(name, begin, tokenizer):
    """With a picture, with two, without; with and without a system turn; alone and together in one batch."""
    processor = processor_of(name, WRITES[begin], tokenizer == "adds BOS")
    rows = [
        (turns("what is shown?", PICTURES[:1]), PICTURES[:1]),
        (turns("what is left of the circle?", PICTURES, "answer with a single word"), PICTURES),
        (turns("yes or no?"), []),
        (turns("yes or no?", system="answer the question"), []),
    ]
    wanted = [oracle(processor, chat) for chat, _ in rows]
    for (chat, pictures), row in zip(rows, wanted, strict=True):
        inputs, _ = chat_inputs(processor, [chat], [pictures])
        assert real(inputs) == [row]
    inputs, _ = chat_inputs(processor, *zip(*rows, strict=True))
    assert real(inputs) == wanted
    assert {row.count(processor.tokenizer.bos_token_id) for row in wanted} <= {0, 1}


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("begin", WRITES)
def test_a_tasks_samples_are_such_turns(begin, adds):
    """All tensors of a batch, not the tokens alone."""
    processor = processor_of("gemma3", WRITES[begin], adds)
    samples = [
        Sample(str(i), images=(picture,), question="what is shown?", reference="", ability="")
        for i, picture in enumerate(PICTURES)
    ]
    ours = Collate(processor)(samples).inputs
    chats = [turns(sample.question, sample.images) for sample in samples]
    theirs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
