"""`btp.export`: a choice in front of the language model as a plug-in file for vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from jinja2 import Environment, StrictUndefined

from btp.api.catalogue import methods
from btp.api.hosts import host_of
from btp.api.plan import arm_for, words_of
from btp.results.atomic import write_text
from btp.results.shipped import VERSION
from btp.runner.arms import Arm

TEMPLATE = Path(__file__).with_name("vllm_plugin.jinja")
FAMILY = "llava"
SITE = "llm.input"


def export(
    model: Any,
    method: str,
    file: str | Path,
    *,
    budget: float | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Path:
    """Write a plug-in for vLLM that keeps of each picture what a method would keep in front of the language model.

    The file says what of it is tested and what is not: it was never run inside of vLLM.

    Args:
        model: Model of transformers, of the LLaVA family (LLaVA-1.5): pictures of one size and number of tokens.
        method: Method that decides once, at llm.input, by the features of the picture alone, as divprune and random do.
        file: File to write, a .py.
        budget, overrides, settings: as of `attach`.

    Raises:
        ValueError: another family, a method that a picture's features do not decide, or no name of a module.
    """
    file = Path(file)
    if file.suffix != ".py" or not file.stem.isidentifier() or not file.parent.is_dir():
        raise ValueError(f"{file} is no place for a plug-in. Name a module, NAME.py, in a folder that is there.")
    host = host_of(model)
    family = host.model.config.model_type  # type: ignore[union-attr]
    if family != FAMILY:
        raise ValueError(f"btp.export writes plug-ins for {FAMILY} models (LLaVA-1.5), and this one is {family}.")
    arm = arm_for(host, words_of(method, None, budget, settings, overrides), None, None, None)
    _check(arm)
    total = int(host.visual_mask(host.example(1, 1, height=1, width=1))[0].sum())  # type: ignore[attr-defined]
    stage = arm.schedule[0]
    keep = stage.count(total)
    written = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = written.render(
        title=methods()[arm.name].split(":")[0],
        name=arm.name,
        module=file.stem,
        version=VERSION,
        method=pformat(_plain(arm.method), sort_dicts=False),
        stage=pformat({"site": SITE, "keep": keep, "positions": "renumber", "settings": dict(stage.settings)}),
        total=total,
        keep=keep,
    )
    write_text(file, text)
    return file


def _check(arm: Arm) -> None:
    """Refuse what a picture's features alone do not decide, or what is no choice."""
    pruner, stages = arm.build(), arm.schedule
    if pruner is None or len(stages) != 1 or str(stages[0].site) != SITE:
        sites = ", ".join(str(stage.site) for stage in stages) or "nowhere"
        raise ValueError(
            f"{arm.name} decides at {sites}, but a plug-in for vLLM chooses once, at {SITE}. Choose one that does, "
            'as divprune, or pass overrides=["pruner.schedule=[{site: llm.input, keep: fit, positions: renumber}]"].'
        )
    needed = pruner.needs(stages[0])
    if needed or pruner.adaptive:
        what = f"asks for {needed[0]}" if needed else "decides itself how many tokens stay"
        raise ValueError(f"{arm.name} {what}, which a plug-in for vLLM cannot have. Choose another, as divprune.")
    if stages[0].positions != "renumber":
        raise ValueError(
            f"{arm.name} keeps the positions that tokens had, but vLLM numbers what it is given anew. Pass "
            'overrides=["pruner.schedule.0.positions=renumber"].'
        )


def _plain(method: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(method or {})
