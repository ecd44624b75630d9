"""What the pocket LVLM can do, and how far pruning can pay and hurt: controls alone, never a method."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from PIL import Image
from tqdm import tqdm

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.attach import attach
from btp.engine.observe import observe
from btp.models.loading.load import Loaded, load
from btp.pruners.lattice import Lattice
from btp.pruners.oracle import Oracle
from btp.pruners.random import Random
from btp.runner.evaluation.data import Collate, by_length
from btp.tasks.pocketvqa.questions import ABILITIES
from btp.tasks.pocketvqa.task import PocketVQA
from btp.tasks.sample import Sample

READING = ("digit", "number")
BATCH = 32
SHARES = (0.5, 0.35, 0.22, 0.11, 0.0556, 0.025)
ORACLE_SHARES = (0.22, 0.11, 0.0556)


@dataclass(frozen=True)
class Arm:
    """A setting to answer all questions with.

    Attributes:
        name: Row of the table.
        schedule: Stages; none for the unpruned model.
        pruner: Control that chooses what stays.
        picture: whole | blank | shrunk to the share of pixels that stands in `share`.
    """

    name: str
    schedule: Schedule = field(default_factory=Schedule)
    pruner: Pruner | None = None
    picture: str = "whole"
    share: float = 1.0


def arms(layers: int) -> Iterator[Arm]:
    """All controls for a decoder of `layers` layers."""

    def chance() -> Random:
        return Random(seed=0, salt="content")

    yield Arm("unpruned")
    yield Arm("blank picture", picture="blank")
    for share in SHARES:
        yield Arm(f"random {share:.1%}", Schedule((Stage("llm.input", share),)), chance())
    for share in ORACLE_SHARES:
        yield Arm(f"oracle {share:.1%}", Schedule((Stage("llm.input", share),)), Oracle(inner=chance()))
    yield Arm("down-sampled 22.0%", Schedule((Stage("llm.input", 0.22),)), Lattice(), "shrunk", 0.22)
    yield Arm("random, BTP's depths", published(layers), chance())
    yield Arm("oracle, BTP's depths", published(layers), Oracle(inner=chance()))
    for layer in range(1, layers):
        yield Arm(f"withdrawn at {layer}", Schedule((Stage(f"llm.layer.{layer}", 0),)))


def published(layers: int) -> Schedule:
    """BTP's published LLaVA-1.5 schedule (22% of 576 tokens on average), as shares of depth and tokens."""
    method = yaml.safe_load(Path("conf/pruner/btp.yaml").read_text(encoding="utf-8"))
    stages = method["published"]["llava15"]["paper"]["stages"]
    placed = []
    for stage in stages:
        layer, depth = stage["site"].removeprefix("llm.layer.").split("/")
        placed.append(Stage(f"llm.layer.{round(int(layer) * layers / int(depth))}", stage["keep"] / 576))
    return Schedule(tuple(placed))


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """Score every arm, look at the attention, and hold both against what the model must be.

    Args:
        checkpoint: Folder of the model.
        split: Split of pocketvqa.
        samples: Questions of each arm, all abilities in turn.

    Returns:
        scores (arm -> ability -> percent), looks (layer -> factor), acceptance, tables.
    """
    config = {"weights": "pretrained", "dtype": "float32", "attention": "sdpa", "device_map": None}
    loaded = load(config, checkpoint, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    task = PocketVQA(split, seed=0, size=samples)
    drawn = [task[i] for i in range(len(task))]
    layers = loaded.host.num_layers
    scores = {"chance": percent(task.chance(drawn))}
    for arm in tqdm(list(arms(layers)), desc="arms"):
        scores[arm.name] = summed(answers(loaded, task, drawn, arm))
    scores["chance"] = summed(scores["chance"])
    looks = attention_on_evidence(loaded, drawn[: min(len(drawn), 90)])
    return {
        "split": split,
        "samples": samples,
        "scores": scores,
        "looks": looks,
        "acceptance": acceptance(scores, looks, layers),
        "tables": {"scores": scores_table(scores), "looks": looks_table(looks)},
    }


def percent(scores: dict[str, float]) -> dict[str, float]:
    """Shares as percent."""
    return {ability: 100 * score for ability, score in scores.items()}


def summed(by_ability: dict[str, float]) -> dict[str, float]:
    """The abilities with their mean and the mean of those that read."""
    known = [a for a in ABILITIES if a in by_ability]
    macro = sum(by_ability[a] for a in known) / len(known)
    reading = sum(by_ability[a] for a in READING) / len(READING)
    rounded = {a: round(by_ability[a], 1) for a in known}
    return {"macro": round(macro, 1), "reading": round(reading, 1)} | rounded


@torch.inference_mode()
def answers(loaded: Loaded, task: PocketVQA, samples: list[Sample], arm: Arm) -> dict[str, float]:
    """Mean score per ability, in percent."""
    scores = defaultdict(list)
    order = by_length(samples)
    collate = Collate(loaded.processor)
    with attach(loaded.host, arm.pruner, arm.schedule):
        for start in range(0, len(order), BATCH):
            part = [samples[i] for i in order[start : start + BATCH]]
            inputs = collate([_seen(s, arm) for s in part]).to(loaded.host.device).inputs
            if isinstance(arm.pruner, Oracle):
                arm.pruner.set_targets([s.targets for s in part])
            out = loaded.host.generate(**inputs, max_new_tokens=task.max_new_tokens)
            texts = loaded.processor.tokenizer.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for sample, text in zip(part, texts, strict=True):
                scores[sample.ability].append(task.score(sample, text))
    return percent({k: sum(v) / len(v) for k, v in scores.items()})


def _seen(sample: Sample, arm: Arm) -> Sample:
    """The sample with the picture that the arm shows."""
    picture = sample.images[0]
    if arm.picture == "blank":
        picture = Image.new("RGB", picture.size, (110, 110, 110))
    if arm.picture == "shrunk":
        side = max(1, round(picture.width * arm.share**0.5))
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return Sample(**{**sample.__dict__, "images": (picture,)})


@torch.inference_mode()
def attention_on_evidence(loaded: Loaded, samples: list[Sample]) -> dict[int, float]:
    """Attention of the last prompt token to the boxes that the answer needs, over what an even spread would give them.

    Returns:
        layer -> factor, the mean over samples whose answer needs a box.
    """
    wanted = [Signal("attention", Site.parse(f"llm.layer.{i}"), "last") for i in range(loaded.host.num_layers)]
    ratios = defaultdict(list)
    collate = Collate(loaded.processor)
    for sample in samples:
        if not sample.targets:
            continue
        inputs = collate([sample]).to(loaded.host.device).inputs
        with observe(loaded.host, wanted) as looks:
            loaded.host(**inputs)
        rows, cols = looks[0].coord[0, :, 1], looks[0].coord[0, :, 2]
        height, width = rows.max() + 1, cols.max() + 1
        inside = torch.zeros(len(rows), dtype=torch.bool)
        for x0, y0, x1, y1 in sample.targets:
            inside |= (
                ((rows + 1) / height > y0) & (rows / height < y1) & ((cols + 1) / width > x0) & (cols / width < x1)
            ).cpu()
        for layer, signal in enumerate(wanted):
            paid = looks[0].signals[signal][0, :, 0].float().mean(0).cpu()  # [N], over the picture's tokens
            ratios[layer].append((paid[inside].sum() / paid.sum() / inside.float().mean()).item())
    return {layer: round(sum(found) / len(found), 2) for layer, found in ratios.items()}


def acceptance(scores: dict[str, dict[str, float]], looks: dict[int, float], layers: int) -> list[dict]:
    """What the model must be, and what it is."""
    checks: list[dict] = []

    def ask(what: str, found: float, at_least: float | None = None, at_most: float | None = None) -> None:
        asked = f"{at_least:.4g} or more" if at_least is not None else f"{at_most:.4g} or less"
        met = found >= at_least if at_least is not None else found <= at_most
        checks.append({"what": what, "asked": asked, "found": round(found, 1), "met": bool(met)})

    whole, blank = scores["unpruned"], scores["blank picture"]
    ask("unpruned macro", whole["macro"], 95)
    ask("unpruned, weakest ability", min(whole[a] for a in ABILITIES), 90)
    worst = max(blank[a] - scores["chance"][a] for a in ABILITIES)
    ask("blank picture over the commonest answer, worst ability", worst, at_most=3)
    ask("oracle at 22% in front of the decoder, macro retained, %", _kept(scores, "oracle 22.0%"), 95)
    ask("oracle at BTP's depths, macro retained, %", _kept(scores, "oracle, BTP's depths"), 95)
    ask("random at 50%, macro retained, %", _kept(scores, "random 50.0%"), 93)
    ask("random at 22%, macro retained, %", _kept(scores, "random 22.0%"), 75)
    ladder = ["unpruned", *(f"random {s:.1%}" for s in SHARES)]
    ask(
        "random, least step down in macro", min(scores[a]["macro"] - scores[b]["macro"] for a, b in pairwise(ladder)), 0
    )
    for share, gap in zip(ORACLE_SHARES, (5, 15, 25), strict=True):
        lead = {k: scores[f"oracle {share:.1%}"][k] - scores[f"random {share:.1%}"][k] for k in ("macro", "reading")}
        ask(f"oracle over random at {share:.1%}, macro", lead["macro"], gap)
        ask(f"oracle over random at {share:.1%}, reading", lead["reading"], 2 * gap)
    ask("down-sampled at 22%, reading lost", whole["reading"] - scores["down-sampled 22.0%"]["reading"], 10)
    ask(
        "withdrawn at a quarter of the depth, reading lost",
        whole["reading"] - _at(scores, layers * 0.25)["reading"],
        50,
    )
    ask("withdrawn at 90% of the depth, macro lost", whole["macro"] - _at(scores, layers * 0.9)["macro"], at_most=3)
    where = knee(scores, layers)
    ask("knee of macro, % of the depth", where, 40)
    ask("knee of macro, % of the depth", where, at_most=85)
    ask(
        "attention to the evidence in some layer before half of the depth",
        max(factor for layer, factor in looks.items() if layer < layers / 2),
        3,
    )
    return checks


def _kept(scores: dict, arm: str) -> float:
    return 100 * scores[arm]["macro"] / scores["unpruned"]["macro"]


def _at(scores: dict, layer: float) -> dict[str, float]:
    return scores[f"withdrawn at {int(layer)}"]


def knee(scores: dict, layers: int) -> float:
    """Depth in percent where half of the score above chance is reached, between two layers by a straight line."""
    floor, top = scores["blank picture"]["macro"], scores["unpruned"]["macro"]
    half = (floor + top) / 2
    curve = [(i, scores[f"withdrawn at {i}"]["macro"]) for i in range(1, layers)] + [(layers, top)]
    for (before, low), (after, high) in pairwise(curve):
        if low < half <= high:
            return 100 * (before + (half - low) / (high - low) * (after - before)) / layers
    return 0.0


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """One row per arm."""
    columns = list(scores["unpruned"])
    lines = ["| arm | " + " | ".join(columns) + " |", "|:--|" + "--:|" * len(columns)]
    lines += ["| " + " | ".join([arm, *(f"{row[c]:.1f}" for c in columns)]) + " |" for arm, row in scores.items()]
    return "\n".join(lines)


def looks_table(looks: dict[int, float]) -> str:
    """Attention to the evidence by layer."""
    head = "| layer | " + " | ".join(map(str, looks)) + " |"
    return "\n".join([head, "|:--|" + "--:|" * len(looks), "| factor | " + " | ".join(map(str, looks.values())) + " |"])
