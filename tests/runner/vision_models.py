"""Checkpoints of tiny vision models with random weights, wide enough that every patch matters."""

import torch

from btp.models.embedded.pocket_vision import build_action, build_detector, build_processor, build_vim
from btp.tasks.pocketboxes.classify import CLASSES as DIGITS
from btp.tasks.pocketboxes.scene import NAMES
from btp.tasks.pocketmoves.scene import CLASSES as MOVES

BUILD = {
    "pocket_action": lambda: build_action(MOVES, side=64, frames=16),
    "pocket_det": lambda: build_detector(NAMES, side=96),
    "pocket_vim": lambda: build_vim(DIGITS, side=64),
}


def save(name, folder):
    """Write the checkpoint that a recipe would leave, untrained; returns its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILD[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    build_processor(model.config).save_pretrained(folder)
    return folder
