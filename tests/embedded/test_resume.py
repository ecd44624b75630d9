"""A training that was stopped goes on where it stopped, also when it stops before it has saved by itself."""

import numpy as np
import torch
from torch import nn

from experiments.embedded.recipe import Phase, Recipe
from experiments.embedded.train import train


class Line(Recipe):
    """Fits a line."""

    name = "line"
    phases = (Phase("fit", steps=60, batch=4, rate=0.05, losses={"error": 1.0}, warmup=1),)

    def build(self) -> nn.Module:
        """One weight and one bias."""
        return nn.Linear(1, 1)

    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """A point of the line."""
        x = rng.uniform(-1, 1)
        return {"x": x, "y": 2 * x + 1}

    def collate(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Columns."""
        return {key: torch.tensor([[s[key]] for s in samples], dtype=torch.float32) for key in ("x", "y")}

    def losses(self, learner: nn.Module, batch: dict, phase: Phase) -> dict[str, torch.Tensor]:
        """Squared error."""
        return {"error": (learner(batch["x"]) - batch["y"]).square().mean()}

    def save(self, learner: nn.Module, folder) -> None:
        """The state."""
        folder.mkdir()
        torch.save(learner.state_dict(), folder / "state.pt")


def test_stopped_twice_it_goes_on_and_ends_like_an_unbroken_one(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    steps = []
    for _ in range(2):
        assert not train(Line(), broken, minutes=0)
        assert {p.name for p in (broken / "0_fit").iterdir()} == {"last.ckpt"}
        steps.append(torch.load(broken / "0_fit" / "last.ckpt", weights_only=False)["global_step"])
    assert 0 < steps[0] < steps[1] < 60
    assert train(Line(), broken)
    assert train(Line(), whole)
    one, two = (torch.load(folder / "model" / "state.pt", weights_only=True) for folder in (broken, whole))
    assert all(torch.allclose(one[key], two[key]) for key in one)
