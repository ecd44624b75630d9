"""Text, generated greedily; compared by the text, and by the distribution of its first token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from btp.core.host import PROMPT_TOKENS
from btp.models.loading.load import Loaded
from btp.models.lvlm import LVLM
from btp.models.token_layout import describe_views, strip_of
from btp.models.video.clip_features import clip_layout
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Batch, Collate, by_length, visual_tokens
from btp.runner.evaluation.inertness import check_inert
from btp.runner.evaluation.processing import try_unusual
from btp.runner.evaluation.prompts.prompt_length import check_lengths
from btp.runner.evaluation.prompts.shown_prompt import shown_prompt
from btp.runner.evaluation.task_protocol import Judgement, OwnWay
from btp.runner.evaluation.visual_totals import text_totals, visual_totals
from btp.runner.evaluation.ways.evaluation_loop import Evaluate
from btp.runner.evaluation.ways.token_kl import Drift, likeliest
from btp.runner.evaluation.ways.way import DOES, GENERATE, Row, Seen, Sizes, Way
from btp.tasks.sample import Corpus, Sample

HUES = (31, 90, 160), (196, 96, 20)  # of events by turns


class Generating(Evaluate):
    """Generates greedily; `task` says how long an answer may be."""

    def __init__(self, loaded: Loaded, pruner: Any, trace: Any, task: Any, *more: Any):
        super().__init__(loaded, pruner, trace, task, *more)
        self.tokenizer = loaded.processor.tokenizer
        self.max_new_tokens = task.max_new_tokens

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """Texts, and [B, V] log-probabilities of the token behind the prompt."""
        names, drift, kept = [sample.id for sample in batch.samples], None, []
        if self.reference is not None and (unpruned := self.reference.steps(names)) is not None:
            drift = Drift(unpruned, self.host.device)

        def look(logits: Tensor) -> None:
            if drift is not None:
                drift.see(logits)
            elif self.reference is None:
                kept.append(likeliest(logits))

        with first_logits(self.host, look) as seen:
            lengths = [sample.max_new_tokens or self.max_new_tokens for sample in batch.samples]
            ids = self.host.generate(**inputs, max_new_tokens=max(lengths))
        answers = ids[:, batch.inputs["input_ids"].shape[1] :]
        each = [row[:length] for row, length in zip(answers, lengths, strict=True)]
        texts = self.tokenizer.batch_decode(each, skip_special_tokens=True)
        ends = ended(each, self.host.model.generation_config.eos_token_id)
        said = [{"prediction": text.strip(), "answer_tokens": n} for text, n in zip(texts, ends, strict=True)]
        if kept:
            steps = torch.stack(kept, dim=1).cpu().numpy()
            self.answers.add_steps(names, [row[:n] for row, n in zip(steps, ends, strict=True)])
        if drift is not None:
            said = [s | {"kl_steps": round(kl, 6)} for s, kl in zip(said, drift.means(ends), strict=True)]
        return said, seen[0].float().log_softmax(-1)


def ended(answers: Sequence[Tensor], end: int | Sequence[int] | None) -> list[int]:
    """Tokens of each answer up to its end token, that one included; what is filled in behind does not count."""
    ends = {end} if isinstance(end, int) else set(end or ())
    rows = [row.tolist() for row in answers]
    return [next((i for i, token in enumerate(row, 1) if token in ends), len(row)) for row in rows]


@contextmanager
def first_logits(host: LVLM, look: Callable[[Tensor], None] | None = None) -> Iterator[list[Tensor]]:
    """Collect [B, V] logits of the first answer token alone: those of all steps would fill a device.

    Args:
        look: is shown those of every step.
    """
    seen: list[Tensor] = []

    def show(module: Any, args: Any, out: Any) -> None:
        logits = out.logits[:, -1]
        if not seen:
            seen.append(logits.clone())
        if look is not None:
            look(logits)

    hook = host.model.register_forward_hook(show)
    try:
        yield seen
    finally:
        hook.remove()


class Generate(Way):
    """A prompt with pictures, and text behind it."""

    name, does = GENERATE, DOES[GENERATE]
    collate, evaluate = Collate, Generating

    def look(self, loaded: Loaded, samples: Sequence[Sample], sizes: Sizes) -> Seen:
        """Prompts of like length share a batch; those that are too long for the model are refused."""
        collate = self.collate(loaded.processor)
        if loaded.host.unit == PROMPT_TOKENS:
            return _look_at_texts(loaded, samples, collate)
        estimates = visual_tokens(samples, loaded.processor, sizes)
        order = by_length(samples, loaded.processor, estimates)
        totals, pictures = visual_totals(samples, estimates, loaded.host, collate)
        try_unusual(samples, collate)
        check_lengths(samples, totals, loaded, collate)
        return Seen(estimates, totals, pictures, order)

    def prompt(self, loaded: Loaded, sample: Sample) -> str:
        """Special tokens included, as a person can read it."""
        inputs = self.collate(loaded.processor)([sample]).inputs
        return shown_prompt(loaded.processor.tokenizer, inputs["input_ids"][0].tolist())

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """As the task scores texts."""
        said = [rows[s.id]["prediction"] for s in samples]
        if isinstance(self.task, Corpus):
            return self.task.scores(samples, said)
        return [self.task.score(s, text) for s, text in zip(samples, said, strict=True)]

    @property
    def sums(self) -> bool:
        """Where the task has metrics of many texts."""
        return isinstance(self.task, Corpus)

    def summary(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, float]:
        """The task's own."""
        return self.task.summary(samples, [rows[s.id]["prediction"] for s in samples])  # type: ignore[attr-defined]

    def once(self, loaded: Loaded, inputs: Mapping[str, Tensor], sample: Sample) -> tuple[Row, Tensor]:
        """The text, and [V] log-probabilities of its first token."""
        most = sample.max_new_tokens or self.task.max_new_tokens
        with first_logits(loaded.host) as seen:
            ids = loaded.host.generate(**inputs, max_new_tokens=most)
        text = loaded.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"prediction": text.strip()}, seen[0][0].float().log_softmax(-1)

    def likely(self, loaded: Loaded, first: Tensor, most: int) -> list[tuple[str, float]]:
        """First tokens."""
        top = first.exp().topk(min(most, len(first)))
        named = [loaded.processor.tokenizer.decode([i]) for i in top.indices.tolist()]
        return list(zip(named, top.values.tolist(), strict=True))

    def inert(self, loaded: Loaded, arm: Arm, samples: Sequence[Sample]) -> dict[str, Any]:
        """Tokens and logits of whole answers."""
        return check_inert(loaded, arm, samples, self.task.max_new_tokens)

    def picture(
        self, loaded: Loaded, sample: Sample, row: Row | None = None
    ) -> tuple[Image.Image, dict[str, Any]] | None:
        """The first picture of the prompt, or else the frames of its first video side by side, and below them as a band
        the events that the method found.
        """
        if not len(sample.images) and sample.clips:
            clip, inputs = sample.clips[0], self.collate(loaded.processor)([sample]).inputs
            layout = loaded.host.layout(inputs | clip_layout(loaded.host, loaded.processor, sample.clips))
            deep = int(layout.coord[0][layout.image[0] == 0, 0].max()) + 1
            band = event_band((row or {}).get("events") or (), deep)
            return strip_of(list(clip[:: -(-len(clip) // deep)]), layout, band=band)
        if not len(sample.images):
            return None
        first = sample.images[0]
        places = describe_views(loaded.host, loaded.host.layout(self.collate(loaded.processor)([sample]).inputs), first)
        return (first, places) if places else None


def event_band(events: Sequence[Mapping[str, Any]], frames: int) -> list[tuple[int, int, int]]:
    """A colour for each row of frames of the first video: turns of two hues, full where an event or a frame matters.

    Args:
        events: Events as METok describes them; of other methods none.
        frames: Rows of tokens in time.
    """
    band = [(255, 255, 255)] * frames
    for number, event in enumerate(e for e in events if e["video"] == 0):
        hue = HUES[number % len(HUES)]
        for frame in range(event["first"], event["end"]):
            strength = 0.15 + 0.4 * event["key"] + 0.45 * (frame in event["key_frames"])
            band[frame] = tuple(round(255 - strength * (255 - part)) for part in hue)  # type: ignore[assignment]
    return band if events else []


def _look_at_texts(loaded: Loaded, samples: Sequence[Sample], collate: Collate) -> Seen:
    """Every prompt is counted; no sample shows a picture. Prompts of one batch differ by half at most, or else most of
    its tokens would be padding.
    """
    totals, none = text_totals(samples, collate), [0] * len(samples)
    check_lengths(samples, none, loaded, collate)
    groups = [round(2 * math.log2(max(1, total))) for total in totals]
    order = sorted(by_length(samples, loaded.processor, none), key=lambda i: -groups[i])
    return Seen(totals, totals, 1, order, groups)


class Foreign(Generate):
    """Text of tasks that another harness draws, asks, answers and judges as it does."""

    task: OwnWay  # type: ignore[assignment]

    def __init__(self, task: OwnWay):
        super().__init__(task)  # type: ignore[arg-type]
        self.collate, self.evaluate = task.collate, task.evaluate

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """As the harness judges."""
        judged = self._judged(rows).scores
        return [judged[s.id] for s in samples]

    def metrics(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, Any]:
        """The harness's own numbers."""
        return {"all": dict(self._judged(rows).metrics), "by_ability": {}}

    def _judged(self, rows: Mapping[str, Row]) -> Judgement:
        return self.task.judge(rows)
