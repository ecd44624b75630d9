"""Videos in prompts: placeholders by a rule, frames by the picture processor, encoded some at a time."""

import numpy as np
import pytest
import torch
from oracle import steps
from PIL import Image

from btp.engine.attach import attach
from btp.models.chat_template import chat_inputs
from btp.models.video.clip_features import clip_pixels, encode_clips
from btp.models.video.clips import clip_tokens
from families import kit

HOSTS = ("llava_onevision", "llava_next_video", "video_llava", "qwen25vl")


class Frames:
    """A clip of noise that counts how many frames are looked at together."""

    def __init__(self, count, seed=0, size=(50, 46)):
        self.seeds, self.size, self.most = range(seed, seed + count), size, 0

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, index):
        if isinstance(index, slice):
            found = [self[i] for i in range(*index.indices(len(self)))]
            self.most = max(self.most, len(found))
            return found
        noise = np.random.default_rng(self.seeds[index]).integers(0, 256, (*self.size[::-1], 3), dtype=np.uint8)
        return Image.fromarray(noise)


def prompts(name, rows):
    """Inputs of rows of pictures, clips and a question, in this order."""
    host = kit.loaded(name)
    chats, pictures, clips = [], [], []
    for mine, videos, question in rows:
        shown = [{"type": "image"}] * len(mine) + [{"type": "video"}] * len(videos)
        chats.append([{"role": "user", "content": [*shown, {"type": "text", "text": question}]}])
        pictures.append(mine)
        clips.append(videos)
    return dict(chat_inputs(host.processor, chats, pictures, clips)[0]), [clip for mine in clips for clip in mine]


@pytest.mark.parametrize("name", HOSTS)
def test_chunks_make_what_one_pass_makes(name):
    """A clip of seven frames, two at a time, answers as all of its frames at once, and no more are opened together."""
    host, clip = kit.loaded(name), Frames(7)
    inputs, _ = prompts(name, [([], [clip], "what is shown?")])
    made = encode_clips(host.host, host.processor, [clip], chunk=2)
    assert clip.most == 2
    whole = inputs | clip_pixels(host.processor, [clip])
    with attach(host.host) as trace:
        tokens, logits = steps(host.host, whole)
        again, others = steps(host.host, inputs | made)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, others, atol=2e-5, rtol=2e-5)
    assert trace[0].total == trace[1].total == (clip_tokens(host.processor, [clip]),)


@pytest.mark.parametrize("name", HOSTS)
def test_rows_of_unequal_videos(name):
    """Two videos in one prompt, one frame beside a picture, text alone: each row of the batch answers as alone."""
    host = kit.loaded(name)
    picture = Frames(1, 90)[0]
    rows = [
        ([], [Frames(4, 10), Frames(2, 20)], "what is left of the blue circle"),
        ([picture], [Frames(1, 30)], "yes or no?"),
        ([], [], "a single word"),
    ]
    inputs, clips = prompts(name, rows)
    with attach(host.host) as trace:
        _, together = steps(host.host, inputs | encode_clips(host.host, host.processor, clips), 2)
        layout = trace[0].total
        for b, row in enumerate(rows):
            mine, shown = prompts(name, [row])
            features = encode_clips(host.host, host.processor, shown) if shown else {}
            _, alone = steps(host.host, mine | features, 2)
            torch.testing.assert_close(together[:, b : b + 1], alone, atol=3e-5, rtol=3e-5)
    assert layout[0] == clip_tokens(host.processor, rows[0][1])
    assert layout[2] == 0


def test_one_frame_is_a_video():
    """It has the tokens of one frame."""
    processor = kit.loaded("llava_onevision").processor
    assert clip_tokens(processor, [Frames(1)]) == 5
    assert clip_tokens(processor, [Frames(3), Frames(2)]) == 13 + 9


def test_families_without_videos_say_so():
    """With what does take them."""
    with pytest.raises(ValueError, match="LLaVA-OneVision"):
        prompts("llava_next", [([], [Frames(2)], "what is shown?")])
