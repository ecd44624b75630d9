"""The method shown in CONTRIBUTING.md is real: it loads, meets the contract and prunes."""

import re
from pathlib import Path

import yaml
from tiny import llava, prompts

from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.schedules.solve import solve_fit

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()


def test_the_shown_method_runs():
    code, config = (re.search(rf"```{kind}\n(.*?)```", TEXT, re.S).group(1) for kind in ("python", "yaml"))
    assert len([line for line in code.splitlines() if line and '"""' not in line]) <= 10
    space = {}
    exec(compile(code, "longest.py", "exec"), space)
    node = yaml.safe_load(config)
    lvlm = llava()
    pruner = space[node["method"]["_target_"].rsplit(".", 1)[1]]()
    inputs = prompts(lvlm, [[3, "i", 5]])
    total = int(lvlm.visual_mask(inputs).sum())
    schedule = solve_fit(Schedule.from_config(node["schedule"]), total, lvlm.num_layers, 0.7 * total)
    with attach(lvlm, pruner, schedule) as trace:
        lvlm.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert trace.fired == {"llm.layer.1": True}
