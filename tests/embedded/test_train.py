"""The trainer of the embedded models: a killed training goes on as if nothing had been, and bad input is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.embedded import fit
from experiments.embedded.recipe import Phase, Recipe
from experiments.embedded.train import load_recipe, train


class Line(Recipe):
    """Learns y = 2 x from eight numbers."""

    name = "line"
    seed = 5
    phases = (
        Phase("first", steps=6, batch=4, rate=0.02, losses={"square": 1.0}, warmup=2),
        Phase("second", steps=400, batch=4, rate=0.02, losses={"square": 1.0}, warmup=2, until={"near": 0.05}),
        Phase("third", steps=5, batch=4, rate=0.02, losses={"square": 1.0}, warmup=2),
    )

    def __init__(self):
        self.begun, self.left = [], None

    def build(self):
        return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 1)])})

    def begin(self, learner, phase):
        self.begun.append(phase.name)

    def sample(self, rng, phase):
        return {"x": torch.from_numpy(rng.standard_normal(8)).float()}

    def collate(self, samples):
        return {"x": torch.stack([s["x"] for s in samples])}

    def losses(self, learner, batch, phase):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        y = batch["x"]
        for layer in learner["layers"]:
            y = layer(y)
        off = y.squeeze(1) - 2 * batch["x"][:, 0]
        found = {"square": off.square().mean(), "near": off.detach().abs().lt(1).float().mean()}
        return found if batch["x"][0, 0] > 0 else found | {"below": off.detach().mean()}

    def save(self, learner, folder):
        folder.mkdir(exist_ok=True)
        torch.save(learner.state_dict(), folder / "weights.pt")


def weights(out):
    """The finished model's weights."""
    return torch.load(out / "model" / "weights.pt", weights_only=True)


def test_a_training_in_pieces_gives_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "KEEP", 2)
    whole, broken = Line(), Line()
    assert train(whole, tmp_path / "whole")
    pieces, finished = 0, False
    while not finished:
        broken.left = 9  # batches until the next interruption
        finished = run_until_interrupted(broken, tmp_path / "broken")
        pieces += 1
    assert pieces > 2
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert whole.begun == ["first", "second", "third"]


def run_until_interrupted(recipe, out):
    """Whether the training came to its end."""
    try:
        return train(recipe, out)
    except (KeyboardInterrupt, SystemExit):
        return False


@pytest.mark.long
def test_a_killed_process_goes_on_where_it_stopped(tmp_path):
    """The process dies without a word, as at a power cut."""
    program = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from experiments.embedded import fit; fit.KEEP = 2\n"
        "from test_train import Line\n"
        "from experiments.embedded.train import train\n"
        "train(Line(), Path(sys.argv[1]))\n"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], start_new_session=True)
    state = out / "1_second" / "last.ckpt"
    until = time.time() + 120
    while not state.exists() and process.poll() is None and time.time() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    assert not (out / "model").exists()
    torch.set_num_threads(1)
    assert train(Line(), out)
    assert train(Line(), tmp_path / "whole")
    one, two = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_phase_ends_once_it_has_what_it_asks_for(tmp_path):
    train(Line(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "1_second" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] < 400
    assert lines[-1]["near"] > 0
    assert any("below" in line for line in lines)  # logged although not every batch has it


def test_a_target_out_of_reach_is_refused_and_goes_on_with_more_steps(tmp_path):
    short = Line()
    short.phases = (Phase("only", steps=4, batch=4, rate=1e-4, losses={"square": 1.0}, until={"near": 0.9}),)
    with pytest.raises(ValueError, match=r"4 steps are over, and it has near 0\.\d\d of 0.9. Raise the phase's steps"):
        train(short, tmp_path)
    more = Line()
    more.phases = (Phase("only", steps=9, batch=4, rate=1e-4, losses={"square": 1.0}, until={"near": 0.01}),)
    assert train(more, tmp_path)
    assert more.begun == []


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    class Broken(Line):
        def losses(self, learner, batch, phase):
            return {"square": super().losses(learner, batch, phase)["square"] * float("nan")}

    with pytest.raises(RuntimeError, match="line, phase first, step 0: the loss is not finite"):
        train(Broken(), tmp_path)


def test_a_finished_training_is_recognised(tmp_path):
    assert train(Line(), tmp_path)
    again = Line()
    again.left = 0  # the first batch would interrupt it
    assert train(again, tmp_path)


def test_minutes_stop_it_in_time(tmp_path):
    assert not train(Line(), tmp_path, minutes=0)
    assert not (tmp_path / "model").exists()
    assert train(Line(), tmp_path)


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(ValueError, match=r"There is no recipe 'pocked'. Choose from: .*pocket.*pocket_text"):
        load_recipe("pocked")


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    assert train(Line(), tmp_path)
    other = Line()
    other.name = "curve"
    with pytest.raises(
        ValueError, match=r"holds a training of 'line', not of 'curve'\. Give another folder with --out"
    ):
        train(other, tmp_path)
