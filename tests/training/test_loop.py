"""The loop of all trainings: pace, log, states, processes that share a gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from btp.runner.training.course import Course, Pace
from btp.runner.training.fit import LOG, STATE, fit


class Slope(Course):
    """Learns y = 2 x."""

    name = "slope"

    def __init__(self, pace, rank=0, world=1):
        self.pace, self.rank, self.world = pace, rank, world
        torch.manual_seed(0)
        self.learner = nn.Linear(3, 1)
        self.watched = []

    def draw(self, step):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return x[self.rank :: self.world]

    def losses(self, batch, step):
        return {"off": (self.learner(batch)[:, 0] - 2 * batch[:, 0]).square().mean(), "zero": batch.sum() * 0}

    def optimiser(self):
        return torch.optim.SGD(self.learner.parameters(), lr=self.pace.rate)

    def not_finite(self, step, found):
        return ValueError(f"not finite at {step}")

    def missed(self, means):
        return ValueError("missed")

    def watch(self, step, means):
        self.watched.append((step, means))


PACE = Pace(steps=6, batch=8, rate=0.05, losses={"off": 1.0}, warmup=2, decay=0.5, average=None)


def test_rates_rise_stay_and_fall():
    line = [Pace(steps=10, batch=1, rate=1, losses={}, warmup=2, decay=0.4).share(s) for s in range(11)]
    assert line[:7] == [0.5, 1, 1, 1, 1, 1, 1]
    assert line[10] == pytest.approx(0.02)
    wave = [
        Pace(steps=10, batch=1, rate=1, losses={}, warmup=0, decay=1.0, curve="cosine").share(s) for s in (0, 5, 10)
    ]
    assert wave == pytest.approx([1, 0.5, 0])


def test_lines_and_means_are_those_of_the_steps_between(tmp_path):
    course = Slope(PACE)
    assert fit(course, tmp_path, every=2, keep=100)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(line["training"], line["step"]) for line in lines] == [("slope", 2), ("slope", 4), ("slope", 6)]
    assert [step for step, _ in course.watched] == [2, 4, 6]
    assert [line["off"] for line in lines] == [round(means["off"], 4) for _, means in course.watched]


def test_lines_that_come_again_are_taken_out_of_the_log(tmp_path):
    """A killed training wrote more lines than its last state knows of, and half of one."""
    assert fit(Slope(Pace(**{**vars(PACE), "steps": 4})), tmp_path, every=1, keep=2)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"training": "slope", "step": 5, "off": 9}\n{"training": "sl')
    assert fit(Slope(PACE), tmp_path, every=1, keep=2)
    steps = [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_state_without_what_the_next_line_is_made_of_is_taken_up(tmp_path):
    """As those that were saved before it was kept."""
    even = Pace(**{**vars(PACE), "decay": 0.0})
    assert fit(Slope(Pace(**{**vars(even), "steps": 4})), tmp_path, keep=2)
    state = torch.load(tmp_path / STATE, weights_only=False)
    del state["seen"], state["count"]
    torch.save(state, tmp_path / STATE)
    course, whole = Slope(even), Slope(even)
    assert fit(course, tmp_path, keep=2)
    (tmp_path / "whole").mkdir()
    assert fit(whole, tmp_path / "whole")
    assert torch.equal(course.learner.weight, whole.learner.weight)


PROGRAM = """
import sys; sys.path[:0] = {path!r}
import torch, torch.distributed as dist
torch.set_num_threads(1)
from pathlib import Path
from test_loop import PACE, Slope
from btp.runner.training.fit import fit
from btp.runner.training.modules import share_gradients
rank, out = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{{out}}/meet")
course = Slope(PACE, rank, 2)
course.share_gradients = lambda: share_gradients(course.learner, 2)
fit(course, out, leads=rank == 0, keep=2)
torch.save(course.learner.state_dict(), out / f"{{rank}}.pt")
"""


@pytest.mark.long
def test_two_processes_learn_as_one_does(tmp_path):
    """Each has half of a step's rows; both end with the weights of the whole."""
    here = Path(__file__).parent
    program = PROGRAM.format(path=[str(here), str(here.parents[1])])
    both = [subprocess.Popen([sys.executable, "-c", program, str(r), str(tmp_path)], env=os.environ) for r in (0, 1)]
    assert [p.wait(timeout=240) for p in both] == [0, 0]
    alone = Slope(PACE)
    (tmp_path / "alone").mkdir()
    fit(alone, tmp_path / "alone")
    states = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1)]
    for key, value in alone.learner.state_dict().items():
        assert torch.equal(states[0][key], states[1][key])
        assert torch.allclose(states[0][key], value, atol=1e-6)
