"""The training forward: a binary mask is a removal, gradients reach modules alone, answers are not seen."""

import pytest
import tiny
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal
from btp.core.trained import Soft, Trained
from btp.engine.attach import attach
from btp.engine.training.masked_attention import masked_attention
from btp.engine.training.masking import AIM, HARD, SOFT, masking
from btp.pruners.atp_llava import ATPLLaVA
from btp.pruners.fastv import FastV
from btp.pruners.lvpruning import LVPruning

SCHEDULE = Schedule(
    tuple(Stage(f"llm.layer.{at}", keep, settings={"target": keep / 9}) for at, keep in ((1, 6), (2, 4), (3, 2)))
)
PLAIN = Schedule(tuple(Stage(stage.site, stage.keep) for stage in SCHEDULE))
ROWS = [[3, "i", 5], [2, "i", 9], [1, "i", 2]]


def lvpruning():
    return LVPruning(width=None, blocks=2, heads=4, tau=1.0, noise=0.0, seed=0)


def atp(count="own"):
    settings = {"inside": "open", "norm": "minmax", "strides": [2], "sample": 3.0, "grid": 3, "hidden": 8}
    aims = {"start": [0.4, 0.9], "temperature": [10, 50], "target": 0.25, "average": "layers", "relative": False}
    return ATPLLaVA(**settings, **aims, count=count, seed=0)


METHODS = {
    "lvpruning": (lvpruning, SCHEDULE),
    "atp": (atp, PLAIN),
    "atp, counts of stages": (lambda: atp("stage"), PLAIN),
}


def last_rows(logits, inputs):
    """[B, V] logits of each row's last real token; rows of the engine are aligned at their end."""
    behind = inputs["attention_mask"].flip(1).cumsum(1).eq(0).sum(1)  # padding behind the prompt
    return torch.stack([logits[row, -1 - int(n)] for row, n in enumerate(behind)])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_binary_mask_is_a_removal(family, method, padding):
    """In float64 to the last bits: logits, and the decisions of every stage, which see what the one before left."""
    lvlm = tiny.shared(family, dtype=torch.float64)
    inputs = tiny.prompts(lvlm, ROWS, padding)
    make, schedule = METHODS[method]
    with torch.no_grad():
        with attach(lvlm, make(), schedule) as trace:
            cut = last_rows(lvlm(**inputs).logits, inputs)
        with masking(lvlm, make(), schedule, HARD) as masked:
            output, stages = masked(inputs)
        plain = last_rows(lvlm(**inputs).logits, inputs)
    assert [[row.nonzero().flatten().tolist() for row in s.stays] for s in stages] == [
        s.kept for s in trace.last.stages
    ]
    assert (last_rows(output.logits, inputs) - cut).abs().max() < 1e-14
    assert (plain - cut).abs().max() > 1e-2, "nothing was removed, so nothing was proved"


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_binary_mask_is_a_removal_under_eager_attention(padding):
    """Its softmax is taken in float32, and its masks are added."""
    lvlm = tiny.shared("llava", "eager")
    inputs = tiny.prompts(lvlm, ROWS, padding)
    with torch.no_grad():
        with attach(lvlm, atp("stage"), PLAIN):
            cut = last_rows(lvlm(**inputs).logits, inputs)
        with masking(lvlm, atp("stage"), PLAIN, HARD) as masked:
            output, _ = masked(inputs)
    assert (last_rows(output.logits, inputs) - cut).abs().max() < 1e-5


def test_a_mask_of_ones_is_the_model_itself():
    """Every token stays: the masked forward is the plain one."""
    lvlm = tiny.shared("llava", dtype=torch.float64)
    inputs = tiny.prompts(lvlm, ROWS)
    whole = Schedule((Stage("llm.layer.1", 1.0),))
    with torch.no_grad(), masking(lvlm, lvpruning(), whole, HARD) as masked:
        output, _ = masked(inputs)
        plain = lvlm.model(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert (output.logits - plain)[real].abs().max() < 1e-14


@pytest.mark.parametrize("method", ["lvpruning", "atp"])
def test_gradients_reach_every_module_and_no_weight_of_the_model(method):
    lvlm = tiny.llava()
    lvlm.model.requires_grad_(False)
    make, schedule = METHODS[method]
    pruner = make()
    pruner.begin((stage.site for stage in schedule), lvlm.hidden_size)
    inputs = tiny.prompts(lvlm, ROWS)
    with masking(lvlm, pruner, schedule) as masked:
        output, stages = masked(inputs)
        losses = pruner.losses(stages, lvlm.num_layers)
        (output.logits[:, -1].square().mean() + sum(losses.values())).backward()
    assert set(losses) == set(pruner.loss_names)
    for name, parameter in pruner.modules.named_parameters():
        assert parameter.grad is not None, name
    for key in pruner.modules:
        assert sum(p.grad.abs().sum() for p in pruner.modules[key].parameters()) > 0, key
    assert all(p.grad is None for p in lvlm.model.parameters())


def test_the_answer_alone_teaches_the_modules():
    """Without the method's own losses the gradient of a loss of the logits reaches the first stage's module."""
    lvlm = tiny.llava()
    lvlm.model.requires_grad_(False)
    pruner = lvpruning()
    with masking(lvlm, pruner, SCHEDULE) as masked:
        output, _ = masked(tiny.prompts(lvlm, ROWS))
        output.logits[:, -1].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pruner.modules["llm_layer_1"].parameters())


@pytest.mark.parametrize("how", [SOFT, AIM])
@pytest.mark.parametrize("method", ["lvpruning", "atp"])
def test_answers_of_the_batch_change_no_decision(method, how):
    """Teacher forcing does not leak: other answers, and other lengths of them, leave every weight as it was."""
    lvlm = tiny.shared("llava", dtype=torch.float64)
    prompt = tiny.prompts(lvlm, ROWS)
    make, schedule = METHODS[method]
    found = []
    for seed, length in ((1, 3), (2, 3), (3, 6)):
        said = torch.randint(2, 79, (3, length), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat([prompt["input_ids"], said], 1)
        mask = torch.cat([prompt["attention_mask"], torch.ones_like(said)], 1)
        inputs = prompt | {"input_ids": ids, "attention_mask": mask}
        shown = torch.cat([prompt["attention_mask"], torch.zeros_like(said)], 1).bool()
        torch.manual_seed(0)
        with torch.no_grad(), masking(lvlm, make(), schedule, how) as masked:
            found.append([stage.weight for stage in masked(inputs, shown)[1]])
    for other in found[1:]:
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found[0], other, strict=True))


def test_other_questions_change_decisions():
    """The order of the text's words does not: the modules have no places."""
    lvlm = tiny.shared("llava", dtype=torch.float64)
    inputs = tiny.prompts(lvlm, [[2, "i", 6]])
    pruner, first = lvpruning(), Schedule((Stage("llm.input", 4),))
    ids = inputs["input_ids"].clone()
    turned, other = ids.clone(), ids.clone()
    turned[0, -6:] = ids[0, -6:].flip(0)
    other[0, -6:] = ids[0, -6:].roll(1) // 2 + 3
    scores = []
    for words in (ids, turned, other):
        seen = []
        pruner.select = lambda t, s, st, seen=seen: (
            seen.append(pruner.ranking(t, s, st)),
            Selection(torch.arange(4)[None]),
        )[1]
        with torch.no_grad(), attach(lvlm, pruner, first):
            lvlm(**inputs | {"input_ids": words})
        scores.append(seen[0])
    assert torch.allclose(scores[0], scores[1], atol=1e-5)
    assert not torch.allclose(scores[0], scores[2], atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
def test_masked_attention_is_the_written_formula_with_its_gradient(kind):
    """Against autograd over the formula, grouped heads and a weight of 0 included."""
    torch.manual_seed(1)
    S = 70  # more than one block
    query, key, value = (torch.randn(2, h, S, 4, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    weights = torch.rand(2, S, dtype=torch.float64)
    weights[:, ::3] = 1
    weights[:, 1::3] = 0
    weights.requires_grad_(True)
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    padded = torch.ones(2, S, dtype=torch.bool)
    padded[1, :5] = False
    seen = (causal & padded[:, None, None]) if kind != "none" else causal[None, None].expand(2, 1, S, S)
    given = {
        "none": None,
        "bool": seen,
        "additive": torch.zeros_like(seen, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min),
    }[kind]
    out = masked_attention(query, key, value, given, weights, 0.5)
    own = torch.eye(S, dtype=torch.bool)
    logits = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.5
    logits = logits.masked_fill(~(seen | own), -torch.inf)
    shares = (logits - logits.amax(-1, keepdim=True)).exp() * torch.where(own, 1.0, weights[:, None, None])
    wanted = shares / shares.sum(-1, keepdim=True) @ value.repeat_interleave(2, 1)
    real = padded if kind != "none" else torch.ones_like(padded)
    pick = torch.randn(2, 4, S, 4, dtype=torch.float64) * real[:, None, :, None]
    mine = torch.autograd.grad((out * pick).sum(), (query, key, value, weights))
    theirs = torch.autograd.grad((wanted * pick).sum(), (query, key, value, weights))
    assert torch.allclose(out * real[:, None, :, None], wanted * real[:, None, :, None], atol=1e-13)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(mine, theirs, strict=True))
    assert theirs[3][0, 1::3].abs().min() > 0, "no gradient at 0, so nothing was proved"


def test_worked_rows_of_a_masked_softmax():
    """Four tokens T V V T, of which the second picture token is dropped; its own row still sees it."""
    logits = torch.tensor([[0.0, 0, 0, 0], [0.2, 0.4, 0, 0], [0.1, 0.7, 0.3, 0], [0.6, 0.2, 0.9, 0.1]]).double()
    left, _, right = torch.linalg.svd(logits)
    query, key = left @ torch.diag(torch.linalg.svdvals(logits)), right.T
    columns = torch.tensor([[1.0, 1, 0, 1]]).double()
    found = masked_attention(query[None, None], key[None, None], torch.eye(4)[None, None].double(), None, columns, 1.0)
    wanted = [
        [1, 0, 0, 0],
        [0.450166, 0.549834, 0, 0],
        [0.247309, 0.450627, 0.302064, 0],
        [0.439203, 0.294407, 0, 0.266390],
    ]
    assert torch.allclose(found[0, 0], torch.tensor(wanted).double(), atol=1e-6)


def test_checkpointed_layers_compute_the_same_gradient():
    """What is computed again in the backward pass is weighed as it was."""
    grads = []
    for checkpointed in (False, True):
        lvlm = tiny.llava()
        lvlm.model.requires_grad_(False)
        if checkpointed:
            lvlm.model.gradient_checkpointing_enable({"use_reentrant": False})
            lvlm.model.train()
        pruner = lvpruning()
        before = [dict(vars(layer)) for layer in lvlm.towers["llm"].layers]
        torch.manual_seed(0)
        with masking(lvlm, pruner, SCHEDULE) as masked:
            output, _ = masked(tiny.prompts(lvlm, ROWS))
            output.logits[:, -1].square().mean().backward()
        grads.append([p.grad.clone() for p in pruner.modules.parameters()])
        assert lvlm.model.training == checkpointed
        assert before == [dict(vars(layer)) for layer in lvlm.towers["llm"].layers], "something stayed behind"
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails):
    lvlm = tiny.llava()
    before = (dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping))
    inputs = tiny.prompts(lvlm, ROWS)
    with torch.no_grad():
        plain = lvlm(**inputs).logits  # transformers puts hooks of its own there
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in lvlm.model.modules()]
    try:
        with torch.no_grad(), masking(lvlm, atp(), PLAIN) as masked:
            masked(inputs)
            if fails:
                raise KeyError("in between")
    except KeyError:
        pass
    assert before == (dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping))
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in lvlm.model.modules()]
    assert lvlm.decoder.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(lvlm(**inputs).logits, plain)


class Wants(Trained):
    """A method that declares a signal."""

    def __init__(self, signal):
        super().__init__(0)
        self.signal = signal

    def make_module(self, width):
        return torch.nn.Linear(width, 1)

    def needs(self, stage):
        return (self.signal,)

    def select(self, tokens, signals, stage):
        raise AssertionError

    def soften(self, tokens, signals, stage):
        return Soft(tokens.valid.float(), tokens.valid)

    def aim(self, tokens, signals, stage):
        return tokens.valid

    def losses(self, stages, num_layers):
        return {}


@pytest.mark.parametrize(
    ("stage", "signal", "message"),
    [
        (
            Stage("vision.layer.1", 0.5),
            None,
            r"schedule.0.site is vision.layer.1, but masks are built for the language",
        ),
        (Stage("llm.layer.2", 0.5, "renumber"), None, r"schedule.0.positions is renumber, but in training nothing is"),
        (Stage("llm.layer.2", 0.5), Signal("preview", "llm.layer.2", "last"), "is not the same where dropped tokens"),
        (Stage("llm.layer.2", 0.5), Signal("attention", "llm.layer.1", "mean"), "is not the same where dropped tokens"),
    ],
)
def test_what_cannot_be_masked_as_it_is_removed_is_refused(stage, signal, message):
    signal = signal or Signal("hidden", "llm.layer.1")
    with pytest.raises(ValueError, match=message), masking(tiny.shared("llava"), Wants(signal), Schedule((stage,))):
        pass


def test_methods_without_modules_and_schedules_without_stages_are_refused():
    fastv = FastV(score="probs", query="last", seed=0)
    with pytest.raises(TypeError, match=r"needs a method that is trained, a btp.core.trained.Trained, and got FastV"):
        masking(tiny.shared("llava"), fastv, PLAIN).__enter__()
    with pytest.raises(ValueError, match=r"pruner 'lvpruning' has no stage, so there is nothing to train"):
        masking(tiny.shared("llava"), lvpruning(), Schedule()).__enter__()
