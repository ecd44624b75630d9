"""A method whose scores are not finite ends its run, and the message says at which sample."""

import re
import shutil

import pandas as pd
import pytest
import torch
from jobs import composed, job
from safetensors.torch import load_file, save_file

from btp.models.loading.checkpoint import find_checkpoint
from btp.pruners.attention import Attention


@pytest.mark.long
def test_the_sample_is_named(tmp_path, monkeypatch):
    """The last row of a batch, in a run of four samples a batch."""
    score = Attention.score

    def overflown(self, tokens, signals, stage):
        last = torch.arange(len(tokens.valid))[:, None] == len(tokens.valid) - 1
        return score(self, tokens, signals, stage).masked_fill(last, torch.nan)

    monkeypatch.setattr(Attention, "score", overflown)
    words = ["pruner=attention", "limit=8", "trainer.batch=4", "cost.enabled=false", "overlays=0"]
    words += ["calibration.samples=8"]
    message = (
        r"pruner 'attention' scored tokens with NaN at llm\.layer\.\d, in row 3 of the batch, .* It is sample \S+\.$"
    )
    with pytest.raises(ValueError, match=message) as error:
        job(tmp_path, *words)
    sample = re.search(r"sample (\S+)\.$", str(error.value))[1]
    monkeypatch.undo()
    run = job(tmp_path, *words)
    assert sample in pd.read_parquet(run / "samples.parquet").reset_index()["sample"].tolist()


@pytest.mark.long
def test_a_model_that_puts_out_nan_is_refused(tmp_path):
    """One number of its weights is enough; it would answer with the first word of its vocabulary."""
    folder = tmp_path / "broken"
    shutil.copytree(find_checkpoint(composed("model=pocket_mini")["model"]), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "lm_head" in name)
    weights[name].view(-1)[7] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = ["model=pocket_mini", f"model.path={folder}", "pruner=random", "limit=2", "cost.enabled=false"]
    with pytest.raises(ValueError, match=r"the model puts out NaN for sample \S+, \S+, so that its answers"):
        job(tmp_path, *words)
