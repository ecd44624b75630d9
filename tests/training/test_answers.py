"""Batches of training samples: prompts as inference has them, answers behind, the same for a step every time."""

import json

import pytest
import torch
from PIL import Image

from btp.core.schedule import Schedule, Stage
from btp.engine.training.masking import masking
from btp.models.embedded.pocket import build_processor
from btp.pruners.lvpruning import LVPruning
from btp.runner.evaluation.data import Collate
from btp.runner.training.answers import IGNORED, Teach, key_of
from btp.runner.training.modules import answer_loss, masked_losses
from btp.runner.training.train import frozen
from btp.tasks.files.calibration_sets import Draw, LlavaInstruct
from btp.tasks.pocketvqa.questions import words
from btp.tasks.pocketvqa.task import PocketVQA


@pytest.fixture(scope="module")
def processor():
    return build_processor(words(), 96, 8)


DATA = PocketVQA("train", 0, 12)


def teach(processor, **changes):
    settings = {"samples": DATA, "batch": 4, "seed": 0, "longest": 64}
    return Teach(processor, **(settings | changes))


def test_prompts_are_those_of_inference_with_their_answers_behind(processor):
    samples = [DATA[0], DATA[8]]  # a short answer, a description
    taught = teach(processor).collate(samples)
    plain = Collate(processor)(samples).inputs
    P = plain["input_ids"].shape[1]
    assert torch.equal(taught.inputs["input_ids"][:, :P], plain["input_ids"])
    assert torch.equal(taught.prompt[:, :P], plain["attention_mask"].bool())
    assert not taught.prompt[:, P:].any()
    tokenizer = processor.tokenizer
    for row, sample in enumerate(samples):
        said = taught.target[row][taught.target[row] != IGNORED]
        assert said[:-1].tolist() == tokenizer(sample.reference, add_special_tokens=False)["input_ids"]
        assert said[-1] == tokenizer.eos_token_id
        assert torch.equal(taught.inputs["input_ids"][row, P : P + len(said)], said)
        assert taught.inputs["attention_mask"][row, P:].sum() == len(said)
    assert teach(processor, longest=3).collate(samples).target.shape[1] == 3


def test_steps_see_every_sample_once_a_pass_in_another_order(processor):
    made = teach(processor)
    passes = [[i for step in steps for i in made.indices(step)] for steps in ((0, 1, 2), (3, 4, 5))]
    assert [sorted(one) for one in passes] == [list(range(12))] * 2
    assert passes[0] != passes[1]
    assert teach(processor).indices(4) == made.indices(4)
    halves = [teach(processor, rank=r, world=2).draw(1).target for r in (0, 1)]
    assert sum(len(half) for half in halves) == 4


def test_answers_count_alike_however_long_they_are():
    """Mean over rows of the mean over a row's tokens."""
    logits = torch.randn(2, 3, 5)
    target = torch.tensor([[1, 2, 3], [4, IGNORED, IGNORED]])
    each = -logits.log_softmax(-1)
    wanted = ((each[0, 0, 1] + each[0, 1, 2] + each[0, 2, 3]) / 3 + each[1, 0, 4]) / 2
    assert answer_loss(logits, target).item() == pytest.approx(wanted.item())


def test_samples_are_known_by_question_and_picture():
    one = DATA[0]
    other = DATA[9]  # the same ability
    assert key_of(one) == key_of(PocketVQA("train", 0, 1)[0]) != key_of(other)


@pytest.fixture
def instruct(tmp_path):
    """Files in the layout of LLaVA's instruction mix, one entry without an answer."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    says = [
        [{"from": "human", "value": "<image>\nwhat color is the disc ?"}, {"from": "gpt", "value": "red"}],
        [{"from": "human", "value": "is there a red disc ?\n<image>"}],
    ]
    entries = [{"id": str(i), "image": "a.png", "conversations": said} for i, said in enumerate(says)]
    (tmp_path / "mix.json").write_text(json.dumps([*entries, {"id": "text", "conversations": says[0]}]))
    return LlavaInstruct(str(tmp_path), "mix.json", ".", "training")


def test_conversations_teach_their_first_answer(processor, instruct):
    data = Draw(instruct, 2, 0, "training")
    with_answer = next(s for s in (data[0], data[1]) if s.reference)
    taught = teach(processor, samples=data).collate([with_answer])
    assert processor.tokenizer.decode(taught.target[0, :-1]) == "red"
    silent = next(s for s in (data[0], data[1]) if not s.reference)
    with pytest.raises(ValueError, match=r"training sample 000001-1 has no answer, and training needs one"):
        teach(processor, samples=data).collate([silent])
    with pytest.raises(ValueError, match=r"training.samples is 3, but training.path holds 2 samples with a picture"):
        Draw(instruct, 3, 0, "training")


def test_the_loss_of_a_training_is_that_of_the_models_own_labels(processor):
    """Nothing masked: as the model computes it from labels, a row at a time; and its weights stay frozen."""
    from btp.models.embedded.pocket import build_model
    from btp.models.lvlm import LVLM

    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    text = size | {"num_key_value_heads": 2}
    lvlm = LVLM(build_model(processor.tokenizer, side=96, patch=8, vision=size, text=text).eval())
    batch = teach(processor).collate([DATA[0]])
    P = batch.prompt.shape[1] - batch.target.shape[1]
    labels = torch.cat([torch.full((1, P), IGNORED), batch.target], 1)
    pruner = LVPruning(width=8, blocks=1, heads=2, tau=1.0, noise=0.0, seed=0)
    whole = Schedule((Stage("llm.layer.1", 1.0),))
    had = [p.requires_grad for p in lvlm.model.parameters()]
    with torch.no_grad():
        wanted = lvlm.model(**batch.inputs, labels=labels).loss
        with masking(lvlm, pruner, whole, "hard") as masked:
            output, _ = masked(batch.inputs, batch.prompt)
    assert answer_loss(output.logits[:, P - 1 : -1], batch.target).item() == pytest.approx(wanted.item(), rel=1e-5)
    aimed = Schedule((Stage("llm.layer.1", 1.0, settings={"target": 0.5}),))
    with frozen(lvlm.model), masking(lvlm, pruner, aimed) as masked:
        found = masked_losses(lvlm, pruner, masked, batch)
        (found["answer"] + found["ratio"]).backward()
        assert all(p.grad is None for p in lvlm.model.parameters())
    assert 0 <= found["kept llm.layer.1"] <= 1
    assert [p.requires_grad for p in lvlm.model.parameters()] == had
