"""What the pocket LVLM can do, and how far pruning can pay and hurt: controls alone, never a method."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.core.site import Site
from btp.engine.observe import observe
from btp.models.loading.load import Loaded
from btp.pruners.lattice import Lattice
from btp.pruners.oracle import Oracle
from btp.runner.evaluation.data import Collate
from btp.tasks.pocketvqa.questions import ABILITIES
from btp.tasks.pocketvqa.task import PocketVQA
from btp.tasks.sample import Sample
from experiments.embedded.measures.asking import answers
from experiments.embedded.measures.controls import (
    CHANCE,
    Arm,
    chance,
    check,
    cut,
    falls,
    knee,
    load_embedded,
    percent,
    randoms,
    scores_table,
    with_mean,
    withdrawals,
)

READING = ("digit", "number")
BATCH = 32
SHARES = (0.5, 0.35, 0.22, 0.11, 0.0556, 0.025)
ORACLE_SHARES = (0.22, 0.11, 0.0556)


def arms(layers: int) -> Iterator[Arm]:
    """All controls for a decoder of `layers` layers."""
    yield Arm("unpruned")
    yield Arm("blank picture", picture="blank")
    yield from randoms("llm.input", SHARES)
    for share in ORACLE_SHARES:
        yield Arm(f"oracle {share:.1%}", cut("llm.input", share), Oracle(inner=chance()))
    yield Arm("down-sampled 22.0%", cut("llm.input", 0.22), Lattice(), "shrunk", 0.22)
    yield Arm("random, BTP's depths", published(layers), chance())
    yield Arm("oracle, BTP's depths", published(layers), Oracle(inner=chance()))
    yield from withdrawals("llm", layers)


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
    loaded = load_embedded("pocket", checkpoint)
    task = PocketVQA(split, seed=0, size=samples)
    drawn = [task[i] for i in range(len(task))]
    layers = loaded.host.num_layers
    scores = {CHANCE: summed(task.chance(drawn))}
    for arm in tqdm(list(arms(layers)), desc="arms"):
        scores[arm.name] = summed(answers(loaded, task, drawn, arm, BATCH))
    looks = attention_on_evidence(loaded, drawn[: min(len(drawn), 90)])
    return {
        "split": split,
        "samples": samples,
        "scores": scores,
        "looks": looks,
        "acceptance": acceptance(scores, looks, layers),
        "tables": {"scores": scores_table(scores), "looks": looks_table(looks)},
    }


def summed(by_ability: dict[str, float]) -> dict[str, float]:
    """Percent: the abilities with their mean and the mean of those that read."""
    known = {a: by_ability[a] for a in ABILITIES if a in by_ability}
    reading = sum(known[a] for a in READING) / len(READING)
    whole = with_mean(known, "macro")
    return percent({"macro": whole.pop("macro"), "reading": reading} | whole)


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
        checks.append(check(what, found, at_least, at_most))

    whole, blank = scores["unpruned"], scores["blank picture"]
    ask("unpruned macro", whole["macro"], 95)
    ask("unpruned, weakest ability", min(whole[a] for a in ABILITIES), 90)
    worst = max(blank[a] - scores["chance"][a] for a in ABILITIES)
    ask("blank picture over the commonest answer, worst ability", worst, at_most=3)
    ask("oracle at 22% in front of the decoder, macro retained, %", _kept(scores, "oracle 22.0%"), 95)
    ask("oracle at BTP's depths, macro retained, %", _kept(scores, "oracle, BTP's depths"), 95)
    ask("random at 50%, macro retained, %", _kept(scores, "random 50.0%"), 93)
    ask("random at 22%, macro retained, %", _kept(scores, "random 22.0%"), 75)
    checks.append(falls(scores, "macro", SHARES))
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
    where = knee(scores, layers, "macro")
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


def looks_table(looks: dict[int, float]) -> str:
    """Attention to the evidence by layer."""
    head = "| layer | " + " | ".join(map(str, looks)) + " |"
    return "\n".join([head, "|:--|" + "--:|" * len(looks), "| factor | " + " | ".join(map(str, looks.values())) + " |"])
