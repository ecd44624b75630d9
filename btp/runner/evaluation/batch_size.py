"""A batch size that gives way where memory ends: the failing batch goes in halves, the rest in smaller batches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import lightning as L
import torch
from tqdm import tqdm

from btp.runner.evaluation.data import Batch, Batches

SAID = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")


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
        """Do a step for a batch, in parts where it does not fit, and remember what does.

        Args:
            batch: of any size; larger than what is known to fit it is not tried.
            make: makes a batch of some of its indices.
            step: leaves nothing behind where it runs out of memory.

        Raises:
            RuntimeError: there is no room for a single sample.
        """
        waiting = self._parts(batch, make)
        while waiting:
            part = waiting.pop(0)
            if self._fits(part, step):
                continue
            rows = [i for late in (part, *waiting) for i in late.indices]
            self._shrink(len(part.indices))
            waiting = [make(rows[at : at + self.used]) for at in range(0, len(rows), self.used)]

    def _parts(self, batch: Batch, make: Callable[[Sequence[int]], Batch]) -> list[Batch]:
        if len(batch.indices) <= self.used:
            return [batch]
        return [make(batch.indices[at : at + self.used]) for at in range(0, len(batch.indices), self.used)]

    def _fits(self, part: Batch, step: Callable[[Batch], None]) -> bool:
        try:
            step(part)
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
    """One pass over batches, in parts where memory ends. A subclass holds no model, so that none is moved.

    Args:
        batches: that come, and make parts of themselves.
        size: of the batches.
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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no room left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAID)
