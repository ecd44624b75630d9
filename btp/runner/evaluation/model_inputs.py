"""Batches as a model takes them: on its device, with the features of their videos."""

from __future__ import annotations

from typing import Any

from btp.models.loading.load import Loaded
from btp.models.video.clip_features import encode_clips
from btp.runner.evaluation.data import Batch


def model_inputs(loaded: Loaded, batch: Batch) -> dict[str, Any]:
    """Inputs of a forward or of a generate(). Videos are encoded here and now, inside of whatever is attached."""
    host = loaded.host
    inputs = batch.to(host.device, host.dtype, non_blocking=True).inputs
    clips = [clip for mine in batch.clips for clip in mine]
    return inputs | encode_clips(host, loaded.processor, clips) if clips else inputs
