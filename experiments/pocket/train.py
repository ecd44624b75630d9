"""Trains the embedded model `pocket`. README.md beside this file says what it learns and why so.

python -m experiments.pocket.train --out work/pocket
python -m experiments.pocket.train --out work/more --init btp/models/checkpoints/pocket     # the last phase again
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from btp.models.pocket import build_model, build_processor
from btp.tasks.pocketvqa.layout import CELLS, COLORS, SIDE
from btp.tasks.pocketvqa.questions import words
from experiments.pocket.data import MARKS, MEAN, NAMES, STD, Scenes
from experiments.pocket.muon import Muon

VISION = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Phase:
    """A stretch of the training.

    Attributes:
        until: its last step.
        questions: asked of each picture, besides its description.
        weights: how often each ability is asked.
        shares: weight of each loss.
    """

    until: int
    questions: int
    weights: dict[str, float]
    shares: dict[str, float]


# Descriptions and reading come first by themselves; what finds an object by its looks needs more questions, and
# patches that know their place.
PHASES = (
    Phase(
        until=1750,
        questions=6,
        weights={
            "presence": 1.0,
            "attribute": 0.8,
            "counting": 1.0,
            "position": 0.8,
            "relation": 1.2,
            "same_as": 1.2,
            "digit": 1.2,
            "number": 1.3,
        },
        shares={"answer": 1.0, "color": 0.5, "name": 0.5, "marks": 0.3},
    ),
    Phase(
        until=3900,
        questions=10,
        weights={
            "presence": 2.0,
            "attribute": 1.5,
            "counting": 1.5,
            "position": 1.8,
            "relation": 1.8,
            "same_as": 1.5,
            "digit": 0.7,
            "number": 1.0,
        },
        shares={"answer": 1.0, "color": 0.5, "name": 0.5, "place": 0.2, "anchor": 0.3, "marks": 0.3},
    ),
    Phase(
        until=8000,
        questions=12,
        weights={
            "presence": 1.0,
            "attribute": 1.0,
            "counting": 2.5,
            "position": 1.2,
            "relation": 3.5,
            "same_as": 2.5,
            "digit": 0.5,
            "number": 1.0,
        },
        shares={"answer": 1.0, "color": 0.3, "name": 0.3, "place": 0.1, "anchor": 0.2, "marks": 0.3},
    ),
)
STEPS = PHASES[-1].until


class Heads(nn.Module):
    """Throw-away heads of the auxiliary losses: what each patch shows, what the whole picture holds."""

    def __init__(self, text: int, vision: int):
        super().__init__()
        self.color = nn.Linear(text, len(COLORS) + 1)
        self.name = nn.Linear(text, len(NAMES) + 1)
        self.norm = nn.LayerNorm(text)
        self.marks = nn.Linear(vision, len(MARKS))
        self.place = nn.Linear(text, CELLS * CELLS)
        self.anchor = nn.Linear(text, 1)


def losses(model: LlavaForConditionalGeneration, heads: Heads, batch: dict[str, Tensor], layer: int, grid: int):
    """Answer loss, dense loss on the patches after decoder layer `layer`, CLS loss of the tower."""
    llava = model.model
    pixels = (batch["pixels"].float() / 255 - MEAN) / STD
    seen = llava.vision_tower(pixel_values=pixels)
    image = llava.multi_modal_projector(seen.last_hidden_state[:, 1:])  # [B, N, D]
    words = llava.get_input_embeddings()
    b, n, _ = image.shape
    head = torch.tensor([model.config.text_config.bos_token_id, *heads.user], device=image.device)
    prefix = torch.cat([words(head).expand(b, -1, -1), image.to(words.weight.dtype)], 1)
    p, t = prefix.shape[1], batch["ids"].shape[1]
    inputs = torch.cat([prefix, words(batch["ids"])], 1)
    position = torch.cat([torch.arange(p, device=image.device).expand(b, -1), batch["position"] + p], 1)
    segment = torch.cat([torch.zeros(b, p, device=image.device), batch["segment"]], 1)
    causal = torch.ones(p + t, p + t, dtype=torch.bool, device=image.device).tril()
    shared = torch.arange(p + t, device=image.device) < p
    mask = causal & ((segment[:, :, None] == segment[:, None, :]) | shared)
    out = llava.language_model(
        inputs_embeds=inputs,
        attention_mask=mask[:, None],
        position_ids=position,
        use_cache=False,
        output_hidden_states=True,
    )
    asked = batch["target"] >= 0
    logits = model.lm_head(out.last_hidden_state[:, p:][asked]).float()
    answer = F.cross_entropy(logits, batch["target"][asked], label_smoothing=0.0)
    patches = heads.norm(out.hidden_states[layer][:, p - n : p].float())
    dense = F.cross_entropy(heads.color(patches).flatten(0, 1), batch["color"].flatten())
    name = F.cross_entropy(heads.name(patches).flatten(0, 1), batch["name"].flatten())
    cell = torch.arange(grid, device=image.device) * CELLS // grid
    cells = (cell[:, None] * CELLS + cell).flatten().expand(b, -1)
    place = F.cross_entropy(heads.place(patches).flatten(0, 1), cells.flatten())
    rare = torch.tensor(5.0, device=image.device)
    anchor = F.binary_cross_entropy_with_logits(heads.anchor(patches)[..., 0], batch["anchor"], pos_weight=rare)
    marks = F.binary_cross_entropy_with_logits(heads.marks(seen.pooler_output.float()), batch["marks"])
    right = (logits.argmax(-1) == batch["target"][asked]).float().mean()
    return {
        "answer": answer,
        "color": dense,
        "name": name,
        "place": place,
        "anchor": anchor,
        "marks": marks,
        "right": right,
    }


def optimisers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    known = {id(p) for p in inner}
    rest = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in known]
    adam = torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    muon = Muon(inner, lr=2e-3, weight_decay=0.05)
    return [muon, adam]


def learning_rate(step: int, steps: int, warmup: int = 200, decay: float = 0.35) -> float:
    """Share of the peak rate: linear warm-up, flat, then down to 2% over the last `decay` of the steps."""
    start = steps * (1 - decay)
    down = 1.0 if step < start else 1 - 0.98 * (step - start) / (steps - start)
    return min(1.0, (step + 1) / warmup) * down


def main() -> None:
    """Train, keep a checkpoint every 250 steps to go on from, and save the averaged weights at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--patch", type=int, default=8, help="pixels; the picture is 96, so 8 gives 144 tokens")
    parser.add_argument("--layer", type=int, default=4, help="decoder layers before the dense loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights to begin the last phase with, heads and optimisers new")
    parser.add_argument("--steps", type=int, default=STEPS, help="where the learning rate has come down")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="pays only with matrix units for it")
    parser.add_argument("--compile", action="store_true", help="compile the layers; a minute once, then 15%% faster")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    grid = SIDE // args.patch
    processor = build_processor(words(), SIDE, args.patch)
    model = build_model(processor.tokenizer, side=SIDE, patch=args.patch, vision=VISION, text=TEXT)
    first = 0
    if args.init:
        begun = LlavaForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
        model.load_state_dict(begun.state_dict())
        first = PHASES[-2].until
    heads = Heads(TEXT["hidden_size"], VISION["hidden_size"])
    heads.user = processor.tokenizer("USER :", add_special_tokens=False).input_ids
    model.to(args.device).train()
    heads.to(args.device)
    muon, adam = optimisers(model, heads)
    peaks = {optim: optim.param_groups[0]["lr"] for optim in (muon, adam)}
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    parts = {"model": model, "heads": heads, "mean": mean, "muon": muon, "adam": adam}
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / "state.pt"
    step = restore(state, parts, args.device) if state.exists() else first
    if args.compile:
        for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
            layer.compile(dynamic=True)
    seen = Counter()
    began, start = time.time(), step
    while step < args.steps:
        phase = next(p for p in PHASES if step < p.until)
        scenes = Scenes(
            processor.tokenizer,
            phase.weights,
            batch=args.batch,
            questions=phase.questions,
            grid=grid,
            seed=args.seed + step,
        )
        for batch in DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=4):
            for optim, peak in peaks.items():
                optim.param_groups[0]["lr"] = peak * learning_rate(step - first, args.steps - first)
                optim.zero_grad()
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
                found = losses(model, heads, {k: v.to(args.device) for k, v in batch.items()}, args.layer, grid)
            sum(share * found[key] for key, share in phase.shares.items()).backward()
            nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
            for optim in peaks:
                optim.step()
            mean.update_parameters(model)
            seen.update({key: value.item() for key, value in found.items()})
            step += 1
            if step % 50 == 0:
                pace = round((time.time() - began) / (step - start), 3)
                print(
                    json.dumps({"step": step, "s": pace} | {k: round(v / 50, 3) for k, v in seen.items()}), flush=True
                )
                seen.clear()
            if step % 250 == 0 or step == args.steps:
                save(state, parts, step)
            if step in (phase.until, args.steps):
                break
    mean.module.save_pretrained(args.out / "model")
    processor.save_pretrained(args.out / "model")


def save(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write a state to go on from, whole or not at all."""
    part = path.with_suffix(".tmp")
    torch.save({"step": step} | {name: thing.state_dict() for name, thing in parts.items()}, part)
    part.replace(path)


def restore(path: Path, parts: dict[str, Any], device: str) -> int:
    """Load a state; returns its step."""
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, thing in parts.items():
        thing.load_state_dict(saved[name])
    return saved["step"]


if __name__ == "__main__":
    main()
