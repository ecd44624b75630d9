"""Peak memory of reading and encoding a video in chunks, by its number of frames, each length in a process of its own.

python -m experiments.video.memory

Freed memory goes back to the system at once here, so that resident memory is what is in use; glibc would keep some.
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, PATCH = 384, 16
VISION = {"hidden_size": 576, "intermediate_size": 2304, "num_hidden_layers": 2, "num_attention_heads": 8}
TEXT = {
    "hidden_size": 896,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
COLUMNS = ("frames", "pixels of all frames, MiB", "features, MiB", "peak over one chunk, MiB", "beside features, MiB")


def measured(frames: int, folder: str) -> tuple[float, ...]:
    """One row: the peak of resident memory over what loading and a first chunk took, all in MiB."""
    import torch

    from btp.models.embedded.pocket_video import build_video_model, build_video_processor, build_video_tokenizer
    from btp.models.families.llava_onevision import LlavaOneVision
    from btp.models.video.clip_features import CHUNK, encode_clips
    from btp.tasks.files.video_frames import Sampling, footage

    torch.set_num_threads(1)
    tokenizer = build_video_tokenizer(["what"])
    processor = build_video_processor(tokenizer, SIDE, PATCH)
    host = LlavaOneVision(build_video_model(tokenizer, side=SIDE, patch=PATCH, vision=VISION, text=TEXT).eval())

    def encode(count: int) -> int:
        clip = footage("clip", Path(folder), Sampling(count, None, 1.0), "task.path")
        found = encode_clips(host, processor, [clip])["mm_encoder_outputs"]["video"].pooler_output
        return found.numel() * found.element_size()

    encode(CHUNK)
    before = _peak()
    features, pixels = encode(frames) / 2**20, frames * 3 * SIDE**2 * 4 / 2**20
    over = _peak() - before
    return frames, pixels, features, over, over - features


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(folder: Path, frames: int) -> None:
    """Frames of a moving gradient, as pictures in a folder."""
    ramp = np.arange(SIDE, dtype=np.uint16)
    for i in range(frames):
        grey = ((ramp[:, None] + ramp[None] + 3 * i) % 256).astype(np.uint8)
        Image.fromarray(np.stack([grey, grey.T, 255 - grey], -1)).save(folder / f"{i:04}.jpg")


def main(show: Callable[[str], None] = print) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128, 512], help="lengths of the video")
    lengths = parser.parse_args().frames
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}  # of the processes started below
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), max(lengths))
        show("| " + " | ".join(COLUMNS) + " |")
        show("|" + "--:|" * len(COLUMNS))
        for frames in lengths:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                row = alone.submit(measured, frames, folder).result()
            show("| " + " | ".join(f"{value:.0f}" for value in row) + " |")


if __name__ == "__main__":
    main()
