"""A small checkpoint of an ordinary LLaVA on disk, as the tests of loading find and spoil it."""

import json
import shutil

import pytest
import torch

from btp.models.embedded.pocket import build_model, build_processor
from btp.tasks.pocketvqa.questions import words

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A random LLaVA in several shards, with a real processor."""
    folder = tmp_path_factory.mktemp("load") / "llava"
    torch.manual_seed(0)
    processor = build_processor(words(), side=24, patch=8)
    text = SMALL | {"num_key_value_heads": 2}
    model = build_model(processor.tokenizer, side=24, patch=8, vision=SMALL, text=text)
    model.save_pretrained(folder, max_shard_size="200KB")
    processor.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """One of its own, to spoil."""
    return shutil.copytree(whole, tmp_path / "copy")


def settings(folder=None, **keys):
    """The model group's keys."""
    base = {"name": "tiny", "path": str(folder), "hub": None, "revision": None, "weights": "pretrained", "config": None}
    rest = {"dtype": "float32", "attention": "sdpa", "download": False}
    return base | rest | keys


def edit(path, **keys):
    """Change keys of a JSON file; None removes one."""
    found = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
