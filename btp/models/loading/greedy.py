"""Greedy decoding with a growing cache, whatever a checkpoint's generation config asks for.

Arms can only be compared where nothing but the pruner differs, and penalties, beams or a missing cache act on a pruned
prompt otherwise than on a whole one. A checkpoint says which tokens begin and end a text, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from btp.models.loading.checkpoint import read_config, read_json

FILE = "generation_config.json"
SPECIAL = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
NAMED = (*SPECIAL, "pad_token_id", "transformers_version", "_from_model_config", "_commit_hash")  # no settings
FORWARD = {"use_cache": True, "return_dict": True, "output_attentions": False, "output_hidden_states": False}


@dataclass(frozen=True)
class Asked:
    """What a checkpoint's files say of generation.

    Attributes:
        special: ids of special tokens that its generation_config.json names; None without that file.
        aside: settings that would change how answers are made, by name.
    """

    special: Mapping[str, Any] | None
    aside: Mapping[str, Any]

    def note(self) -> str | None:
        """What is set aside, in a sentence; None where nothing is."""
        if not self.aside:
            return None
        listed = ", ".join(f"{key}={value!r:.40}" for key, value in sorted(self.aside.items()))
        return f"answers are greedy, with a cache; what the checkpoint's files ask for otherwise is set aside: {listed}"


def asked_generation(folder: Path) -> Asked:
    """Read a checkpoint's generation_config.json, and what of its config.json changes how answers are made.

    Raises:
        ValueError: the file is broken, or a special token is no id.
    """
    about, file = read_config(folder), folder / FILE
    own = read_json(file, "Restore it from the original model, or remove it.") if file.is_file() else None
    parts = [part for part in about.values() if isinstance(part, dict)]
    found = [{key: part[key] for key in FORWARD if key in part} for part in (*parts, about)]
    found += [own if own is not None else {key: about[key] for key in vars(GenerationConfig()) if key in about}]
    found += [{code.parent.name: code.name} for code in folder.glob("custom_generate/generate.py")]
    for key in SPECIAL:
        _check_ids(file, key, (own or {}).get(key))
    special = None if own is None else {key: own.get(key) for key in SPECIAL}
    aside = {key: value for said in found for key, value in said.items() if not _neutral(key, value)}
    return Asked(special, aside)


def make_greedy(model: Any, special: Mapping[str, Any] | None = None, padding: int | None = None) -> None:
    """Set a model's generation config to greedy decoding, for every caller.

    Args:
        model: Model of transformers; its generation config and what its configs say of forwards are replaced.
        special: ids of special tokens; None takes those of its config.
        padding: id that stands behind answers that ended earlier than others, which must not be decoded; None takes
            that of its config.
    """
    default = GenerationConfig.from_model_config(model.config)
    ids = special if special is not None else {key: getattr(default, key) for key in SPECIAL}
    padding = default.pad_token_id if padding is None else padding
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, pad_token_id=padding, **ids
    )
    for module in model.modules():
        config = getattr(module, "config", None)
        for key, value in FORWARD.items():
            if getattr(config, key, value) != value:
                setattr(config, key, value)


def _neutral(key: str, value: Any) -> bool:
    """Whether a setting leaves greedy answers as they are, or is what it would be anyway."""
    usual = FORWARD | GenerationConfig._get_default_generation_params()
    return key in NAMED or value == usual.get(key) or not (value or usual.get(key))


def _check_ids(file: Path, key: str, value: Any) -> None:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(
            f"{file}: {key} is {value!r:.60}, but it is the id of a token, or a list of ids. Correct it, or restore "
            "the file from the original model."
        )
