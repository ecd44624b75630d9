"""Attention distillation: what teaches is the attention of the unpruned model, the loss a divergence from it."""

import tiny
import torch

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.pruners.lvpruning import LVPruning
from btp.runner.training.distil import AttentionTeacher

SCHEDULE = Schedule(tuple(Stage(f"llm.layer.{at}", 1.0, settings={"target": 0.5}) for at in (1, 3)))
ROWS = [[3, "i", 5], [2, "i", 9], [1, "i", 2]]


def taught(host, inputs, layers):
    teacher = AttentionTeacher(LVPruning(width=None, blocks=1, heads=4, tau=1.0, noise=0.0, seed=0), SCHEDULE, layers)
    with attach(host, teacher, teacher.schedule), torch.no_grad():
        host(**inputs, use_cache=False)
    return teacher


def test_the_text_of_deeper_layers_teaches():
    """The most that a row of the text behind the picture pays a token, the mean over heads and layers."""
    host = tiny.shared("llava", attention="eager")
    inputs = tiny.prompts(host, ROWS, "left")
    teacher = taught(host, inputs, (1, 3))
    found = host.model(**inputs, output_attentions=True, use_cache=False).attentions[1:3]
    image = inputs["input_ids"] == host.config.image_token_id
    for row, mine in enumerate(image):
        places = mine.nonzero()[:, 0]
        paid = [layer[row, :, int(places[-1]) + 1 :, :][:, :, places] for layer in found]  # [H, T, N] each
        plain = torch.stack([p.amax(1).mean(0) for p in paid]).mean(0)
        assert torch.allclose(teacher._attended[row], plain, atol=1e-6)


def test_the_loss_is_zero_where_the_ranking_is_the_attention():
    """And has gradients for the modules alone, both of them."""
    host = tiny.shared("llava")
    teacher = taught(host, tiny.prompts(host, ROWS, "left"), (1, 3))
    attended = teacher._attended
    teacher.loss().backward()
    modules = teacher.trained.modules
    assert len(modules) == 2
    assert all(p.grad is not None for name, p in modules.named_parameters() if not name.endswith("head.bias"))
    assert all(p.grad is None for p in host.model.parameters())
    teacher._attended, teacher._rankings = attended, [attended.log() + 7.0] * 2
    assert abs(float(teacher.loss())) < 1e-6


def test_a_batch_without_a_picture_teaches_nothing():
    """Its loss is 0, and the one before is forgotten."""
    host = tiny.shared("llava")
    teacher = taught(host, tiny.prompts(host, ROWS, "left"), (1, 3))
    teacher.loss()
    with attach(host, teacher, teacher.schedule), torch.no_grad():
        host(**tiny.prompts(host, [[8], [9]], "left"), use_cache=False)
    loss = teacher.loss()
    loss.backward()
    assert loss.item() == 0.0
