"""Text models through the runner: the task that a model brings, controls, budgets of tokens and of slots, answers."""

from dataclasses import replace

import pandas as pd
import pytest
import tiny_text
import torch
from jobs import composed, job

from btp.core.schedule import Schedule, Stage
from btp.models.embedded.pocket_text import build_text_tokenizer
from btp.models.loading.load import Loaded, load
from btp.models.text_processor import TextProcessor
from btp.results.reader import read_run
from btp.runner.arms import build_arms
from btp.runner.evaluation.data import Collate, Feed
from btp.runner.evaluation.prompts.shorten import check_contexts, shortened, without_middle
from btp.runner.evaluation.visual_totals import text_totals
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.runner.identity import model_identity
from btp.schedules.meet import Facts
from btp.schedules.plan import Sources
from btp.schedules.slots import fit_slots, in_cache, over_steps
from btp.tasks.pocketdocs.task import PocketDocs
from btp.tasks.pocketdocs.vocabulary import words
from btp.tasks.sample import Sample

TEXT = Facts(layers=8, total=500, totals=(240, 500, 760), unequal=True, unit="prompt tokens")
PICTURES = Facts(layers=8, total=144, vision_layers=2)


@pytest.fixture(scope="module")
def processor():
    return TextProcessor(build_text_tokenizer(words()), chat=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama with the embedded text model's tokenizer."""
    folder = tmp_path_factory.mktemp("text") / "llama"
    tokenizer = build_text_tokenizer(words())
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tiny_text.text_lm("llama", vocab_size=len(tokenizer), **ids).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def arms(*given, facts=TEXT):
    config = composed("model=pocket_text", *given)
    for key in ("tokens", "share"):  # as the command line settles them
        if config["budget"]["tokens"] is not None and key == "share":
            config["budget"][key] = None
    found, lines = build_arms(config, facts, Sources(lambda: [{"site": "llm.layer.2", "keep": "fit"}], lambda p: p))
    return {arm.name: arm for arm in found}, lines


def test_a_model_brings_its_task_unless_another_is_named():
    """And the task its controls; pictures have theirs as ever."""
    config = composed("model=pocket_text")
    assert (config["task"]["name"], config["calibration"]["name"]) == ("pocketdocs", "pocketdocs")
    assert set(config["controls"]) == {"random", "window", "no_context"}
    assert composed("model=pocket_text", "task=niah")["task"]["name"] == "niah"
    assert composed("model=llama2_7b")["calibration"]["name"] == "pocketdocs"
    assert set(composed("model=pocket")["controls"]) == {"random", "downsampled", "oracle", "no_image"}
    for task in ("longbench", "few_shot", "niah"):
        assert set(composed("model=pocket_text", f"task={task}")["controls"]) == {"random", "window", "no_context"}
    assert set(composed("model=pocket_text", "task=ruler")["controls"]) == {"random", "window"}


def test_a_run_is_named_by_its_prompts():
    """With a chat template or without, answers are others; models of pictures have no such key."""
    with_, without = (composed("model=pocket_text", f"model.chat={chat}")["model"] for chat in ("true", "false"))
    assert model_identity(with_) != model_identity(without)
    assert "chat" not in model_identity(composed("model=pocket")["model"])


def test_controls_of_tokens():
    """At the method's tokens, whatever the length of a prompt; none where the context is left out."""
    found, lines = arms("pruner=fastv", "budget.share=0.4")
    for total in TEXT.totals:
        reached = {name: found[name].schedule.reached(total, 8) for name in ("fastv", "random", "window")}
        assert reached == pytest.approx(dict.fromkeys(reached, 0.4 * total), abs=1)
    assert (found["no_context"].picture, len(found["no_context"].schedule)) == ("none", 0)
    assert not lines


def test_messages_say_prompt_tokens():
    with pytest.raises(ValueError, match=r"A budget of 25 prompt tokens on average cannot be met"):
        arms("pruner=fastv", "budget.share=0.05", "budget.move=false")


@pytest.mark.parametrize("pruner", ["a2sf", "snapkv", "h2o", "tova", "streaming", "pagedeviction", "pyramidkv"])
def test_a_share_of_slots(pruner):
    """Of each prompt; random slots and a window stand at the method's stages without what it protects."""
    found, _ = arms(f"pruner={pruner}", "budget.share=0.25")
    (stage,) = found[pruner].schedule
    assert (str(stage.site), stage.keep) == ("llm.cache.*", 0.25)
    for name, method in (("random", "RandomSlots"), ("window", "Streaming")):
        (own,) = found[name].schedule
        assert (own.site, own.keep, own.phase) == (stage.site, 0.25, stage.phase)
        assert not {"first", "recent"} & set(own.settings)
        assert type(found[name].build()).__name__ == method
    assert over_steps(found[pruner].schedule) == (stage.phase != "prefill")


def test_a_number_of_slots():
    found, _ = arms("pruner=tova", "budget.slots=64")
    assert [stage.keep for stage in found["tova"].schedule] == [64]
    assert in_cache(found["random"].schedule)


def test_slots_for_a_method_that_prunes_tokens():
    """Of a text model a token is a slot, and the last one stays: the same K/V memory as a cache method's."""
    facts = replace(TEXT, totals=(240,), total=240)
    found, _ = arms("pruner=fastv", "budget.slots=100", "budget.share=null", facts=facts)
    assert found["fastv"].reached == pytest.approx(99, abs=0.5)
    with pytest.raises(ValueError, match=r"budget.slots is 64, but pruner 'fastv' has no stage in the K/V cache"):
        build_arms(composed("pruner=fastv", "budget.slots=64"), PICTURES, Sources(list, lambda p: p))


def test_tokens_are_no_budget_of_slots():
    with pytest.raises(ValueError, match=r"budget.tokens is 50.*llm.cache.\* keeps slots of the cache. Set budget.sl"):
        arms("pruner=tova", "budget.tokens=50")


def test_a_cache_method_on_pictures_has_controls_that_mean_something():
    """Random slots and no picture; a shrunk picture says nothing of the cache."""
    config = composed("pruner=snapkv", "budget.share=0.5")
    found, _ = build_arms(config, PICTURES, Sources(list, lambda p: p))
    assert [arm.name for arm in found] == ["unpruned", "snapkv", "random", "no_image"]


def test_layers_that_keep_all_are_paid_by_the_others():
    """The mean over all layers is what was asked."""
    schedule = Schedule((Stage("llm.cache.0", 1.0), Stage("llm.cache.1", 1.0), Stage("llm.cache.*", "fit")))
    budget = {"slots": None, "share": 0.5, "tokens": None}
    kept = [stage.keep for stage in fit_slots(schedule, budget, 8, 100)]
    assert kept[:2] == [1.0, 1.0]
    assert (2 + 6 * kept[2]) / 8 == pytest.approx(0.5)
    (few,) = [s.keep for s in fit_slots(schedule, budget | {"slots": 40, "share": None}, 8, 100)][2:]
    assert (200 + 6 * few) / 8 == pytest.approx(40, abs=0.5)
    with pytest.raises(ValueError, match="cannot be met: layers that say themselves what they keep hold 25 on average"):
        fit_slots(schedule, budget | {"share": 0.2}, 8, 100)
    times = Schedule((Stage("llm.cache.0", "fit*2"), Stage("llm.cache.*", "fit")))
    first, rest = (stage.keep for stage in fit_slots(times, budget, 8, 100))
    assert first == pytest.approx(2 * rest)
    assert (first + 7 * rest) / 8 == pytest.approx(0.5)


def test_contexts_are_left_out(processor):
    """With a share of 0 the question alone is asked; plain prompts have no roles."""
    sample = PocketDocs("test", 0, 9, lengths=[256])[0]
    collate = Collate(processor)
    whole, bare = collate([sample]), collate([sample], shares=[0.0])
    text = processor.tokenizer.decode(bare.inputs["input_ids"][0])
    assert text.startswith("<s> USER : question : ")
    assert "document" not in text
    assert text_totals([sample], collate) == [whole.inputs["input_ids"].shape[1] - 1]
    plain = collate([replace(sample, chat=False)], shares=[0.0])
    assert processor.tokenizer.decode(plain.inputs["input_ids"][0]) == f"<s> {sample.bare_question}"
    mixed = collate([sample, replace(sample, chat=False)])
    assert (mixed.inputs["attention_mask"].sum(1)[0] > mixed.inputs["attention_mask"].sum(1)[1]).all()


def test_the_middle_is_left_out(processor):
    """Half of the tokens stay on either side, and spans keep to their words."""
    question = " ".join(f"document {i} ." for i in range(10))
    first, last = question.index("document 0"), question.index("document 9")
    spans = ((first, 10), (last, last + 10))
    sample = Sample("a", (), question, "x", "b", spans=spans, context=((0, len(question)),), max_new_tokens=4)
    cut = without_middle(sample, 12, processor.tokenizer)
    assert cut.question == "document 0 . document 1 .document 8 . document 9 ."
    assert [cut.question[a:b] for a, b in cut.spans] == ["document 0", "document 9"]
    assert cut.context == ((0, len(cut.question)),)
    assert without_middle(sample, 30, processor.tokenizer) is sample
    middle = (question.index("document 5"), question.index("document 6"))
    gone = without_middle(replace(sample, spans=(middle,)), 12, processor.tokenizer)
    assert gone.spans == ()


@pytest.mark.parametrize(("longest", "tokens"), [(12, 12), (None, 40 - 6 - 4)])
def test_tasks_say_how_long_a_prompt_may_be(processor, longest, tokens):
    """Or the model does: what it reads, less the roles around a question and the answer."""

    class Task:
        max_new_tokens = 9

    host = tiny_text.text_lm("llama", max_position_embeddings=40)
    sample = Sample("a", (), " ".join(["document"] * 60), "x", "b", max_new_tokens=4)
    assert shortened(Task(), [sample], Loaded(host, processor)) == [sample]
    Task.longest = longest
    (cut,) = shortened(Task(), [sample], Loaded(host, processor))
    assert len(cut.question.replace("documentdocument", "document document").split()) == tokens
    assert Collate(processor)([cut]).inputs["input_ids"].shape[1] <= 40


def test_a_context_that_nobody_knows_cannot_be_left_out():
    found, _ = arms("pruner=fastv", "budget.share=0.4")
    known = PocketDocs("test", 0, 9, lengths=[256])[0]
    check_contexts(list(found.values()), [known])
    with pytest.raises(
        ValueError, match=r"no_context leaves out the text .* sample b that is.* drop the control with ~con"
    ):
        check_contexts(list(found.values()), [known, replace(known, id="b", context=())])


@pytest.mark.slow
def test_a_text_model_from_prompt_to_report(checkpoint, tmp_path):
    """A cache method beside its controls: answers, slots, costs, and a page in its own words."""
    torch.set_num_threads(1)
    words = ["model=pocket_text", f"model.path={checkpoint}", "limit=2", "task.dataset.lengths=[256]", "overlays=1"]
    words += ["task.dataset.abilities=[needle]", "cost.repeats=2", "cost.warmup=0", "cost.output_tokens=3"]
    run = read_run(job(tmp_path, *words, "pruner=snapkv", "budget.slots=64"))
    slots = {arm.arm: arm.slots for arm in run.arms}
    assert slots["snapkv"] == slots["random"] == slots["window"] == 64
    assert slots["no_context"] < 20 < 64 < slots["unpruned"]
    assert run.unit == "prompt tokens"
    frame = pd.read_parquet(run.path / "samples.parquet")
    assert (frame.loc[frame["arm"].eq("snapkv"), "evicted"] > 0).all()
    assert run.run["inert"]["identical"]
    costs = run.cost["snapkv"]
    assert costs["kv_mib"] == pytest.approx(costs["kv_mib_measured"])
    assert costs["kv_mib"] < run.cost["unpruned"]["kv_mib"] / 2
    assert costs["flops_decode"] < run.cost["unpruned"]["flops_decode"]
    drifts = frame.groupby("arm")["kl_steps"].mean()
    assert drifts["snapkv"] > 0
    assert drifts["random"] > 0
    assert frame.loc[frame["arm"].eq("unpruned"), "kl_steps"].isna().all()
    page = (run.path / "report.html").read_text()
    assert "64.0 of" in page
    assert set(next(iter(run.words.values()))["arms"]) == {"snapkv", "random", "window"}
    assert 'class="layer"' in page
    assert "KL per token" in page
    assert "visual tokens" not in page


@pytest.mark.slow
def test_tokens_that_come_back_from_prompt_to_report(checkpoint, tmp_path):
    """LazyLLM beside its controls at the same tokens of the prefill; rows of every step on disk."""
    torch.set_num_threads(1)
    words = ["model=pocket_text", f"model.path={checkpoint}", "limit=2", "task.dataset.lengths=[256]", "overlays=0"]
    words += ["task.dataset.abilities=[needle]", "cost.enabled=false"]
    run = read_run(job(tmp_path, *words, "pruner=lazyllm", "budget.share=0.6"))
    frame = pd.read_parquet(run.path / "samples.parquet")
    means = frame.groupby("arm")["tokens_avg"].mean()
    assert means["lazyllm"] == pytest.approx(0.6 * means["unpruned"], rel=0.02)
    assert means["random"] == means["lazyllm"]
    assert means["window"] == pytest.approx(means["lazyllm"], rel=0.02)
    assert run.run["inert"]["identical"]
    assert (run.path / "figures" / "rows_per_step.png").exists()
    assert "Rows per decode step" in (run.path / "report.html").read_text()
    steps = pd.read_parquet(run.path / "steps.parquet")
    assert {"lazyllm", "random"} == set(steps["arm"])
    assert (steps.loc[steps["step"].eq(0), "revived"] == 0).all()
    assert steps["step"].max() > 0


def test_short_prompts_share_no_batch_with_long_ones(checkpoint, processor):
    """Where a batch would be most of it padding."""
    task = PocketDocs("test", 0, 54, None, [256, 380, 504])
    samples = [task[i] for i in range(len(task))]
    model = composed(f"model.path={checkpoint}", "model=pocket_text")["model"]
    loaded = load(model, checkpoint, torch.device("cpu"))
    seen = way_of(task).look(loaded, samples, [()] * len(samples))
    assert sorted(seen.order) == list(range(len(samples)))
    with Feed(samples, loaded.processor, groups=seen.groups) as feed:
        each = [[seen.totals[i] for i in batch.indices] for batch in feed.batches(seen.order, 16)]
    assert all(max(one) < 1.5 * min(one) for one in each)
    assert len(each) < 9, "batches are as full as their lengths allow"
    assert max(each[0]) == max(seen.totals), "the longest come first"
