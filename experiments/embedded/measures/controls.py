"""What the measures of all embedded models share: arms of controls, what is asked of their scores, and the tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from PIL import Image

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.models.loading.load import Loaded, load
from btp.pruners.random import Random
from btp.tasks.drawn import Drawn

Scores = dict[str, dict[str, float]]  # arm -> column -> percent
SHARES = (0.5, 0.25, 0.1)
CHANCE = "chance"
GREY = (110, 110, 110)


@dataclass(frozen=True)
class Arm:
    """A setting to answer all samples with.

    Attributes:
        name: Row of the table.
        schedule: Stages; none for the unpruned model.
        pruner: Control that chooses what stays.
        picture: whole | blank | shrunk to the share of pixels that stands in `share` | none, for texts without context.
    """

    name: str
    schedule: Schedule = field(default_factory=Schedule)
    pruner: Pruner | None = None
    picture: str = "whole"
    share: float = 1.0


def chance() -> Random:
    """Random selection, another one for every picture or text."""
    return Random(seed=0, salt="content")


def cut(site: str, keep: float) -> Schedule:
    """One stage."""
    return Schedule((Stage(site, keep),))


def randoms(site: str, shares: Sequence[float] = SHARES) -> Iterator[Arm]:
    """Random selection at one site."""
    for share in shares:
        yield Arm(f"random {share:.1%}", cut(site, share), chance())


def withdrawals(tower: str, layers: int) -> Iterator[Arm]:
    """All tokens leave in front of one layer, for every layer but the first."""
    for layer in range(1, layers):
        yield Arm(f"withdrawn at {layer}", cut(f"{tower}.layer.{layer}", 0))


def load_embedded(name: str, checkpoint: Path) -> Loaded:
    """The model of a recipe from its checkpoint, in float32, on a GPU where there is one."""
    keys = yaml.safe_load(Path(f"conf/model/{name}.yaml").read_text(encoding="utf-8"))
    config = {"weights": "pretrained", "dtype": "float32", "attention": "sdpa", "device_map": None}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load(config | {"adapter": keys["adapter"]}, checkpoint, device)


def check(what: str, found: float, at_least: float | None = None, at_most: float | None = None) -> dict:
    """One row of the acceptance: a lower or an upper bound, and what was found."""
    asked = f"{at_least:.4g} or more" if at_least is not None else f"{at_most:.4g} or less"
    met = found >= at_least if at_least is not None else found <= at_most
    return {"what": what, "asked": asked, "found": round(found, 1), "met": bool(met)}


def falls(scores: Scores, head: str, shares: Sequence[float] = SHARES) -> dict:
    """Whether random selection falls from one share to the next."""
    ladder = ["unpruned", *(f"random {share:.1%}" for share in shares)]
    step = min(scores[a][head] - scores[b][head] for a, b in pairwise(ladder))
    return check(f"random, least step down in {head}", step, 0)


def hurts(scores: Scores, abilities: Sequence[str], arm: str = "random 10.0%") -> dict:
    """In how many abilities an arm loses half of the score above the commonest answer."""
    hurt = 0
    for ability in abilities:
        floor, top = scores.get(CHANCE, {}).get(ability, 0.0), scores["unpruned"][ability]
        hurt += top > floor and scores[arm][ability] - floor <= (top - floor) / 2
    return check(f"{arm}, abilities that lose half of their score above chance", hurt, min(2, len(abilities)))


def knee_lies_deep(scores: Scores, head: str, layers: int, **names: str) -> list[dict]:
    """Whether the knee lies between 40 and 90% of the depth."""
    where = knee(scores, layers, head, **names)
    what = f"knee of {head}, % of the depth"
    return [check(what, where, 40), check(what, where, at_most=90)]


def knee(scores: Scores, layers: int, head: str, floor: str = "blank picture", arm: str = "withdrawn") -> float:
    """Depth in percent where half of the score above `floor` is reached, between two layers by a straight line."""
    low_end, top = scores[floor][head], scores["unpruned"][head]
    half = (low_end + top) / 2
    curve = [(i, scores[f"{arm} at {i}"][head]) for i in range(1, layers)] + [(layers, top)]
    for (before, low), (after, high) in pairwise(curve):
        if low < half <= high:
            return 100 * (before + (half - low) / (high - low) * (after - before)) / layers
    return 0.0


def card(task: Drawn, scores: Scores, checks: list[dict]) -> dict:
    """What a measure returns: split, samples, scores (arm -> column -> percent), acceptance, tables."""
    return {
        "split": task.split,
        "samples": len(task),
        "scores": scores,
        "acceptance": checks,
        "tables": {"scores": scores_table(scores)},
    }


def blank(picture: Image.Image) -> Image.Image:
    """Grey in place of a picture."""
    return Image.new("RGB", picture.size, GREY)


def scores_table(scores: Scores) -> str:
    """One row per arm; an arm has no number where a column means nothing for it."""
    columns = max(scores.values(), key=len)
    lines = ["| arm | " + " | ".join(columns) + " |", "|:--|" + "--:|" * len(columns)]
    for arm, row in scores.items():
        lines.append("| " + " | ".join([arm, *(f"{row[c]:.1f}" if c in row else "–" for c in columns)]) + " |")
    return "\n".join(lines)


def percent(scores: dict[str, float]) -> dict[str, float]:
    """Shares as percent."""
    return {key: round(100 * score, 1) for key, score in scores.items()}


def with_mean(by_ability: dict[str, float], head: str) -> dict[str, float]:
    """The abilities behind their mean."""
    return {head: sum(by_ability.values()) / len(by_ability)} | by_ability
