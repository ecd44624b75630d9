"""Documents answered by the embedded model: generated, cut off, or scored behind the prompt, alone and in batches."""

import copy
from dataclasses import replace

import pytest
import torch
from jobs import composed
from PIL import Image

from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.pruners.random import Random
from btp.runner.harness.document import Document, Pictures, Shown
from btp.runner.harness.respond import Prompts, prediction, respond
from btp.tasks.pocketvqa.task import PocketVQA

CHOICES = (" yes", " no", " a red circle , a small blue square")
CUT = Schedule.from_config([{"site": "llm.layer.1", "keep": 40}, {"site": "llm.layer.4", "keep": 9}])


@pytest.fixture(scope="module")
def loaded():
    config = composed("model=pocket_mini")["model"]
    return load(config, find_checkpoint(config), torch.device("cpu"))


def document(sample, continuations=(), **settings):
    """A document as tasks with a picture and a text make them."""
    content = [{"type": "image"}, {"type": "text", "text": sample.question}]
    shown = Shown(({"role": "user", "content": content},), tuple(sample.images))
    return Document(
        id=sample.id,
        images=Pictures(lambda: shown),
        question=sample.question,
        reference=sample.reference,
        ability="task",
        show=lambda: shown,
        task="task",
        number=0,
        continuations=continuations,
        **({"max_new_tokens": 48} | settings),
    )


def ask(loaded, documents, schedule=None):
    """Responses to one batch."""
    batch = Prompts(loaded.processor)(documents)
    with (
        torch.inference_mode(),
        attach(loaded.host, Random(seed=0, salt="content") if schedule else None, schedule) as trace,
    ):
        said = respond(loaded.host, loaded.processor.tokenizer, batch.inputs, batch.samples, batch.targets)
    return said, trace, batch


def samples(count):
    task = PocketVQA("test", 0, count)
    return [task[i] for i in range(count)]


def test_likelihoods_are_those_of_a_plain_forward(loaded):
    """Unpruned, in a left-padded batch: the logits of one forward over prompt and continuation."""
    documents = [document(sample, CHOICES) for sample in samples(4)]
    said, _, batch = ask(loaded, documents)
    assert len({tuple(row.tolist()) for row in batch.inputs["attention_mask"]}) > 1
    for row, one in enumerate(documents):
        alone = Prompts(loaded.processor)([one])
        for (loss, greedy), tokens in zip(said.responses[row], alone.targets[0], strict=True):
            ids = torch.cat([alone.inputs["input_ids"], torch.tensor([tokens])], 1)
            inputs = alone.inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.inference_mode():
                logits = loaded.host(**inputs).logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
            wanted = -logits[range(len(tokens)), tokens].mean()
            assert loss == pytest.approx(float(wanted), abs=1e-4)
            assert greedy == (logits.argmax(-1).tolist() == tokens)


def test_a_pruned_model_scores_what_it_would_have_generated(loaded):
    """Choices stand behind the same visual tokens as a generated answer, whatever they say."""
    sample = next(s for s in samples(18) if s.ability == "describe")
    generated, trace, batch = ask(loaded, [document(sample)], CUT)
    kept = trace[0].stages[-1].kept
    start = batch.inputs["input_ids"].shape[1]
    with torch.inference_mode(), attach(loaded.host, Random(seed=0, salt="content"), CUT):
        out = loaded.host.generate(
            **batch.inputs, max_new_tokens=48, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    tokens = [t for t in out.sequences[0, start:].tolist() if t not in loaded.processor.tokenizer.all_special_ids]
    steps = torch.stack(list(out.logits))[: len(tokens), 0].log_softmax(-1)
    text = " " + loaded.processor.tokenizer.decode(tokens)
    said, trace, batch = ask(loaded, [document(sample, (" no", text))], CUT)
    assert batch.targets[0][1] == tokens
    assert len(tokens) > 3
    assert [call.stages[-1].kept for call in trace] == [kept] * len(trace)
    loss, greedy = said.responses[0][1]
    assert greedy
    assert loss == pytest.approx(-float(steps[range(len(tokens)), tokens].mean()), abs=1e-5)
    unpruned, _, _ = ask(loaded, [document(sample, (" no", text))])
    assert unpruned.responses[0][1][0] != pytest.approx(loss, abs=1e-3)
    assert torch.equal(generated.first, said.first)


def test_generating_and_scoring_go_together_in_a_batch(loaded):
    """Rows of both kinds, each as alone."""
    one, two, three = samples(3)
    mixed = [document(one), document(two, CHOICES), document(three, (" yes",))]
    together, _, _ = ask(loaded, mixed)
    for row, each in enumerate(mixed):
        alone, _, _ = ask(loaded, [each])
        if each.continuations:
            for a, b in zip(alone.responses[0], together.responses[row], strict=True):
                assert a == (pytest.approx(b[0], abs=1e-4), b[1])
        else:
            assert alone.responses[0] == together.responses[row]


def test_each_document_has_its_own_length_and_end(loaded):
    one = next(s for s in samples(18) if s.ability == "describe")
    whole = ask(loaded, [document(one)])[0].responses[0][0]
    assert "," in whole
    short, ended, both = (
        document(one, max_new_tokens=1),
        document(one, until=(",",)),
        document(one),
    )
    found = [r[0] for r in ask(loaded, [short, ended, both])[0].responses]
    assert found[0] == " ".join(whole.split()[: len(found[0].split())])
    assert len(found[0]) < len(found[1])
    assert found[1] == whole.split(",")[0].strip()
    assert found[2] == whole


def test_a_choice_is_answered_by_the_likeliest_and_a_target_by_itself():
    (sample,) = samples(1)
    assert prediction(document(sample, (" yes", " no")), [(0.7, False), (0.3, True)]) == "no"
    assert prediction(document(sample, (" yes",)), [(0.7, True)]) == "yes"
    assert prediction(document(sample, (" yes",)), [(0.7, False)]) == ""


def test_placeholders_in_a_question_show_no_further_picture(loaded):
    (sample,) = samples(1)
    mark = loaded.processor.image_token
    shown = Shown(
        ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"{mark} {sample.question}"}]},),
        (Image.new("RGB", (96, 96)),),
    )
    marked = document(sample)
    object.__setattr__(marked, "show", lambda: shown)
    batches = [Prompts(loaded.processor)([one]) for one in (marked, document(sample))]
    assert torch.equal(*[batch.inputs["input_ids"] for batch in batches])


def test_a_template_that_writes_bos_gets_no_second_one(loaded):
    """The embedded model's tokenizer adds one; a system turn changes nothing of that."""
    processor = copy.deepcopy(loaded.processor)
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    (sample,) = samples(1)
    system = {"role": "system", "content": [{"type": "text", "text": "what is it ?"}]}
    plain, led = document(sample), document(sample)
    led = replace(led, show=lambda: Shown((system, *plain.show().turns), tuple(sample.images)))
    for one in (plain, led):
        chat = [dict(turn) for turn in one.show().turns]
        chat[-1]["content"] = [{"type": "image", "image": sample.images[0]}, chat[-1]["content"][-1]]
        wanted = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        assert torch.equal(Prompts(processor)([one]).inputs["input_ids"], wanted)
        assert (wanted == processor.tokenizer.bos_token_id).sum() == 1
