"""The main job on local files: the same scores as the embedded task, F1 in the report, calibration on any pictures."""

import html
import json

import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from jobs import composed, job
from rich.console import Console

from btp.report.comparison.compare import compare
from btp.report.tables.screen_table import screen_table
from btp.runner.calibration.calibrate import curves_identity
from btp.runner.datasets import with_contents

pytestmark = pytest.mark.long

QUICK = [
    "cost.enabled=false",
    "trainer.workers=0",
    "calibration.samples=8",
    "~pruner@controls.downsampled",
    "~pruner@controls.no_image",
]
ABILITIES = "presence,attribute,counting,digit,number"


def scenes(*overrides):
    """Samples of the embedded task."""
    task = instantiate(composed(*overrides)["task"]["dataset"])
    return [task[i] for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of questions, as a user writes it, about scenes of the embedded task."""
    root = tmp_path_factory.mktemp("scenes")
    rows = []
    for sample in scenes(f"task.dataset.abilities=[{ABILITIES}]"):
        sample.images[0].save(root / f"{sample.id}.png")
        row = {"image": f"{sample.id}.png", "question": sample.question, "answer": sample.reference}
        rows.append(row | {"id": sample.id, "ability": sample.ability})
    (root / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="module")
def pope(tmp_path_factory):
    """Questions of presence in the layout of POPE."""
    root = tmp_path_factory.mktemp("pope")
    (root / "val2014").mkdir()
    asked = []
    for number, sample in enumerate(scenes("task.dataset.abilities=[presence]")):
        sample.images[0].save(root / "val2014" / f"{number}.png")
        row = {"question_id": number, "image": f"{number}.png", "text": sample.question, "label": sample.reference}
        asked.append(json.dumps(row))
    for subset, lines in (("random", asked[:12]), ("popular", asked[12:])):
        (root / f"coco_pope_{subset}.json").write_text("\n".join(lines))
    return root


def answers(run):
    """Samples of a run by arm and id."""
    return pd.read_parquet(run / "samples.parquet").set_index(["arm", "sample"]).sort_index()


def test_a_table_of_scenes_scores_as_the_scenes_themselves(folder, tmp_path):
    own = job(tmp_path / "own", *QUICK, f"task.dataset.abilities=[{ABILITIES}]", "limit=20")
    mine = job(tmp_path / "mine", *QUICK, "task=vqa_folder", f"task.path={folder}", "limit=20")
    one, other = answers(own), answers(mine)
    assert len(one) == 60
    columns = ["question", "reference", "prediction", "score", "ability", "tokens_avg"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    assert 0.5 < one.loc["unpruned"]["score"].mean() <= 1
    metrics = json.loads((mine / "run.json").read_text())["metrics"]
    assert metrics["btp"]["all"]["exact_match"] == pytest.approx(one.loc["btp"]["score"].mean())
    digits = one.loc["btp"].query("ability == 'digit'")["score"].mean()
    assert metrics["btp"]["by_ability"]["digit"]["exact_match"] == pytest.approx(digits)
    assert json.loads((own / "run.json").read_text())["metrics"] == {}
    assert 'id="metrics"' not in (own / "report.html").read_text()


def test_wrong_answers_and_foreign_pictures_are_said_while_it_runs(folder, tmp_path, capfd):
    """Nobody's answer is zebra; the default calibration set is not these scenes'."""
    rows = [json.loads(line) | {"answer": "zebra"} for line in (folder / "questions.jsonl").read_text().splitlines()]
    for row in rows:
        row["image"] = str(folder / row["image"])
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows[:6])))
    words = ["task=vqa_folder", f"task.path={tmp_path / 'q.jsonl'}", "limit=6", "pruner@controls.oracle=oracle"]
    run = job(tmp_path / "out", *QUICK, *words)
    said, state = " ".join(capfd.readouterr().out.split()), json.loads((run / "run.json").read_text())
    floor = "The unpruned model answers nothing right (0 of 6 samples score above 0): look at prompt and processor."
    foreign = "samples of pocketvqa, not on vqa_folder's own pictures"
    assert said.count(floor) == 2  # before the other arms run, and below the table
    assert said.count(foreign) == 2
    assert "left out: oracle, since no sample says which boxes its answer needs" in said
    assert [arm["arm"] for arm in state["arms"]] == ["unpruned", "btp", "random"]
    assert said.index(floor) < said.index("Answers, 95% intervals")
    assert (state["calibration"]["name"], state["calibration"]["own"]) == ("pocketvqa", False)
    sample = next(row for row in rows if row["id"] == state["prompt"]["sample"])
    assert "<image> x 144" in state["prompt"]["text"]
    assert sample["question"] in state["prompt"]["text"]
    text = " ".join(html.unescape((run / "report.html").read_text()).split())
    for part in (floor, foreign, f'prompt "{state["prompt"]["text"]}"', 'reference "zebra"'):
        assert part in text
    assert "0.0 points" not in text


def test_a_changed_table_is_another_run(folder, tmp_path):
    words = [*QUICK, "task=vqa_folder", f"task.path={tmp_path / 'q.jsonl'}", "pruner=none", "limit=4"]
    text = (folder / "questions.jsonl").read_text().replace('"image": "', f'"image": "{folder}/')
    (tmp_path / "q.jsonl").write_text(text)
    first = job(tmp_path / "out", *words)
    assert job(tmp_path / "out", *words) == first
    (tmp_path / "q.jsonl").write_text(text.replace("what ", "which ", 1))
    assert job(tmp_path / "out", *words) != first


@pytest.fixture(scope="module")
def asked(pope, tmp_path_factory):
    """A run of task=pope."""
    words = ["task.dataset.reader.subsets=[random,popular]", "task.dataset.suffix=null", "limit=20"]
    return job(tmp_path_factory.mktemp("runs"), *QUICK, "task=pope", *words, f"task.path={pope}", "budget.share=0.2")


def test_f1_is_in_run_json_and_the_report(asked):
    frame, state = answers(asked), json.loads((asked / "run.json").read_text())
    assert set(state["metrics"]) == {"unpruned", "btp", "random"}
    for arm, found in state["metrics"].items():
        rows = frame.loc[arm]
        yes, true = rows["prediction"] == "yes", rows["reference"] == "yes"
        assert found["all"]["f1"] == pytest.approx(2 * (yes & true).sum() / (yes.sum() + true.sum()))
        assert found["all"]["yes"] == pytest.approx(yes.mean())
        assert set(found["by_ability"]) == {"random", "popular"}
    assert state["metrics"]["unpruned"]["all"]["f1"] > 0.8
    page = (asked / "report.html").read_text()
    section = page[page.index('<section id="metrics">') :].split("</section>")[0]
    assert "<th>f1</th>" in section
    for found in state["metrics"].values():
        assert f"<td>{found['all']['f1']:.3f}</td>" in section
        assert f"<td>{found['by_ability']['popular']['f1']:.3f}</td>" in section
    assert "metric_f1" in (asked / "table.csv").read_text()


def test_f1_is_in_the_comparison_and_on_the_screen(asked, tmp_path):
    shown, _ = compare([asked], [], tmp_path)
    assert "Benchmark metrics: f1" in (tmp_path / "comparison.html").read_text()
    assert pd.read_csv(tmp_path / "comparison.csv")["metric_f1"].notna().all()
    for what in (shown, screen_table(asked)):
        console = Console(width=200, record=True)
        console.print(what)
        head, _, below = console.export_text().partition("Benchmark metrics")
        assert "f1" not in head
        assert "f1" in below


def test_a_calibration_names_what_it_was_made_from(folder, tmp_path):
    words = ["calibration=folder", f"calibration.path={folder}", "calibration.samples=6", "limit=4", "overlays=1"]
    words += ["calibration.dataset.reader.question=describe the scene in order ."]
    found = yaml.safe_load((job(tmp_path, *QUICK, *words) / "calibration.yaml").read_text())
    drawn = found["calibration"]["content"]["drawn"]
    assert len(drawn) == found["curves"]["samples"] == 6
    assert all((folder / name).is_file() for name in drawn)

    def identity(*more):
        return curves_identity(with_contents(composed("experiment=smoke", *words, *more)), found["model"]["checkpoint"])

    assert identity() == identity("limit=9") == found["identity"]
    assert identity("calibration.dataset.seed=1") != found["identity"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=gqa"], "task.path is data/gqa, but there is no folder data/gqa. GQA needs there"),
        (["task=vqa_folder", "task.path=no.json"], "task.path is no.json, but there is no such file or folder"),
        (["calibration=folder"], "calibration.path is data/pictures, but there is no such folder"),
        (["task.dataset.split=tset"], "task.split is 'tset'"),
    ],
)
def test_missing_files_are_said_in_one_plain_message(words, message, tmp_path):
    with pytest.raises(ValueError) as found:
        job(tmp_path, *words)
    assert str(found.value).startswith(message)
