"""Which method works on which family, found by running each: `python -m families.support` writes docs/support.md.

`--pruner NAME` runs that one alone, and takes what the page says of the others.

A method works where it prunes a padded batch of unequal pictures through prefill and decode, and where removing equals
hiding for all that it only removes. Where it is refused and the message names a setting of the pruner that would do,
that is tried too.
"""

from __future__ import annotations

import argparse
import re
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from oracle import steps, withdrawn
from slot_oracle import hiding_slots
from toys import Content, plan

from btp.core.cache_pruner import CachePruner
from btp.core.schedule import Schedule
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.checks.plan import make_plan
from btp.engine.checks.signals import check_frames, check_signal
from btp.runner.arms import build_arms, build_method
from btp.runner.evaluation.oracle_targets import aim_nowhere
from btp.schedules.meet import facts_of, pictures_of
from btp.schedules.plan import Sources
from families import kit
from families.hiding import hiding

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
YAMLS = {p.stem: OmegaConf.load(p) for p in (kit.CONF / "pruner").glob("*.yaml")}
# What leaves tokens out, of a model with a language model: no stages at all are no pruning.
METHODS = sorted(name for name, found in YAMLS.items() if "tower" not in found and found.get("schedule") != [])
TRAINED = [name for name in METHODS if "weights" in YAMLS[name]]
ALWAYS = ("schedule=auto", "stages=2", "budget.nearest=true", "budget.share=0.4")
GIVEN = {
    "vflowopt": ("pruner.strategy=given",),  # a search needs answers, which tiny random models do not give
    "withdraw": ("pruner.layer=2",),
}
SETTING = re.compile(r"pruner\.(?:method|schedule)[\w.]*=[\w.]*\w")
POSITIONS = "positions=original"
TRIES = 6
REFUSAL = re.compile(r"- (?P<methods>\w+(?:, \w+)*)(?: works with `(?P<setting>[^`]+)`; without it)?: (?P<reason>.+)")
FACTS = ("- Visual tokens: ", "- In the vision tower: ")  # of a family
INSIDE = (("attention", "cls"), ("attention", "mean"), ("queries", None), ("keys", None), ("values", None))
SITES = ("vision.layer.1", "vision.mlp.0", "vision.output")
TOLERANCE = 2e-6
SLOTS = 24  # of every cache: holds each method's window or pages, and is less than the longest test prompt
HEAD = """# What works where

Every method on every family, found by running it on a tiny random checkpoint of the family: a batch with left padding
and pictures of unequal sizes, prefill and three decode steps. Where a method only removes tokens from the language
model, removing was held against hiding, and so was evicting from the K/V cache, in every step. Methods that learn ran
untrained. This page is written by `make support`, and a test holds it against the code. Methods for [models without a
language model](vision_models.md) (their yaml says `tower: vision`) have no column.

- `+` works
- `=` works with the setting named below the table
- `-` refused, before anything runs or in the first forward, for the reason given below the table

In the language model every signal and every site from `llm.input` on is there for all of them.

"""


@dataclass(frozen=True)
class Outcome:
    """How a method fared on a family.

    Attributes:
        mark: + works, = works with `setting`, - refused.
        setting: what had to be set.
        reason: the message of the refusal.
    """

    mark: str
    setting: str = ""
    reason: str = ""


def outcome(family: str, method: str) -> Outcome:
    """Run a method on a family, and where it is refused again with the settings that the message names."""
    words: list[str] = []
    first = reason = ""
    for _ in range(TRIES):
        try:
            run(family, method, *words)
        except (ValueError, RuntimeError) as error:
            if not ours(error):
                raise
            said = " ".join(str(error).split())
            if not any(".site=" in word for word in words):  # only some methods can move, and the stages may not follow
                reason = said
            named = [word for word in _settings(said, method) if word not in words]
            first = first or reason
            if not named:
                break
            words += named
        except ConfigCompositionException:
            break  # a composition keeps its parts' settings elsewhere
        else:
            last = {word.partition("=")[0]: word for word in words}  # of two values, as Hydra
            return Outcome("=", " ".join(last.values()), first) if words else Outcome("+")
    return Outcome("-", reason=reason)


def _settings(reason: str, method: str) -> list[str]:
    """What a message says to set; of positions on every stage, since stages of a small model may fall together."""
    named = SETTING.findall(reason)
    stages = OmegaConf.load(kit.CONF / "pruner" / f"{method}.yaml").get("schedule") or ()
    if any(word.endswith(POSITIONS) for word in named):
        named += [f"pruner.schedule.{i}.{POSITIONS}" for i in range(len(stages))]
    return list(dict.fromkeys(named))


def ours(error: Exception) -> bool:
    """Whether the framework refused, and not a tensor operation that could not go on."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(kit.CONF.parent / "btp")


def run(family: str, method: str, *more: str) -> None:
    """Plan and run a method as the runner would.

    Raises:
        ValueError, RuntimeError: what the framework says.
        AssertionError: removing is not hiding, or nothing was pruned.
    """
    host = kit.loaded(family).host
    inputs = kit.batch(family, kit.rows(family)["left padded, unequal pictures"])
    with initialize_config_dir(str(kit.CONF), version_base="1.3"):
        untrained = ["pruner.weights=none"] if method in TRAINED else []
        words = [f"pruner={method}", *ALWAYS, *untrained, *GIVEN.get(method, ()), *more]
        config = OmegaConf.to_container(compose("config", overrides=words), resolve=True) | {"command": ""}
    config["controls"] = {}
    if isinstance(build_method(method, config["pruner"]["method"]), CachePruner):
        run_on_slots(host, inputs, config["pruner"])
        return
    if config["pruner"]["schedule"] is None or config["pruner"].get("parts"):
        config["schedule"] = {"kind": "auto", "balance": {"first": 0.6, "last": 1.0}, "withdraw_last": False}
    total = int(host.visual_mask(inputs)[0].sum())
    facts = facts_of(host, total, pictures_of(inputs))
    stages = [
        {"site": "llm.layer.1", "keep": "fit", "balance": 0.6},
        {"site": "llm.layer.3", "keep": "fit", "balance": 1.0},
    ]
    arms, _ = build_arms(config, facts, Sources(lambda: stages, lambda pruner: pruner))
    arm = arms[-1]
    make_plan(host, arm.build(), arm.schedule)
    pruner = arm.build()
    aim_nowhere(pruner, len(inputs["input_ids"]))
    with attach(host, pruner, arm.schedule) as trace:
        tokens, logits = steps(host, inputs)
    assert torch.isfinite(logits).all()
    assert any(trace.fired.values()), "nothing was pruned"
    call = trace[0]
    merged = any(stage.sizes is not None for stage in call.stages)
    renumbered = any(stage.positions == "renumber" for stage in arm.schedule)
    returns = any(stage.in_decode and stage.settings.get("revive", True) for stage in arm.schedule)
    if merged or renumbered or returns or any(stage.site.tower == "vision" for stage in arm.schedule):
        return  # another proof is theirs: tests/engine/test_merging, test_tower, test_positions, test_lazy
    visual = host.visual_mask(inputs)
    emptied = [stage.site.layer for stage in arm.schedule if stage.site.kind == "cache"]  # of frames, behind the prompt
    later = [(emptied, [places.nonzero().flatten().tolist() for places in visual])] if emptied else ()
    with hiding(host, inputs, withdrawn(inputs, visual, call), later):
        hidden_tokens, hidden_logits = steps(host, inputs)
    assert (logits - hidden_logits).abs().max() / hidden_logits.abs().max().clamp(min=1) < TOLERANCE
    assert torch.equal(tokens, hidden_tokens)


def run_on_slots(host, inputs, pruner: dict) -> None:
    """Evict from the K/V cache, and hide in every step what left: the prompt itself is whole.

    Raises:
        ValueError, RuntimeError: what the framework says.
        AssertionError: evicting is not hiding, or nothing left.
    """
    schedule = Schedule.from_config([stage | {"keep": SLOTS} for stage in pruner["schedule"]])
    with attach(host, build_method(pruner["name"], pruner["method"]), schedule) as trace:
        tokens, logits = steps(host, inputs, n=4)
    assert torch.isfinite(logits).all()
    assert any(trace.fired.values()), "nothing left"
    with hiding_slots(host, inputs, trace[0]):
        hidden_tokens, hidden_logits = steps(host, inputs, n=4)
    assert (logits - hidden_logits).abs().max() / hidden_logits.abs().max().clamp(min=1) < TOLERANCE
    assert torch.equal(tokens, hidden_tokens)


def row(family: str, found: dict[str, Outcome]) -> str:
    """A family's line of the table."""
    return f"| [{family}](#{family}) | " + " | ".join(found[method].mark for method in METHODS) + " |"


def section(family: str, found: dict[str, Outcome], facts: Sequence[str] = ()) -> str:
    """What there is to say about a family: its tokens, what can be seen and cut, refusals with their reason.

    Args:
        facts: the lines of its tokens and its tower, where they are known.
    """
    facts = facts or (f"{FACTS[0]}{places(family)}.", f"{FACTS[1]}{tower(family)}.")
    lines = [f"## {family}", "", *facts]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for method, one in found.items():
        if one.mark != "+":
            reason = one.reason.replace(f"'{method}'", "'...'")
            by_reason.setdefault((one.setting.replace(method, "..."), reason), []).append(method)
    for (setting, reason), methods in by_reason.items():
        works = f" works with `{setting}`; without it:" if setting else ":"
        lines.append(f"- {', '.join(methods)}{works} {reason}")
    return "\n".join(lines if by_reason else [*lines, "- All methods work."]) + "\n"


def places(family: str) -> str:
    """Where the visual tokens of a family's test pictures lie, and those of its video."""
    found = []
    shown = [*kit.families()[family].sizes, kit.families()[family].video]
    for part in dict.fromkeys(part for part in shown if part is not None):
        layout = kit.loaded(family).host.layout(kit.batch(family, [["what is ", part, "shown?"]]))
        coord = layout.coord[0][layout.visual[0]]
        on = coord[(coord >= 0).all(1)]
        grids = [tuple((on[on[:, 0] == frame][:, 1:].amax(0) + 1).tolist()) for frame in on[:, 0].unique()]
        named = ", ".join(f"{high} x {wide}" for high, wide in dict.fromkeys(grids))
        off = f" and {len(coord) - len(on)} off the grid" if len(on) < len(coord) else ""
        several = f" in {len(grids)} frames" if len(grids) > 1 else ""
        size = f"{part.width} x {part.height}"
        kind = "a picture" if isinstance(part, kit.Picture) else f"a video of {part.frames} frames"
        found.append(f"{kind} of {size} pixels has {len(coord)}{several} ({named}{off})")
    return "; ".join(found)


def tower(family: str) -> str:
    """What of the vision tower can be seen and cut."""
    host = kit.loaded(family).host
    signals = [Signal(kind, "vision.feature", rows) for kind, rows in INSIDE]
    signals += [Signal(kind, "vision.output") for kind in ("hidden", "pixels")]
    named = [(s, f"{s.kind}{f' ({s.rows})' if s.rows else ''} at {s.site}") for s in signals]
    seen = [name for s, name in named if _goes(check_signal, host, s, "")]
    cuts = [site for site in SITES if _goes(make_plan, host, Content(), plan((site, 0.5)))]
    found = f"signals {', '.join(seen) or 'none'}; stages {', '.join(cuts) or 'none'}"
    if not hasattr(host, "pool_frames"):
        return found
    blended = [name for s, name in named if name in seen and _goes(check_frames, host, (), [s], "")]
    return f"{found}; of videos, whose frames are interpolated, signals {', '.join(blended)}; stages none"


def _goes(check: Callable[..., object], *asked: object) -> bool:
    try:
        check(*asked)
    except ValueError:
        return False
    return True


def written(text: str) -> tuple[dict[str, dict[str, Outcome]], dict[str, list[str]]]:
    """What a page says: outcomes by family and method, and the lines of each family's facts."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    methods, found, facts = rows[0][1:], {}, {}
    for name, *marks in rows[1:]:
        family = name[1:].split("]")[0]
        found[family] = {method: Outcome(mark) for method, mark in zip(methods, marks, strict=True)}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        family, _, body = part.partition("\n")
        facts[family] = [line for line in body.splitlines() if line.startswith(FACTS)]
        for line in body.splitlines():
            said = None if line.startswith(FACTS) else REFUSAL.fullmatch(line)
            for method in said["methods"].split(", ") if said else ():
                found[family][method] = Outcome(found[family][method].mark, said["setting"] or "", said["reason"])
    return found, facts


def page(known: str = "", again: Collection[str] = METHODS) -> str:
    """All of docs/support.md.

    Args:
        known: a page, whose word is taken for the methods that are not run.
        again: methods to run; those that the page does not know are run too.
    """
    before, facts = written(known) if known else ({}, {})
    found = {}
    for family in sorted(kit.families()):
        old = before.get(family, {})
        found[family] = {m: outcome(family, m) if m in again or m not in old else old[m] for m in METHODS}
    table = ["| model | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    table += [row(family, one) for family, one in found.items()]
    sections = [section(family, one, facts.get(family, ())) for family, one in found.items()]
    return HEAD + "\n".join(table) + "\n\n" + "\n".join(sections)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page anew, all of it or one column."""
    parser = argparse.ArgumentParser(prog='make support ARGS="..."', description=__doc__.split("\n\n")[0])
    parser.add_argument("--pruner", choices=METHODS, metavar="NAME", help="run this one alone: a yaml of conf/pruner")
    one = parser.parse_args(arguments).pruner
    PAGE.write_text(page() if one is None else page(PAGE.read_text(), [one]))
    print(f"wrote {PAGE.relative_to(kit.CONF.parent)}" + (f", with the column of {one} anew" if one else ""))


if __name__ == "__main__":
    main()
