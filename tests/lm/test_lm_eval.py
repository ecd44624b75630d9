"""lm-eval itself over drawn documents, offline: choices and generated answers, with and without eviction."""

import json
import os
import tempfile
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval", reason="an extra: make setup-lm, make test-lm")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": tempfile.mkdtemp()}

import tiny_text
import torch

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.embedded.pocket_text import build_text_tokenizer
from btp.models.loading.load import Loaded
from btp.models.text_processor import TextProcessor
from btp.pruners.h2o import H2O
from btp.runner.arms import Arm
from btp.runner.evaluation.eviction_effect import check_effect
from btp.runner.lm_eval.respond import Respond
from btp.runner.lm_eval.task import LMEvalTask
from btp.tasks.pocketdocs.task import PocketDocs
from btp.tasks.pocketdocs.vocabulary import words

SIZE = 6
SHARED = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "num_fewshot": 0}
TASKS = {
    "docs_choice": {
        "output_type": "multiple_choice",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "docs_letter": {
        "output_type": "multiple_choice",
        "doc_to_target": "answer",
        "doc_to_choice": "letters",
        "metric_list": [{"metric": "acc"}],
    },
    "docs_say": {
        "output_type": "generate_until",
        "doc_to_target": "said",
        "generation_kwargs": {"max_gen_toks": 4, "do_sample": False, "until": ["\n"]},
        "metric_list": [{"metric": "exact_match"}],
    },
    "docs_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Yamls of the tasks, and their documents."""
    path, vocabulary = tmp_path_factory.mktemp("tasks"), list(words())
    drawn = PocketDocs("test", 0, SIZE, lengths=[256])
    with (path / "test.json").open("w") as file:
        for i in range(SIZE):
            choices = [f" {vocabulary[20 + i]} {vocabulary[50 + i]}", f" {vocabulary[70 + i]} {vocabulary[30 + i]}"]
            row = {
                "question": drawn[i].question,
                "choices": choices,
                "letters": [f" {vocabulary[40]}", f" {vocabulary[41]}"],
            }
            file.write(json.dumps(row | {"answer": i % 2, "said": drawn[i].reference}) + "\n")
    for name, more in TASKS.items():
        own = {"task": name, "dataset_kwargs": {"data_files": {"test": str(path / "test.json")}}}
        (path / f"{name}.yaml").write_text(json.dumps(SHARED | own | more))  # json is yaml
    return path


@pytest.fixture(scope="module")
def loaded():
    tokenizer = build_text_tokenizer(words())
    host = tiny_text.text_lm("llama", vocab_size=len(tokenizer), max_position_embeddings=2048)
    host.model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Loaded(host, TextProcessor(tokenizer, chat=True))


def task_of(folder, *names, **more):
    return LMEvalTask(list(names), str(folder), None, **{"chat": False, "generation": None} | more)


def answered(task, loaded, pruner=None, schedule=None):
    """Rows as the store has them, and the documents."""
    documents = task.draw(3)
    collate = task.collate(loaded.processor)
    rows, calls = {}, []
    for document in documents:
        batch = collate([document])
        with torch.no_grad(), attach(loaded.host, pruner, schedule or Schedule(())) as trace:
            run = Respond.__new__(Respond)
            run.host, run.tokenizer = loaded.host, loaded.processor.tokenizer
            (row,), _ = run.say(batch.inputs, batch)
        calls += list(trace)
        rows[document.id] = row
    return documents, rows, calls


def test_choices_are_scored_as_in_one_forward(folder, loaded):
    """Without eviction the sums are those of a dense forward over prompt and choice."""
    documents, rows, _ = answered(task_of(folder, "docs_choice"), loaded)
    tokenizer = loaded.processor.tokenizer
    for document in documents:
        prompt = tokenizer(document.question)["input_ids"]
        for choice, (score, greedy) in zip(document.continuations, rows[document.id]["responses"], strict=True):
            more = tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = loaded.host.model(torch.tensor([prompt + more])).logits[0].log_softmax(-1)
            told = logits[len(prompt) - 1 : -1]
            assert score == pytest.approx(float(told.gather(1, torch.tensor(more)[:, None]).sum()), abs=1e-3)
            assert greedy == (told.argmax(-1).tolist() == more)


def test_eviction_reaches_the_second_token(folder, loaded):
    """The first token is the prompt's own; the others miss what left."""
    task = task_of(folder, "docs_choice")
    _, whole, _ = answered(task, loaded)
    _, cut, calls = answered(task, loaded, H2O(), Schedule((Stage("llm.cache.*", 16, phase="both"),)))
    assert all(call.evicted and call.decode_steps for call in calls)
    for name, row in whole.items():
        for (a, _), (b, _) in zip(row["responses"], cut[name]["responses"], strict=True):
            assert a != pytest.approx(b, abs=1e-4)


def test_lm_eval_judges(folder, loaded):
    """acc and acc_norm are lm-eval's own; documents have scores, and greedy text its exact match."""
    task = task_of(folder, "docs_choice", "docs_say")
    documents, rows, _ = answered(task, loaded)
    judged = task.judge(rows)
    right = [
        max(range(2), key=lambda i: rows[d.id]["responses"][i][0]) == d.number % 2
        for d in documents
        if d.task == "docs_choice"
    ]
    assert [judged.scores[d.id] for d in documents if d.task == "docs_choice"] == [float(r) for r in right]
    assert judged.metrics["docs_choice acc"] == pytest.approx(sum(right) / 3)
    assert {"docs_choice acc_norm", "docs_say exact_match"} <= set(judged.metrics)
    assert task.chance(documents) == {"docs_choice": 0.5}
    assert all(d.reference for d in documents)


def test_what_is_refused(folder, loaded):
    """Perplexities, unknown tasks, and eviction where every choice is one token."""
    with pytest.raises(ValueError, match="docs_rolling asks for loglikelihood_rolling"):
        task_of(folder, "docs_rolling").draw(2)
    with pytest.raises(
        ValueError, match=r"tasks names docs_choise, but lm-eval has no such task. Did you mean docs_choice"
    ):
        task_of(folder, "docs_choise")
    cache = Arm("h2o", "method", None, Schedule((Stage("llm.cache.*", 16, phase="both"),)))
    between = replace(cache, schedule=Schedule((Stage("llm.layer.2", 16),)))
    letters, choices = (task_of(folder, name).draw(2) for name in ("docs_letter", "docs_choice"))
    with pytest.raises(ValueError, match=r"every choice of this task is one token, .* eviction would have no effect"):
        check_effect([cache], letters, loaded)
    both = replace(cache, schedule=Schedule((*between.schedule, *cache.schedule)))
    with pytest.raises(ValueError, match="eviction would have no effect"):
        check_effect([both], letters, loaded)
    emptied = replace(cache, schedule=Schedule((*between.schedule, Stage("llm.cache.3", 0))))
    check_effect([between, emptied], letters, loaded)
    check_effect([cache], choices, loaded)
