"""Writes a small run folder with the files and the numbers of a real one."""

import json
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
    {"arm": "random", "title": "random", "role": "control", "pruner": "random", "note": "by lot"},
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


def write_run(folder: Path, samples=40, abilities=ABILITIES, arms=ARMS, overlays=8, name="btp", drop=()) -> Path:
    """Write a run folder; `drop` names files to leave out."""
    rng = np.random.default_rng(7)
    arms = [dict(arm) for arm in arms]
    for arm in arms:
        if arm["pruner"] in ("btp", "random"):
            arm["schedule"] = [{"site": site, "keep": keep} for site, keep in STAGES]
    folder.mkdir(parents=True)
    asked = _questions(rng, samples, abilities)
    rows, trace = _answers(rng, asked, arms)
    pd.DataFrame(rows).to_parquet(folder / "samples.parquet")
    pd.DataFrame(trace).to_parquet(folder / "trace.parquet")
    (folder / "run.json").write_text(json.dumps(_run(arms, name)))
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(name, samples)))
    (folder / "layers.json").write_text(json.dumps({a["arm"]: _layers(a["arm"]) for a in arms}))
    (folder / "cost.json").write_text(json.dumps(_cost(arms)))
    (folder / "calibration.yaml").write_text(yaml.safe_dump(_calibration()))
    _draw_pictures(folder / "pictures", rng, asked[:overlays])
    for file in drop:
        (folder / file).unlink()
    return folder


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


def _answers(rng, asked, arms):
    rows, trace = [], []
    for sample, ability, question, reference in asked:
        unpruned, hardness = None, rng.random()
        for arm in arms:
            right = 0.8 * hardness + 0.2 * rng.random() < RIGHT[arm["arm"]] - (
                0.25 if ability == "digit" and unpruned else 0
            )
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
                    "tokens_avg": float(np.mean(_layers(arm["arm"])["visual"])),
                    "total": TOTAL,
                }
            )
            trace += _stages(rng, arm, sample)
    return rows, trace


def _stages(rng, arm, sample):
    """btp keeps a block and a sprinkle, random keeps a sprinkle, downsampled keeps a lattice."""
    kept, out = np.arange(TOTAL), []
    for order, entry in enumerate(arm.get("schedule", ())):
        count = round(entry["keep"] * TOTAL)
        y, x = np.divmod(kept, GRID[1])
        order_by = rng.random(len(kept)) + (0.08 * np.hypot(y - 4, x - 5) if arm["pruner"] == "btp" else 0)
        before, kept = len(kept), np.sort(kept[np.argsort(order_by)[:count]])
        out.append(
            {
                "arm": arm["arm"],
                "sample": sample,
                "site": entry["site"],
                "order": order,
                "before": before,
                "after": len(kept),
                "kept": kept.tolist(),
            }
        )
    return out


def _layers(arm):
    visual = [TOTAL] * 3 + [72] * 3 + [36] * 3 + [0] * 3
    visual = {"unpruned": [TOTAL] * LAYERS, "downsampled": [64] * LAYERS, "no_image": [0] * LAYERS}.get(arm, visual)
    return {"visual": visual, "tokens": [v + 14 for v in visual]}


def _cost(arms):
    out = {"hardware": "2-core CPU, float32"}
    for arm in arms:
        share = np.mean(_layers(arm["arm"])["visual"]) / TOTAL
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


def _run(arms, name):
    return {
        "state": "finished",
        "identity": "3f9c2a7be1d04c58",
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
