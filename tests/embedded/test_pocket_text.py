"""The recipe of pocket_text: what is packed answers as if it were alone, and what adds nothing may be left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from btp.tasks.pocketdocs.questions import ABILITIES
from btp.tasks.pocketdocs.task import PocketDocs
from experiments.embedded.pocket_text.data import KIND_OF, KINDS, SOLD, collate, draw_copy
from experiments.embedded.pocket_text.losses import answers, text_losses
from experiments.embedded.recipes.pocket_text import ALL, FIRST, RECIPE, PocketText
from experiments.embedded.train import train

COPY, SHORT, *_ = RECIPE.phases


@pytest.fixture(scope="module")
def learner():
    """Model and heads with random weights, larger than the first ones so that the layers matter."""
    torch.manual_seed(0)
    made = RECIPE.build()
    for name, weight in made.named_parameters():
        if "proj" in name:
            nn.init.normal_(weight, std=0.2)
    return made.requires_grad_(False)


def losses(learner, samples, **settings):
    """Losses of some samples in one batch."""
    return text_losses(learner["model"], learner["heads"], collate(samples), **({"layers": ALL} | settings))


def drawn(count=2, length=72):
    """Texts with questions; with their lengths they differ in all that is padded."""
    rng = np.random.default_rng(0)
    return [RECIPE.sample(rng, SHORT, length + 24 * i) for i in range(count)]


def test_packed_questions_answer_as_if_alone(learner):
    """Against the model's own forward over each prompt with its answer."""
    model, samples = learner["model"], drawn()
    total = weights = 0.0
    for sample in samples:
        for _, question, answer, _ in sample["parts"]:
            model.set_attn_implementation("sdpa")
            ids = torch.tensor([sample["prefix"] + question + answer])
            logits = model(input_ids=ids).logits[0, -len(answer) - 1 : -1]
            weight = len(answer) ** -0.5
            total += weight * F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
            weights += weight * len(answer)
    assert losses(learner, samples)["answer"].item() == pytest.approx(total / weights, rel=1e-4)


def test_layers_that_add_nothing_may_be_left_out(learner):
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    RECIPE.begin(learner, COPY)
    few, every = (losses(learner, drawn(), layers=layers) for layers in (FIRST, ALL))
    learner.load_state_dict(before)
    assert few.keys() == every.keys()
    assert all(torch.allclose(few[key], every[key], atol=1e-5) for key in few)
    assert len(learner["model"].model.layers) == learner["model"].config.num_hidden_layers == len(ALL)


def test_a_later_phase_keeps_what_took_part_before(learner):
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    for phase in RECIPE.phases[3:]:
        RECIPE.begin(learner, phase)
    assert all(torch.equal(before[key], value) for key, value in learner.state_dict().items())


def test_questions_that_may_not_look_do_not_depend_on_the_text(learner):
    one, *_ = drawn(1)
    other = one | {"prefix": one["prefix"][:3] + one["prefix"][3:][::-1]}
    blind = [losses(learner, [sample], early=len(ALL))["answer"] for sample in (one, other)]
    late = [losses(learner, [sample], early=4)["answer"] for sample in (one, other)]
    assert torch.allclose(*blind)
    assert not torch.allclose(*late)


def test_in_deep_batches_one_kind_of_question_looks_late(learner):
    """Others answer as ever; that kind does not depend on the text before the last layers."""
    samples = (RECIPE.sample(np.random.default_rng(seed), RECIPE.phases[-1], 236) for seed in range(20))
    sample = next(one for one in samples if SOLD in {KINDS[part[0]] for part in one["parts"]})
    sold = [part for part in sample["parts"] if KINDS[part[0]] == SOLD]
    others = [part for part in sample["parts"] if KINDS[part[0]] != SOLD]
    for parts, same in ((others, True), (sold, False)):
        plain, deep = (losses(learner, [sample | {"parts": parts}], deep=deep)["answer"] for deep in (False, True))
        assert torch.allclose(plain, deep) == same


def test_right_answers_count_as_whole():
    """An answer with one wrong token is wrong; of a string that is copied the share of its tokens counts."""

    class Known(nn.Module):
        """Says 7, which is right for two of three tokens."""

        def forward(self, states):
            return F.one_hot(torch.full((len(states),), 7), 9).float()

    target = torch.tensor([[7, 7, -100, 7, 8, -100, 7, 8]])
    segment = torch.tensor([[1, 1, 2, 2, 2, 3, 3, 3]])
    kind = torch.tensor([[KINDS.index("lookup"), KINDS.index("lookup"), KINDS.index("copy")]])
    found = answers(Known(), torch.zeros(1, 8, 4), {"target": target, "segment": segment, "kind": kind})
    assert (found["lookup"], found["copy"]) == (0.5, 0.5)
    assert "needle" not in found


def test_prompts_are_encoded_as_the_tokenizer_does(tmp_path):
    sample = PocketDocs("validation", 0, 3)[1]
    message = [{"role": "user", "content": sample.question}]
    ids = RECIPE.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    assert ids == RECIPE.encode.start + RECIPE.encode.words(sample.question.split()) + RECIPE.encode.answer
    assert RECIPE.tokenizer.unk_token_id not in ids
    assert len(ids) <= 256


def test_heads_are_told_what_the_text_says():
    """Read back from the tokens alone: the count of a city, the kind of a word, whose value is asked."""
    words = {number: word for word, number in RECIPE.encode.ids.items()}
    said = {}
    for seed in range(12):
        drawn = RECIPE.sample(np.random.default_rng(seed), RECIPE.phases[-1], 492)
        text = [words[i] for i in drawn["prefix"]]
        counted = [(text[i], n) for i, n in enumerate(drawn["times"]) if n >= 0]
        assert [n for _, n in counted] == [
            [c for c, _ in counted[: i + 1]].count(c) for i, (c, _) in enumerate(counted)
        ]
        assert [text[i - 1] for i, n in enumerate(drawn["times"]) if n >= 0] == ["from"] * len(counted)
        for place, kin in enumerate(drawn["kin"]):
            if kin >= 0:
                assert text[place - 1] == "gives"
                assert words[kin] == KIND_OF[text[place - 2]]
        written = {text[i - 3]: text[i - 1] for i, word in enumerate(text) if word == ":" and text[i - 2] == "from"}
        for kind, question, _, hint in drawn["parts"]:
            asked = [words[i] for i in question][2:-3]  # without "question :" and "? ASSISTANT :"
            said.setdefault(KINDS[kind], []).append(hint >= 0)
            keys = {
                "lookup": asked[-1],
                "hop": written.get(asked[-1]),
                SOLD: asked[-1],
                "few_shot": KIND_OF.get(asked[2]),
            }
            if KINDS[kind] in keys:
                assert words[hint] == keys[KINDS[kind]]
    assert {ability for ability, given in said.items() if all(given)} == {
        "lookup",
        "hop",
        "latest",
        "count",
        "few_shot",
        SOLD,
    }
    assert not any(any(said[ability]) for ability in ("needle", "document", "recite"))


def test_a_string_to_copy_is_in_its_text():
    sample = draw_copy(np.random.default_rng(0), RECIPE.encode, 20, 4)
    text = " ".join(map(str, sample["prefix"]))
    assert all(" ".join(map(str, cue + rest)) in text for _, cue, rest, _ in sample["parts"])


@pytest.mark.parametrize("phase", RECIPE.phases, ids=lambda phase: phase.name)
def test_batches_repeat_and_hold_what_a_phase_waits_for(phase):
    one, two = (RECIPE.draw(np.random.default_rng([0, 1]), phase) for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert set(phase.until) <= set(KINDS)
    assert set(phase.data["weights"]) - {SOLD} == set(ABILITIES)
    assert one["prefix"].shape[1] <= 1024


@pytest.mark.long
def test_all_phases_run_one_after_the_other(tmp_path):
    short = PocketText()
    short.phases = tuple(replace(p, steps=1, batch=2, until={}, data=p.data | {"tokens": 64}) for p in short.phases)
    assert train(short, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.num_hidden_layers == len(ALL)


def test_the_checkpoint_loads_and_answers_in_a_batch_as_alone(learner, tmp_path):
    losses(learner, drawn(1))
    RECIPE.save(learner, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config._attn_implementation == "sdpa"
    task = PocketDocs("validation", 0, 9, lengths=[256])
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task[i].question}], add_generation_prompt=True, tokenize=False
        )
        for i in (0, 4)
    ]
    both = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    assert both["attention_mask"][:, -1].all()
    said = model.generate(**both, max_new_tokens=4, do_sample=False)[:, -4:]
    for text, row in zip(texts, said, strict=True):
        alone = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        assert torch.equal(model.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:], row)
