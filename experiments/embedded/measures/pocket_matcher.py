"""How well the pocket matcher finds the frames that a question is about, beside frames drawn at random."""

from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from btp.models.video.matcher import Matcher
from btp.tasks.pocketclips.task import PocketClips
from experiments.embedded.measures.asking import MACRO
from experiments.embedded.measures.controls import Scores, card, check, percent, with_mean
from experiments.embedded.recipes.pocket_matcher import ABOUT_ONE

BEST, SIX, RANDOM = "best frame", "6 best frames", "frames at random"
OVER = 30  # points


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """Share of frames that belong to the event asked about.

    Args:
        checkpoint: Folder of the matcher.
        split: Split of pocketclips.
        samples: Questions, each about one event.

    Returns:
        scores (arm -> ability -> percent), acceptance, tables.
    """
    matcher, task = Matcher(path=str(checkpoint), hub=None), PocketClips(split, 0, samples, ABOUT_ONE)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in tqdm([task[i] for i in range(samples)], desc="questions"):
        order = matcher(sample.question, sample.clips[0], device).argsort(descending=True).tolist()
        inside = [float(frame in sample.evidence) for frame in order]
        for arm, frames in ((BEST, 1), (SIX, 6), (RANDOM, len(inside))):
            found[arm][sample.ability].append(sum(inside[:frames]) / frames)
    scores: Scores = {
        arm: percent(with_mean({ability: sum(hits) / len(hits) for ability, hits in rows.items()}, MACRO))
        for arm, rows in found.items()
    }
    over = scores[BEST][MACRO] - scores[RANDOM][MACRO]
    return card(task, scores, [check("best frame over frames at random", over, OVER)])
