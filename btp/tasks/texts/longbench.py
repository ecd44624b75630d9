"""LongBench (Bai et al. 2024, arXiv:2308.14508): 21 tasks over long texts, in six groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.entries import Entry
from btp.tasks.files.local import Place
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.shown import brief
from btp.tasks.texts.task import Texts, at_least, listed, questions
from btp.tasks.texts.text_scores import best, classification, code_similarity, numbers, qa_f1, rouge_l


@dataclass(frozen=True)
class Dataset:
    """How one dataset is asked and scored.

    Attributes:
        group: Group, one of the paper's six.
        measure: Measure of btp.tasks.texts.text_scores; None where answers are Chinese words, which need a segmenter.
        chat: it is asked as a turn of a chat.
        first_line: only the first line of an answer counts.
    """

    group: str
    measure: str | None
    chat: bool = True
    first_line: bool = False


DATASETS = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en"), Dataset("single-doc QA", "f1")),
    "multifieldqa_zh": Dataset("single-doc QA", None),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), Dataset("multi-doc QA", "f1")),
    "dureader": Dataset("multi-doc QA", None),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news"), Dataset("summarization", "rouge")),
    "vcsum": Dataset("summarization", None),
    "trec": Dataset("few-shot", "classes", chat=False, first_line=True),
    "triviaqa": Dataset("few-shot", "f1", chat=False, first_line=True),
    "samsum": Dataset("few-shot", "rouge", chat=False, first_line=True),
    "lsht": Dataset("few-shot", "classes", chat=False, first_line=True),
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), Dataset("synthetic", "number")),
    **dict.fromkeys(("lcc", "repobench-p"), Dataset("code", "code", chat=False)),
}
PROMPTS, LENGTHS = "dataset2prompt.json", "dataset2maxlen.json"
LAYOUT = f"<dataset>.jsonl of each dataset (data.zip), with {PROMPTS} and {LENGTHS} beside them or in a folder config"
SOURCE = "huggingface.co/datasets/THUDM/LongBench, and the folder config of github.com/THUDM/LongBench"


class LongBench(Texts):
    """Datasets of a folder, with prompts and lengths of the benchmark's own config.

    Args:
        path: the folder.
        datasets: names of some; None takes all whose files are there and whose answers can be scored.
        longest: tokens of a prompt, from which on its middle is left out, as the benchmark does; None is what the model
            reads less what it may answer.
        shuffle_seed: Seed of the order, as in `Texts`.

    Raises:
        ValueError: a file is missing, broken or empty, or a dataset is unknown or needs a segmenter.
    """

    def __init__(
        self,
        path: str,
        datasets: str | Sequence[str] | None = None,
        longest: int | None = None,
        shuffle_seed: int | None = 0,
        name: str = "longbench",
    ):
        place = Place(Path(path), "LongBench", LAYOUT, SOURCE)
        config = "config/" if (place.root / "config" / PROMPTS).is_file() else ""
        prompts, lengths = place.entry(config + PROMPTS), place.entry(config + LENGTHS)
        chosen = _chosen(place, listed(datasets))
        if longest is not None:
            at_least(2, longest, "task.dataset.longest")
        self.longest = longest
        self._classes: dict[str, tuple[str, ...]] = {}
        samples = []
        for dataset in chosen:
            rows = questions(place, f"{dataset}.jsonl", dataset, "task.dataset.datasets")
            about, prompt, length = DATASETS[dataset], str(prompts[dataset]), lengths[dataset]
            at_least(1, length, f"{dataset} of {lengths.where}")
            if "{context}" not in prompt:
                raise ValueError(f"{prompts.where}: the prompt of {dataset} has no {{context}}. Get the file anew.")
            samples += [_sample(dataset, about, prompt, length, number, row) for number, row in enumerate(rows)]
            self._classes[dataset] = tuple(dict.fromkeys(name for row in rows for name in row.texts("all_classes")))
            if about.measure == "classes" and not self._classes[dataset]:
                raise ValueError(
                    f"{place.root / dataset}.jsonl names no class in `all_classes`, by which answers are scored. Get "
                    "the file anew."
                )
        super().__init__(name, samples, shuffle_seed)

    def score(self, sample: Sample, prediction: str) -> float:
        """As the dataset is scored, best of the references."""
        dataset = DATASETS[sample.ability]
        if dataset.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        if dataset.measure == "classes":
            return best(
                lambda said, true: classification(said, true, self._classes[sample.ability]), sample, prediction
            )
        measures = {"f1": qa_f1, "rouge": rouge_l, "number": numbers, "code": code_similarity}
        return best(measures[str(dataset.measure)], sample, prediction)

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Percent by group, a mean over its datasets, and over all of them."""
        found = self._by_ability(samples, predictions)
        groups: dict[str, list[float]] = {}
        for ability, score in found.items():
            groups.setdefault(DATASETS[ability].group, []).append(100 * score)
        return {group: mean(scores) for group, scores in groups.items()} | super().summary(samples, predictions)


def _chosen(place: Place, datasets: list[str]) -> list[str]:
    scored = [name for name, dataset in DATASETS.items() if dataset.measure is not None]
    if not datasets:
        there = [name for name in scored if (place.root / f"{name}.jsonl").is_file()]
        return there or [place.find(f"{scored[0]}.jsonl").stem]  # says what must lie where
    for name in datasets:
        if name not in DATASETS:
            raise ValueError(f"task.dataset.datasets holds {name!r}. Choose from: {', '.join(DATASETS)}.")
        if name not in scored:
            raise ValueError(
                f"task.dataset.datasets holds {name}, whose answers are Chinese words: its score needs a segmenter "
                "(jieba), which btp does not bring. Leave it out."
            )
    return datasets


def _sample(dataset: str, about: Dataset, prompt: str, length: int, number: int, entry: Entry) -> Sample:
    before, _, behind = prompt.partition("{context}")
    asked = {"{input}": str(entry["input"])}
    text, first = str(entry["context"]), len(_filled(before, asked))
    answers = entry.texts("answers")
    if not answers:
        raise ValueError(f"{entry.where}: `answers` is {brief(entry.get('answers'))}. Get the file anew.")
    return Sample(
        id=f"{dataset}-{entry.get('_id', number)}",
        images=(),
        question=_filled(before, asked) + text + _filled(behind, asked),
        reference=answers[0],
        ability=dataset,
        references=answers,
        context=((first, first + len(text)),),
        chat=about.chat,
        max_new_tokens=length,
    )


def _filled(part: str, values: dict[str, str]) -> str:
    for mark, value in values.items():
        part = part.replace(mark, value)
    return part
