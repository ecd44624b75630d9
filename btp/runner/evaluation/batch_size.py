"""Halves the batch size on out-of-memory errors, for the failing batch and those behind it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import lightning as L
import torch
from tqdm import tqdm

from btp.runner.evaluation.data import Batch, Batches
from btp.runner.out_of_memory import out_of_memory


class BatchSize:
    """How many samples a forward takes, as asked for and as there was room for.

    Args:
        asked: samples.
        key: config key that asks for them, for messages.
    """

    def __init__(self, asked: int, key: str) -> None:
        self.asked = self.used = asked
        self.key = key

    def describe(self) -> dict[str, int]:
        """As run.json lists it."""
        return {"asked": self.asked, "used": self.used}

    def fit(self, batch: Batch, make: Callable[[Sequence[int]], Batch], step: Callable[[Batch], None]) -> None:
        """Do a step for a batch, in parts where it cannot be made or does not fit, and remember what does.

        Args:
            batch: Batch of any size; larger than what is known to fit it is not tried.
            make: makes a batch of some of its indices.
            step: leaves nothing behind where it runs out of memory.

        Raises:
            RuntimeError: there is no room for a single sample.
        """
        waiting = list(batch.indices)
        if len(waiting) <= self.used:
            if self._fits(lambda: batch, step):
                return
            self._shrink(max(1, len(waiting)))
        while waiting:
            part = waiting[: self.used]
            if self._fits(lambda part=part: make(part), step):
                del waiting[: len(part)]
            else:
                self._shrink(len(part))

    def _fits(self, made: Callable[[], Batch], step: Callable[[Batch], None]) -> bool:
        try:
            batch = made()
            if not batch.made:
                return False
            step(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            return True
        gc.collect()  # behind the handler, whose traceback holds the tensors of the failed forward
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False

    def _shrink(self, failed: int) -> None:
        if failed == 1:
            raise RuntimeError(
                f"out of memory with a single sample, so a smaller {self.key} does not help. Set model.dtype=bfloat16 "
                "or model.quantize=4bit, spread the model with model.device_map=auto, or lower the size of its "
                "pictures in model.processor."
            )
        self.used = failed // 2
        tqdm.write(
            f"out of memory with {failed} samples in a batch: going on with {self.used} "
            f"({self.key}={self.used} starts with it)"
        )


class Pass(L.LightningModule):
    """One pass over batches, split on out-of-memory errors. A subclass holds no model, so that none is moved.

    Args:
        batches: Batches that come, and make parts of themselves.
        size: Size of the batches.
    """

    def __init__(self, batches: Batches, size: BatchSize) -> None:
        super().__init__()
        self.batches, self.size = batches, size

    def step(self, batch: Batch) -> None:
        """What to do with a batch; leaves nothing behind where it runs out of memory."""
        raise NotImplementedError

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """For Trainer.test."""
        self.size.fit(batch, self.batches.again, self.step)
        self.batches.size = self.size.used

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """For Trainer.predict."""
        self.test_step(batch, batch_idx)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Left to each step, which goes where the model's first layer is."""
        return batch
