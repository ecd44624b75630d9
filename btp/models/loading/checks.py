"""Checks of a checkpoint's config.json: library version, kind of model, attention kernels, remote code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from packaging.version import InvalidVersion, Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.import_utils import is_flash_attn_2_available

from btp.models.loading.checkpoint import model_folder, read_config
from btp.models.loading.kinds import Kind
from btp.tasks.shown import short

OLDEST, NEWEST = "5.20", "6"
TESTED = ("5.20", "5.23", "5.24")  # 5.23: all tests; the others: make test-transformers


def check_library() -> None:
    """Refuse a transformers whose decoder loop the engine does not know; tell of one that was never tried.

    Raises:
        ValueError: outside the supported versions.
    """
    found, tried = Version(transformers.__version__), " and ".join(TESTED)
    if not Version(OLDEST) <= found < Version(NEWEST):
        raise ValueError(
            f"transformers {found} is installed, but btp supports {OLDEST} up to, not including, {NEWEST}, and was "
            f"tested with {tried}. Install the version that requirements.txt names."
        )
    if f"{found.major}.{found.minor}" not in TESTED:
        warnings.warn(
            f"transformers {found} is installed, but btp was tested with {tried} alone. Its models may call things by "
            "other names: where something fails, install the version that requirements.txt names.",
            stacklevel=2,
        )


def check_kind(folder: Path, trusted: bool, kind: Kind) -> None:
    """Refuse what no class of transformers for this kind of models can read.

    Args:
        folder: Folder of the checkpoint.
        kind: Kind that the host is for.
        trusted: run the Python files that the checkpoint brings along.

    Raises:
        ValueError: code of its own that nobody trusted, a family that this transformers does not know, a model
            of another kind, or a format that only its authors' code reads.
    """
    about = read_config(folder)
    family = about["model_type"]
    classes = about.get("architectures") or []
    strange = [name for name in classes if not hasattr(transformers, name)]
    if about.get("auto_map") and (family not in CONFIG_MAPPING or strange):
        if not trusted:
            refuse_code(folder, about["auto_map"])
        return
    if family not in CONFIG_MAPPING:
        raise ValueError(
            f"the checkpoint in {folder} is of the family {family}, which transformers {transformers.__version__} does "
            f"not know.{saved_with(about)} Set model.path to a family that docs/models.md lists."
        )
    if family not in kind.families:
        raise ValueError(f"the checkpoint in {folder} is of the family {family}, which {kind.refusal}")
    if classes and len(strange) == len(classes):
        raise ValueError(
            f"the checkpoint in {folder} is of the class {strange[0]}, which transformers {transformers.__version__} "
            f"does not have: it is in the format of its authors' own code.{saved_with(about)} Set model.path to the "
            "version for transformers, whose name often ends in -hf."
        )
    _check_settings(model_folder(folder), family)


def _check_settings(folder: Path, family: str) -> None:
    """Refuse a config.json that its own class cannot read, before a processor that reads it is blamed."""
    try:
        transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"{folder / 'config.json'} cannot be read as the config of a {family} model: {short(error)}. Correct or "
            "restore it from the original model."
        ) from error


def check_attention(asked: str) -> None:
    """Refuse kernels that are not there.

    Raises:
        ValueError: says what to install, and what does without.
    """
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "model.attention is flash_attention_2, which needs the package flash-attn and a GPU, and one of them is "
            "missing. Install it (pip install flash-attn), or set model.attention=sdpa, which takes torch's own fused "
            "kernels."
        )


def refuse_code(folder: Path, auto_map: Mapping[str, Any] | None = None) -> None:
    """Name the key that lets a checkpoint run code of its own.

    Raises:
        ValueError: always.
    """
    targets = [t for value in (auto_map or {}).values() for t in (value if isinstance(value, list) else [value]) if t]
    files = sorted({str(target).rsplit("--", 1)[-1].split(".")[0] + ".py" for target in targets})
    named = f" ({', '.join(files)})" if files else ""
    raise ValueError(
        f"the checkpoint in {folder} brings Python code of its own{named}, which transformers would run. Use a version "
        "of the model for transformers itself (its name often ends in -hf), or set model.trust_remote_code=true if "
        "you trust its authors."
    )


def saved_with(about: Mapping[str, Any]) -> str:
    """Where a checkpoint was saved by a newer transformers than the installed one: both versions; else nothing."""
    asked, found = about.get("transformers_version"), transformers.__version__
    try:
        newer = asked is not None and Version(str(asked)) > Version(found)
    except InvalidVersion:
        return ""
    return f" It was saved by transformers {asked}, and {found} is installed; a newer one may read it." if newer else ""
