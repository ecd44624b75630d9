"""Writes a small run folder with the files and the numbers of a real one."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageDraw

GRID = (12, 12)
TOTAL = GRID[0] * GRID[1]
LAYERS = 12
ABILITIES = ("presence", "counting", "digit", "describe")
COLORS = {"red": (220, 40, 40), "blue": (50, 80, 230), "yellow": (235, 215, 40), "green": (40, 180, 60)}
ARMS = (
    {"arm": "unpruned", "title": "unpruned", "role": "baseline", "pruner": "none", "note": ""},
    {"arm": "btp", "title": "btp", "role": "method", "pruner": "btp", "note": ""},
    {"arm": "random", "title": "random", "role": "control", "pruner": "random", "note": "at random"},
)
SHRUNK = {
    "arm": "downsampled",
    "title": "downsampled",
    "role": "control",
    "pruner": "downsampled",
    "note": "",
}
BLIND = {"arm": "no_image", "title": "no image", "role": "control", "pruner": "none", "note": ""}
RIGHT = {"unpruned": 0.92, "btp": 0.75, "random": 0.5, "downsampled": 0.55, "no_image": 0.25}
STAGES = [("llm.layer.3", 0.5), ("llm.layer.6", 0.25), ("llm.layer.9", 0)]


def write_run(
    folder: Path,
    samples=40,
    abilities=ABILITIES,
    arms=ARMS,
    overlays=8,
    name="btp",
    drop=(),
    stages=STAGES,
    merges=(),
    config=None,
    run=None,
) -> Path:
    """Write a run folder.

    An arm answers a sample alike in every run. A method of a name that is not known here is as good as BTP.

    Args:
        drop: files to leave out.
        stages: (site, share) of the method and of random.
        merges: arms whose kept tokens took others in.
        config, run: what else config.yaml and run.json hold, or hold instead.
    """
    rng = np.random.default_rng(7)
    arms = [dict(arm) for arm in arms]
    for arm in arms:
        if arm["role"] == "method" or arm["pruner"] == "random":
            arm["schedule"] = [{"site": site, "keep": keep} for site, keep in stages]
    folder.mkdir(parents=True)
    asked = _questions(rng, samples, abilities)
    rows, trace = _answers(asked, arms, merges)
    pd.DataFrame(rows).to_parquet(folder / "samples.parquet")
    pd.DataFrame(trace).to_parquet(folder / "trace.parquet")
    (folder / "run.json").write_text(json.dumps(_run(arms, name, folder) | (run or {})))
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(name, samples) | (config or {})))
    (folder / "layers.json").write_text(json.dumps({a["arm"]: _layers(a) for a in arms}))
    (folder / "cost.json").write_text(json.dumps(_cost(arms)))
    (folder / "calibration.yaml").write_text(yaml.safe_dump(_calibration()))
    _draw_pictures(folder / "pictures", rng, asked[:overlays])
    for file in drop:
        (folder / file).unlink()
    return folder


def method(name, role="method"):
    """An arm of another method."""
    return {"arm": name, "title": name, "role": role, "pruner": name, "note": ""}


def of(name, *controls):
    """The arms of a run of one method: unpruned, the method, random and other controls."""
    return (ARMS[0], method(name), ARMS[2], *controls)


def _questions(rng, samples, abilities):
    asked = []
    for i in range(samples):
        ability, color = abilities[i % len(abilities)], str(rng.choice(list(COLORS)))
        question, reference = f"what {ability} is {color} ?", str(rng.integers(2, 10))
        if ability == "presence":
            question, reference = f"is there a {color} circle ?", "yes"
        if ability == "describe":
            question, reference = "describe the scene in order .", "red circle , blue square , green star"
        asked.append((f"test-0-{i:06d}", ability, question, reference))
    return asked


def _answers(asked, arms, merges):
    rows, trace = [], []
    for sample, ability, question, reference in asked:
        unpruned, hardness = None, _rng(sample).random()
        for arm in arms:
            rng = _rng(sample, arm["arm"], json.dumps(arm.get("schedule")))
            few = _tokens_avg(arm) / TOTAL if "schedule" in arm else 0.4375
            skill = RIGHT.get(arm["arm"], RIGHT["btp"]) + 0.4 * (few - 0.4375)
            right = 0.8 * hardness + 0.2 * rng.random() < skill - (0.25 if ability == "digit" and unpruned else 0)
            wrong = {"presence": "no", "describe": "red circle , blue cross"}.get(ability, "1")
            prediction = reference if right else wrong
            unpruned = unpruned or prediction
            same = prediction == unpruned
            rows.append(
                {
                    "arm": arm["arm"],
                    "sample": sample,
                    "ability": ability,
                    "question": question,
                    "reference": reference,
                    "prediction": prediction,
                    "unpruned": unpruned,
                    "score": 1.0 if right else 0.4 if ability == "describe" else 0.0,
                    "agreement": same,
                    "kl": 0.0 if arm["role"] == "baseline" else float(rng.gamma(1, 0.02 if same else 0.6)),
                    "tokens_avg": _tokens_avg(arm),
                    "total": TOTAL,
                }
            )
            trace += _stages(rng, arm, sample, arm["arm"] in merges)
    return rows, trace


def _rng(*names):
    return np.random.default_rng(zlib.crc32(" ".join(names).encode()))


def _stages(rng, arm, sample, merges):
    """btp keeps a block and a sprinkle, others keep a sprinkle."""
    kept, out = np.arange(TOTAL), []
    for order, entry in enumerate(arm.get("schedule", ())):
        count = round(entry["keep"] * TOTAL)
        y, x = np.divmod(kept, GRID[1])
        order_by = rng.random(len(kept)) + (0.08 * np.hypot(y - 4, x - 5) if arm["pruner"] == "btp" else 0)
        before, kept = len(kept), np.sort(kept[np.argsort(order_by)[:count]])
        row = {
            "arm": arm["arm"],
            "sample": sample,
            "site": entry["site"],
            "order": order,
            "before": before,
            "after": len(kept),
            "kept": kept.tolist(),
        }
        out.append(row | ({"merged": kept[::3].tolist()} if merges else {}))
    return out


def _layers(arm):
    visual = {"downsampled": [64] * LAYERS, "no_image": [0] * LAYERS}.get(arm["arm"], [TOTAL] * LAYERS)
    for stage in arm.get("schedule", ()):
        first = int(stage["site"].split(".")[-1]) if stage["site"].startswith("llm.layer.") else 0
        visual = [*visual[:first], *[round(stage["keep"] * TOTAL)] * (LAYERS - first)]
    return {"visual": visual, "tokens": [v + 14 for v in visual]}


def _tokens_avg(arm):
    return float(np.mean(_layers(arm)["visual"]))


def _cost(arms):
    out = {"hardware": "2-core CPU, float32"}
    for arm in arms:
        share = _tokens_avg(arm) / TOTAL
        ms = {key: {"median": m, "p10": 0.93 * m, "p90": 1.12 * m} for key, m in _times(share).items()}
        out[arm["arm"]] = {
            "tokens_avg": TOTAL * share,
            "flops_visual_pdrop": 3.1e8 * share,
            "flops_prefill": 1.9e8 + 7e8 * share,
            "flops_prefill_measured": 1.92e8 + 7e8 * share,
            "kv_mib": 0.2 + 1.7 * share,
            "kv_mib_measured": 0.2 + 1.7 * share,
            "peak_memory_mib": None,
            **ms,
        }
        if arm["role"] != "baseline":
            ends = {"median": 0.45 + 0.5 * share, "low": 0.44 + 0.5 * share, "high": 0.47 + 0.5 * share}
            out[arm["arm"]] |= {"prefill_ratio": ends, "per_token_ratio": ends}
    return out


def _times(share):
    return {
        "vision_ms": 4.2,
        "selection_ms": 0.0 if share == 1 else 0.31,
        "prefill_ms": 7 + 9 * share,
        "per_token_ms": 2.1 + 0.4 * share,
    }


def _calibration():
    changed = [2, 9, 31, 74, 40, 66, 88, 52, 47, 61, 30, 8]
    attention = [0.71, 0.62, 0.48, 0.41, 0.33, 0.30, 0.21, 0.17, 0.12, 0.09, 0.06, 0.05]
    stages = [
        {"layer": int(site.split(".")[-1]), "site": site, "keep": keep, "balance": balance}
        for (site, keep), balance in zip(STAGES, (0.4, 0.8, 1.0), strict=True)
    ]
    return {
        "model": "pocket",
        "stages": stages,
        "curves": {"changed": changed, "attention": attention, "tau": 0.93, "samples": 64},
    }


def _run(arms, name, folder):
    return {
        "state": "finished",
        "identity": hashlib.sha256(str(folder).encode()).hexdigest()[:16],
        "name": name,
        "arms": arms,
        "command": f"python run.py model=pocket pruner={name} stages=3 budget.share=0.43",
        "versions": {"btp": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": "2-core CPU, float32",
        "started": "2026-03-02T10:15:00+00:00",
        "seconds": 94.2,
        "chance": {"presence": 0.5, "counting": 0.25, "digit": 0.1, "describe": 0.3},
        "phases": {"calibrate": 6.1, "evaluate": 71.0, "measure": 15.8},
        "inert": {"checked": 8, "identical": True, "max_logit_difference": 0.0},
    }


def _config(name, samples):
    return {
        "model": {"name": "pocket"},
        "pruner": {"name": name, "schedule": "auto"},
        "task": {"name": "pocketvqa", "reading": ["digit", "number"]},
        "stages": 3,
        "budget": {"tokens": None, "share": 0.43},
        "limit": samples,
        "seed": 0,
    }


def _draw_pictures(folder, rng, asked):
    folder.mkdir()
    index = {}
    for sample, *_ in asked:
        picture = Image.new("RGB", (96, 96), tuple(int(v) for v in rng.integers(80, 150, 3)))
        pen, boxes, labels = ImageDraw.Draw(picture), [], []
        for color, rgb in COLORS.items():
            side, row, col = int(rng.integers(18, 28)), len(boxes) // 2, len(boxes) % 2
            x, y = 8 + 44 * col + int(rng.integers(0, 12)), 8 + 44 * row + int(rng.integers(0, 12))
            shape = str(rng.choice(["circle", "square"]))
            draw = pen.ellipse if shape == "circle" else pen.rectangle
            draw((x, y, x + side, y + side), fill=rgb)
            boxes.append([x / 96, y / 96, (x + side) / 96, (y + side) / 96])
            labels.append(f"{color} {shape}")
        picture.save(folder / f"{sample}.png")
        index[sample] = {"grid": list(GRID), "boxes": boxes, "labels": labels}
    (folder / "index.json").write_text(json.dumps(index))


def set_scores(folder: Path, scores) -> Path:
    """Replace the scores of arms, in the order of the samples; the answer follows the score."""
    samples = pd.read_parquet(folder / "samples.parquet")
    for arm, values in scores.items():
        mine = samples["arm"] == arm
        samples.loc[mine, "score"] = [float(v) for v in values]
        samples.loc[mine, "prediction"] = [f"answer {v}" for v in values]
    samples.to_parquet(folder / "samples.parquet")
    return folder
