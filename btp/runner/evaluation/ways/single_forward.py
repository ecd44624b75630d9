"""Base of classification and detection: pictures or clips alone, answered in one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.models.token_layout import describe_views, strip_of
from btp.runner.arms import Arm, inert
from btp.runner.evaluation.data import Batch, Collate, shrunk
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.evaluation.processing import processed, try_unusual
from btp.runner.evaluation.visual_totals import visual_count
from btp.runner.evaluation.ways.way import Row, Seen, Sizes, Way
from btp.tasks.sample import Sample, Task


class Look(Collate):
    """Makes one batch of pictures or clips, which all come to the same size.

    Args:
        processor: Processor of pictures, or of clips.
        views: Views of a sample, equal parts of its pictures.
        every: take all of them, the middle one first, and not the middle one alone.
    """

    def __init__(self, processor: Any, views: int = 1, every: bool = True):
        super().__init__(processor)
        self.views, self.every = views, every

    def __call__(self, samples: Sequence[Sample], indices: Sequence[int] = (), shares: Sequence[float] = ()) -> Batch:
        """Prepare the first picture of each sample, or all of them where the processor takes clips."""
        shown = [view for sample in samples for view in self.views_of(sample)]
        each = len(shown) // len(samples)
        pictures = shrunk(shown, [share for share in shares for _ in range(each)])
        asked = [sample for sample in samples for _ in range(each)]
        inputs = processed(partial(_prepare, self.processor), asked, ["" for _ in asked], pictures)
        if each > 1:
            inputs = {key: x.unflatten(0, (len(samples), each)) for key, x in inputs.items()}
        return Batch(inputs, [replace(s, images=()) for s in samples], [s.id for s in samples], indices)

    def views_of(self, sample: Sample) -> list[list[Image.Image]]:
        """The pictures of each view that is taken."""
        size, middle = len(sample.images) // self.views, self.views // 2
        rest = [view for view in range(self.views) if view != middle] if self.every else []
        return [list(sample.images[view * size : (view + 1) * size]) for view in (middle, *rest)]


def _prepare(processor: Any, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
    """pixel_values [B, 3, h, w], or [B, frames, 3, h, w]."""
    shown = list(map(list, pictures)) if takes_clips(processor) else [mine[0] for mine in pictures]
    return {"pixel_values": processor(shown, return_tensors="pt")["pixel_values"].float()}


def takes_clips(processor: Any) -> bool:
    """Whether a processor makes one input of several frames."""
    return "video" in type(processor).__name__.lower()


class Looking(Way):
    """Pictures or clips without a question."""

    def __init__(self, task: Task):
        super().__init__(task)
        self.views = getattr(task, "views", 1)
        self.collate = partial(Look, views=self.views)

    @property
    def collate_once(self) -> partial[Look]:
        """The middle view of each sample."""
        return partial(Look, views=self.views, every=False)

    def check(self, loaded: Loaded, samples: Sequence[Sample]) -> None:
        """Also: a model of clips needs as many frames as it was made for, one of pictures a picture."""
        super().check(loaded, samples)
        wanted = loaded.host.config.num_frames if takes_clips(loaded.processor) else 1
        for sample in samples:
            if len(sample.images) != wanted * self.views:
                what = f"clips of {wanted} frames" if wanted > 1 else "one picture"
                found = len(sample.images) // self.views
                raise ValueError(
                    f"sample {sample.id} has {found} pictures, but the model takes {what} (num_frames of "
                    "its config.json). Set task.dataset.reader.frames, or choose another model."
                )

    def look(self, loaded: Loaded, samples: Sequence[Sample], sizes: Sizes) -> Seen:
        """One sample of each size is counted; those of one size share batches, the largest first."""
        collate = self.collate_once(loaded.processor)
        groups = [tuple(mine[:1]) for mine in sizes] if varies(loaded.processor) else [()] * len(samples)
        shown = dict(zip(reversed(groups), reversed(samples), strict=True))
        counted = {group: visual_count(loaded.host, collate([sample]).inputs) for group, sample in shown.items()}
        totals = [counted[group] for group in groups]
        order = sorted(range(len(samples)), key=lambda i: (-totals[i], groups[i], samples[i].ability, samples[i].id))
        try_unusual(samples, collate)
        return Seen(totals, totals, 1, order, groups if len(counted) > 1 else ())

    def answer(self, loaded: Loaded, inputs: Mapping[str, Tensor]) -> tuple[list[dict[str, Any]], Tensor]:
        """What the row of each sample holds of its answer, and [B, ..., V] log-probabilities."""
        raise NotImplementedError

    def once(self, loaded: Loaded, inputs: Mapping[str, Tensor], sample: Sample) -> tuple[Row, Tensor]:
        """The only row."""
        (row,), found = self.answer(loaded, inputs)
        return row, found[0]

    def inert(self, loaded: Loaded, arm: Arm, samples: Sequence[Sample]) -> dict[str, Any]:
        """All that the head puts out. Samples of another size than the first are left out."""
        host, collate = loaded.host, self.collate_once(loaded.processor)
        made = [collate([sample]) for sample in samples]
        size = made[0].inputs["pixel_values"].shape
        same = [i for i, batch in enumerate(made) if batch.inputs["pixel_values"].shape == size]
        pixels = torch.cat([made[i].inputs["pixel_values"] for i in same]).to(host.device, host.dtype)
        chooses = any(not stage.withdraws_all for stage in arm.schedule)
        pruner = arm.build() if chooses else None
        aim(pruner, [samples[i] for i in same])
        with torch.inference_mode():
            plain = outputs(host(pixel_values=pixels))
            with attach(host, pruner, inert(arm.schedule)):
                attached = outputs(host(pixel_values=pixels))
        return {
            "checked": len(same),
            "identical": all(torch.equal(attached[key], value) for key, value in plain.items()),
            "max_logit_difference": max(float((attached[key] - value).abs().max()) for key, value in plain.items()),
        }

    def picture(
        self, loaded: Loaded, sample: Sample, row: Row | None = None
    ) -> tuple[Image.Image, dict[str, Any]] | None:
        """The picture; of a clip the first frame of each row of tubes, side by side."""
        batch = self.collate_once(loaded.processor)
        layout = loaded.host.layout(batch([sample]).inputs)
        if not takes_clips(loaded.processor):
            return sample.images[0], describe_views(loaded.host, layout, sample.images[0])
        (frames,) = batch.views_of(sample)
        return strip_of(frames[:: loaded.host.frames_per_tube], layout, sample.boxes)


def varies(processor: Any) -> bool:
    """Whether pictures of several sizes come to several sizes."""
    size = getattr(processor, "size", None) or {}
    fixed = "height" in size and "width" in size
    return not (fixed or getattr(processor, "do_center_crop", False))


def outputs(out: Any) -> Mapping[str, Tensor]:
    """The tensors that a head puts out."""
    return {key: out[key] for key in ("logits", "pred_boxes") if key in out and out[key] is not None}
