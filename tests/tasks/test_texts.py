"""Tasks over long texts, read from small copies in their published layouts and scored as their benchmarks do."""

import json

import pytest

from btp.tasks.sample import Corpus, Local
from btp.tasks.texts import text_scores
from btp.tasks.texts.few_shot import FewShot
from btp.tasks.texts.longbench import DATASETS, LongBench
from btp.tasks.texts.niah import Niah
from btp.tasks.texts.ruler import Ruler

PROMPTS = {
    "hotpotqa": "Read.\n{context}\nAsk: {input}\nSay:",
    "trec": "Sort.\n{context}\n{input}",
    "lcc": "Go on:\n{context}Next:\n",
    "passage_count": "Count.\n{context}\nHow many?",
    "multifieldqa_zh": "{context}{input}",
}
LENGTHS = {"hotpotqa": 32, "trec": 64, "lcc": 64, "passage_count": 8, "multifieldqa_zh": 64}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def configured(folder, name, change):
    file = folder / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def entry(context, asked, answers, **more):
    about = {"length": len(context.split()), "dataset": "x", "language": "en", "all_classes": None, "_id": "7f"}
    return {"context": context, "input": asked, "answers": answers} | about | more


@pytest.fixture
def longbench(tmp_path):
    lines(tmp_path / "hotpotqa.jsonl", [entry("Ann met {input} Bob.", "Who?", ["Bob", "the Bob"])])
    lines(tmp_path / "trec.jsonl", [entry("q", "Type:", ["Food"], all_classes=["Food", "Fast Food", "City"])])
    lines(tmp_path / "lcc.jsonl", [entry("def f():\n", "", ["    return 1"])])
    lines(tmp_path / "multifieldqa_zh.jsonl", [entry("c", "i", ["a"])])
    for name, found in (("dataset2prompt", PROMPTS), ("dataset2maxlen", LENGTHS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return tmp_path


def test_longbench_asks_by_its_own_config(longbench):
    """Prompt, length of the answer, chat and context of each dataset; what cannot be scored is left out."""
    task = LongBench(str(longbench), shuffle_seed=None)
    asked = {sample.ability: sample for sample in task}
    assert list(asked) == ["hotpotqa", "trec", "lcc"]
    one = asked["hotpotqa"]
    assert one.question == "Read.\nAnn met {input} Bob.\nAsk: Who?\nSay:"
    assert one.question[slice(*one.context[0])] == "Ann met {input} Bob."
    assert one.bare_question == "Read.\n\nAsk: Who?\nSay:"
    assert (one.max_new_tokens, one.chat, one.references) == (32, True, ("Bob", "the Bob"))
    assert not asked["trec"].chat
    assert task.max_new_tokens == 64
    assert isinstance(task, Corpus)
    assert isinstance(task, Local)


def test_longbench_scores_as_it_does(longbench):
    task = LongBench(str(longbench), shuffle_seed=None)
    samples, said = list(task), ["It was Bob", "\nFood\nCity", "# one\n    return 1\nx"]
    assert task.scores(samples, said) == pytest.approx([2 / 3 * 0.75, 1.0, 1.0], abs=0.3)
    assert task.score(samples[0], "bob!") == 1.0
    assert task.score(samples[1], "Fast Food") == 0.5  # Food stands in it too
    groups = task.summary(samples, ["Bob", "Food", "nothing"])
    assert groups["multi-doc QA"] == groups["few-shot"] == 100
    assert groups["average"] == pytest.approx((200 + groups["code"]) / 3)


def test_longbench_finds_its_config_in_a_folder_too(longbench):
    (longbench / "config").mkdir()
    for name in ("dataset2prompt.json", "dataset2maxlen.json"):
        (longbench / name).rename(longbench / "config" / name)
    assert len(LongBench(str(longbench), ["trec"])) == 1


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda d: (d / "dataset2prompt.json").unlink(), {}, "dataset2prompt.json is missing.*LongBench needs there"),
        (lambda d: None, {"datasets": ["multifieldqa_zh"]}, "multifieldqa_zh, whose answers are Chinese words"),
        (lambda d: None, {"datasets": ["qa"]}, "task.dataset.datasets holds 'qa'. Choose from: narrativeqa"),
        (lambda d: None, {"datasets": ["qasper"]}, "qasper.jsonl is missing; of its kind there are hotpotqa"),
        (lambda d: lines(d / "trec.jsonl", [{"input": "a"}]), {"datasets": ["trec"]}, "lacks `context`"),
        (
            lambda d: lines(d / "trec.jsonl", []),
            {},
            r"trec.jsonl holds no question.*leave trec out of task",
        ),
        (lambda d: lines(d / "lcc.jsonl", [entry("c", "i", [])]), {}, r"lcc.jsonl, entry 0: `answers` is"),
        (
            lambda d: lines(d / "trec.jsonl", [entry("c", "i", ["Food"])]),
            {},
            "names no class in `all_classes`",
        ),
        (lambda d: configured(d, "dataset2prompt", {"lcc": "x"}), {}, r"the prompt of lcc has no \{context\}"),
        (lambda d: configured(d, "dataset2maxlen", {"lcc": "x"}), {}, r"lcc of .*dataset2maxlen.json is 'x'. Write"),
        (lambda d: (d / "dataset2maxlen.json").write_text("{}"), {}, "dataset2maxlen.json lacks `hotpotqa`"),
        (lambda d: None, {"longest": -1}, "task.dataset.longest is -1. Write a whole number, 2 or more"),
    ],
    ids=[
        *("config", "chinese", "unknown", "missing", "broken", "empty", "answers", "classes", "prompt", "length"),
        *("no length", "longest"),
    ],
)
def test_what_longbench_lacks_is_named(longbench, change, settings, message):
    change(longbench)
    with pytest.raises(ValueError, match=message):
        LongBench(str(longbench), **settings)


def test_one_dataset_may_be_named_without_a_list(longbench):
    assert {sample.ability for sample in LongBench(str(longbench), "trec")} == {"trec"}
    assert len(LongBench(str(longbench), [])) == 3


def test_every_dataset_has_a_group():
    assert len(DATASETS) == 21
    assert len({dataset.group for dataset in DATASETS.values()}) == 6
    assert sum(dataset.measure is None for dataset in DATASETS.values()) == 3


def test_measures():
    """Worked by hand."""
    assert text_scores.qa_f1("The cat sat.", "a cat") == pytest.approx(2 / 3)
    assert text_scores.qa_f1("", "a") == 0.0
    assert text_scores.rouge_l("the big cat sat", "The cat sat down") == pytest.approx(2 * 3 / 8)
    assert text_scores.rouge_l("", "a") == 0.0
    assert text_scores.numbers("2 or 3, no: 3", "Paragraph 3") == pytest.approx(2 / 3)
    assert text_scores.numbers("none", "3") == 0.0
    assert text_scores.classification("City", "Food", ["Food", "City"]) == 0.0
    assert text_scores.code_similarity("``` py\nx = 1\n", "x = 1") == 1.0
    assert text_scores.contained("Codes 12 and 34", ["12", "56"]) == 0.5


def test_ruler(tmp_path):
    """All references count, but of several right answers one is enough."""
    lines(
        tmp_path / "niah_multivalue" / "validation.jsonl",
        [{"index": 4, "input": "q", "outputs": ["1", "2"], "length": 9}],
    )
    lines(tmp_path / "qa_1" / "validation.jsonl", [{"index": 0, "input": "q", "outputs": ["Ann", "Anna"], "length": 9}])
    task = Ruler(str(tmp_path), shuffle_seed=None)
    niah, qa = task
    assert (niah.id, niah.max_new_tokens, qa.max_new_tokens) == ("niah_multivalue-4", 128, 32)
    assert task.scores([niah, qa], ["1 and 3", "it was ann"]) == [0.5, 1.0]
    assert Ruler(str(tmp_path), ["qa_1"], chat=False)[0].chat is False
    with pytest.raises(ValueError, match=r"RULER needs there: a folder for each task"):
        Ruler(str(tmp_path / "qa_1"))
    lines(tmp_path / "other" / "validation.jsonl", [])
    with pytest.raises(ValueError, match=r"task.dataset.tasks holds 'other', of which nobody knows how long"):
        Ruler(str(tmp_path), ["other"])
    with pytest.raises(ValueError, match=r"holds the folder 'other', of which nobody knows .* task.dataset.tasks"):
        Ruler(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds 'qa_9', but .* has no qa_9/validation.jsonl. Choose from: niah_"):
        Ruler(str(tmp_path), ["qa_1", "qa_9"])
    assert len(Ruler(str(tmp_path), "qa_1")) == 1
    lines(tmp_path / "fwe" / "validation.jsonl", [])
    with pytest.raises(ValueError, match=r"fwe/validation.jsonl holds no question. .* leave fwe out of task.data"):
        Ruler(str(tmp_path), ["qa_1", "fwe"])
    with pytest.raises(ValueError, match="there is no folder"):
        Ruler(str(tmp_path / "none"), ["qa_1"])
    lines(tmp_path / "vt" / "validation.jsonl", [{"index": 0, "input": "q", "outputs": []}])
    with pytest.raises(ValueError, match="`outputs` is"):
        Ruler(str(tmp_path), ["vt"])


@pytest.fixture
def hay(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"This is sentence {i} {n}." for n in range(60)))
    return tmp_path


def test_needles_lie_at_their_depth(hay):
    """In texts of their length, each drawn anew, the same each time."""
    task = Niah(str(hay), lengths=[100, 200], depths=[0, 50, 100], repeats=2, shuffle_seed=None)
    assert len(task) == 12
    assert [s.ability for s in task][::2][:3] == ["100 words, 0%", "100 words, 50%", "100 words, 100%"]
    for sample in task:
        (first, end), (begins, ends) = sample.spans[0], sample.context[0]
        needle, text = sample.question[first:end], sample.question[begins:ends]
        assert needle == f"The code of the archive in {needle.split()[6]} is {sample.reference}."
        length, depth = sample.ability.removesuffix("%").split(" words, ")
        assert abs(len(text.split()) - 9 - int(length)) <= 10
        assert abs((first - begins) / (len(text) - len(needle)) - int(depth) / 100) < 0.05
        assert sample.bare_question.endswith(sample.question[ends:])
        assert needle not in sample.bare_question
        assert task.score(sample, f"It is {sample.reference}.") == 1.0
        assert task.score(sample, "It is 12.") == 0.0
    again = Niah(str(hay), lengths=[100, 200], depths=[0, 50, 100], repeats=2, shuffle_seed=None)
    assert [s.question for s in task] == [s.question for s in again]
    assert task.content() == again.content()
    other = Niah(str(hay), lengths=[100, 200], depths=[0, 50, 100], repeats=2, seed=1)
    assert task.content() != other.content()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": [1000]}, r"has 600 words, but task.dataset.lengths asks for 1,000"),
        ({"depths": [120]}, r"task.dataset.depths is \[120\]. Write percents"),
        ({"depths": 50}, r"task.dataset.depths is 50. Write percents"),
        ({"depths": []}, r"task.dataset.depths is \[\]. Write percents"),
        ({"lengths": []}, r"task.dataset.lengths is \[\]. Write numbers of words"),
        ({"lengths": 100}, r"task.dataset.lengths is 100. Write numbers of words"),
        ({"lengths": [0]}, r"task.dataset.lengths is \[0\]. Write numbers of words"),
        ({"repeats": 0}, r"task.dataset.repeats is 0. Write a whole number, 1 or more"),
        ({"needle": "nothing"}, r"task.dataset.needle needs \{key\} and \{value\}"),
        ({"needle": "{key} {value} {other}"}, r"and no other braces"),
        ({"question": "{key} {"}, r"and no other braces"),
        ({"path": "EMPTY"}, "A haystack needs there: one or more .txt files"),
    ],
)
def test_bad_haystacks_are_named(hay, settings, message):
    path = hay / "none" if settings.pop("path", None) else hay
    with pytest.raises(ValueError, match=message):
        Niah(str(path), **{"lengths": [100], "depths": [50]} | settings)


def test_a_text_without_sentences_has_the_words_that_were_asked(tmp_path):
    """Verse, code or a list: what runs on is divided, so that lengths hold."""
    (tmp_path / "a.txt").write_text("word " * 5000)
    for sample in Niah(str(tmp_path / "a.txt"), lengths=[300, 1000], depths=[0, 100]):
        (begins, ends) = sample.context[0]
        words = len(sample.question[begins:ends].split()) - 9
        assert abs(words - int(sample.ability.split()[0])) <= 100


def test_few_shot(tmp_path):
    """Examples of all answers alike, never the question itself, and the question left alone without them."""
    rows = [{"question": f"q{i}", "answer": "even" if i % 2 == 0 else "odd"} for i in range(10)]
    lines(tmp_path / "q.jsonl", rows)
    task = FewShot(str(tmp_path / "q.jsonl"), shots=4, shuffle_seed=None)
    sample = task[3]
    block = sample.question[slice(*sample.context[0])]
    assert block.count("Question: ") == 4
    assert block.count("Answer: even") == block.count("Answer: odd") == 2
    assert "q3\n" not in block
    assert sample.bare_question == "Question: q3\nAnswer:"
    assert not sample.chat
    assert task.score(sample, " Odd\nQuestion: x") == 1.0
    assert task.chance(list(task)) == {"all": 0.5}
    with pytest.raises(ValueError, match=r"shots is 10, but there are 10 examples, the question among them"):
        FewShot(str(tmp_path / "q.jsonl"), shots=10)
    lines(tmp_path / "few.jsonl", rows[:1])
    assert len(FewShot(str(tmp_path / "q.jsonl"), examples=str(tmp_path / "few.jsonl"), shots=1)) == 10
    lines(tmp_path / "odd.jsonl", [{"question": "a"}])
    with pytest.raises(ValueError, match="row 0 has no answer"):
        FewShot(str(tmp_path / "odd.jsonl"), shots=0)
    with pytest.raises(ValueError, match="there is no such file"):
        FewShot(str(tmp_path / "none.jsonl"))
    lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"task.path is .*empty.jsonl, which holds no row"):
        FewShot(str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"task.dataset.examples is .*empty.jsonl, which holds no row"):
        FewShot(str(tmp_path / "q.jsonl"), examples=str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"task.dataset.shots is -1. Write a whole number, 0 or more"):
        FewShot(str(tmp_path / "q.jsonl"), shots=-1)
