"""Small files of a checkpoint that do not go with its weights are named at load, with their keys."""

import json

import pytest
import torch
from families import kit
from saved import copied, edit, settings, whole

from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.models.loading.trial import try_picture, try_prompt

__all__ = ["copied", "whole"]  # fixtures
TEXT_ONLY = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %} ASSISTANT:"
BLIND = "{% for m in messages %}{{ m['role'] + ': ' + m['content'][-1]['text'] }}{% endfor %} ASSISTANT:"
PRINTED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %} ASSISTANT:"
PROCESSOR = "processor_config.json"


def loaded(folder):
    config = settings(folder)
    return load(config, find_checkpoint(config), torch.device("cpu"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"patch_size": None},
            r"cannot prepare a picture: unsupported operand.*processor_config.json: .*patch_size=None",
        ),
        (
            {"num_additional_image_tokens": None},
            r"do not match.*processor_config.json: .*num_additional_image_tokens=0",
        ),
        ({"patch_size": 4}, r"does not take what its processor makes of a picture: .*patch_size=4"),
        ({"vision_feature_select_strategy": "full"}, r"does not take .*vision_feature_select_strategy='full'"),
    ],
)
def test_settings_of_a_processor_that_miss_are_named(copied, keys, message):
    edit(copied / PROCESSOR, **keys)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


def test_pictures_of_another_size_are_named(copied):
    about = json.loads((copied / PROCESSOR).read_text())
    size = {"height": 32, "width": 32}
    edit(copied / PROCESSOR, image_processor=about["image_processor"] | {"size": size})
    with pytest.raises(ValueError, match=r"does not take what its processor makes.*size=\{'height': 32, 'width': 32\}"):
        loaded(copied)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT_ONLY, r"chat_template.jinja \(chat_template\) cannot write a question about a picture: .*a text model"),
        (BLIND, r"chat_template.jinja \(chat_template\) leaves the picture out of a question about one: it writes"),
        (PRINTED, r"chat_template.jinja \(chat_template\) leaves the picture out"),
        ("{{ broken", r"chat_template.jinja \(chat_template\) cannot write a question"),
    ],
)
def test_a_template_without_pictures_is_named(copied, template, message):
    (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


def test_a_template_in_another_file_is_named_there(copied):
    (copied / "chat_template.jinja").unlink()
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": TEXT_ONLY}))
    with pytest.raises(ValueError, match=r"chat_template.json \(chat_template\) cannot write"):
        loaded(copied)


def test_without_a_pad_token_another_special_one_pads(whole, copied):
    """Padding is masked and not decoded, so any will do; where there is none, the file is named."""
    edit(copied / "tokenizer_config.json", pad_token=None)
    odd = loaded(copied)
    tokenizer = odd.processor.tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token
    assert odd.host.model.generation_config.pad_token_id == tokenizer.eos_token_id
    edit(copied / "tokenizer_config.json", eos_token=None, bos_token=None)
    with pytest.raises(ValueError, match=r"tokenizer_config.json names neither pad_token nor eos_token"):
        loaded(copied)


def test_a_token_that_the_model_does_not_know_is_named(copied):
    edit(copied / "tokenizer_config.json", pad_token="<[PAD]>")
    with pytest.raises(
        ValueError, match=r"tokenizer.json .* gives '<\[PAD\]>' the id \d+, but the model has embeddings"
    ):
        loaded(copied)


def test_a_mark_of_pictures_that_the_model_does_not_know_is_named(copied):
    edit(copied / "config.json", image_token_id=60, image_token_index=60)
    with pytest.raises(
        ValueError, match=r"config.json: its image_token_id does not occur .* writes '<image>' \(id 4\)"
    ):
        loaded(copied)


@pytest.mark.parametrize("name", sorted(kit.families()))
def test_every_family_takes_the_picture_and_its_decoder_does_not_run(name):
    whole = kit.loaded(name)
    ran = []
    hook = whole.host.layers[0].register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        folder = kit.checkpoint(name)
        try_picture(folder, whole.processor, whole.host, try_prompt(folder, whole.processor))
    finally:
        hook.remove()
    assert not ran
    assert not whole.host.decoder._forward_pre_hooks
