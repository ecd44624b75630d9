"""Tiny random checkpoints of real families: built, saved with a real processor, and loaded as a user's would be.

A family's file holds `FAMILIES`, a tuple of `Family`. Everything here takes a family by the name of its yaml.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from btp.models.loading.load import Loaded, find_checkpoint, load

HERE = Path(__file__).parent
CONF = HERE.parents[1] / "conf"
CORPUS = (
    "USER: What is shown in the image? ASSISTANT: a red square",
    "yes no A B C D 0 1 2 3 4 5 6 7 8 9",
    "answer the question with a single word or phrase; what is left of the blue circle",
)
# a decoder that every family shares; its own file adds what differs
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Picture:
    """A picture of noise of this size in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Video:
    """A video of noise."""

    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: of its yaml in conf/model.
        build: () -> (model, processor), tiny; weights are drawn anew by `checkpoint`.
        sizes: of three pictures that the family sees as different numbers of tokens, where it can.
        video: a video that the family takes; None where it takes none.
        inputs: (processor, texts, images, videos) -> inputs, where the processor cannot make them all alone;
            images and videos are lists over all rows, in order, or None.
    """

    name: str
    build: Callable[[], tuple[Any, Any]]
    sizes: tuple[Picture, Picture, Picture]
    video: Video | None = None
    inputs: Callable[..., Any] | None = None


@functools.cache
def families() -> dict[str, Family]:
    """All families of this folder by name."""
    skipped = ("__init__", "kit", "hiding", "support")
    files = [p.stem for p in sorted(HERE.glob("*.py")) if p.stem not in skipped and not p.stem.startswith("test_")]
    found = [family for stem in files for family in importlib.import_module(f"families.{stem}").FAMILIES]
    return {family.name: family for family in found}


def tokenizer(*special: str, template: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of some hundred tokens that pads on the left.

    Args:
        special: further tokens that are never split.
        template: chat template.
        named: further special tokens that the tokenizer knows by name, as image_token="<image>".
    """
    base = ["<pad>", "<s>", "</s>"]
    every = list(dict.fromkeys([*base, *named.values(), *special]))
    made = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=every, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named,
        additional_special_tokens=list(special) or None,
        model_max_length=4096,
        chat_template=template,
    )


def chat(image: str, video: str = "") -> str:
    """A chat template that writes `image` and `video` in place of the parts of a turn, and the text behind."""
    return (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + image + "{% elif c['type'] == 'video' %}" + video + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


@functools.cache
def checkpoint(name: str) -> Path:
    """The folder of a family's checkpoint, made once a session and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    weakref.finalize(families()[name], shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    model, processor = families()[name].build()
    for weight in model.parameters():
        if weight.dim() > 1:  # wide enough that every token matters
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = None  # every answer runs to its last step
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def loaded(name: str, attention: str = "sdpa", dtype: str = "float32") -> Loaded:
    """The checkpoint as `run.py model=NAME model.path=...` loads it."""
    overrides = [f"model={name}", f"model.path={checkpoint(name)}", f"model.dtype={dtype}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[*overrides, f"model.attention={attention}", "model.quantize=null"])
    settings = OmegaConf.to_container(config.model, resolve=True)
    return load(settings, find_checkpoint(settings), torch.device("cpu"))


def rows(name: str) -> dict[str, list[list[str | Picture | Video]]]:
    """Prompts by name: what every proof runs over. Each row is a list of texts, pictures and videos in order."""
    family = families()[name]
    a, b, c = family.sizes
    found: dict[str, list[list[Any]]] = {
        "one row": [["what is ", a, "shown in the image?"]],
        "left padded, unequal pictures": [[b, "yes or no?"], ["what ", a, "is left ", c, "of the circle"]],
        "text beside pictures": [["a single word"], [c, "what is shown?"]],
    }
    if family.video is not None:
        found["video"] = [["what is ", family.video, "shown?"]]
        found["video beside a picture"] = [[family.video, "what is shown?"], [a, "is it red?"]]
    return found


def batch(
    name: str, asked: Sequence[Sequence[str | Picture | Video]], host: Loaded | None = None, first: int = 0
) -> dict[str, Any]:
    """Padded inputs of these prompts through the chat template and the processor.

    Args:
        name: of the family.
        asked: rows of texts, pictures and videos.
        host: a model of the family that was loaded otherwise.
        first: number of the first picture; pictures of the same number are the same noise.
    """
    host = host or loaded(name)
    texts, images, videos = [], [], []
    for row in asked:
        content = []
        for part in row:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            elif isinstance(part, Picture):
                content.append({"type": "image"})
                images.append(Image.fromarray(_noise(1, part, first + len(images))[0]))
            else:
                content.append({"type": "video"})
                videos.append(_noise(part.frames, part, first + len(videos)))
        messages = [{"role": "user", "content": content}]
        texts.append(host.processor.apply_chat_template(messages, add_generation_prompt=True))
    make = families()[name].inputs
    if make is not None:
        inputs = make(host.processor, texts, images or None, videos or None)
    else:
        pictures = {"images": images or None} | ({"videos": videos} if videos else {})
        inputs = host.processor(text=texts, padding=True, return_tensors="pt", **pictures)
    dtype = host.host.dtype
    return {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}


def _noise(frames: int, size: Picture | Video, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (frames, size.height, size.width, 3), dtype=np.uint8)
