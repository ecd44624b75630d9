"""A folder of lmms-eval tasks over drawn scenes: what a user with own data writes, with pictures beside it."""

import json

from btp.tasks.pocketvqa.task import PocketVQA

FUNCTIONS = """
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent


def visual(doc):
    return [Image.open(HERE / "pictures" / doc["picture"])]


def turns(doc, lmms_eval_specific_kwargs=None):
    picture, text = {"type": "image", "url": visual(doc)[0]}, {"type": "text", "text": doc["question"]}
    return [{"role": "user", "content": [picture, text]}]


def question(doc, lmms_eval_specific_kwargs=None):
    wording = lmms_eval_specific_kwargs or {}
    return wording.get("pre_prompt", "") + doc["question"] + wording.get("post_prompt", "")


def rounds(doc, lmms_eval_specific_kwargs=None, **state):
    return doc["question"]


def letters(doc, results):
    return {"letters": len(results[0])}


def likely(doc, results):
    (loss, greedy), = results
    return {"loss": loss, "said": float(greedy)}


def paired(results):
    assert len(results) % 2 == 0, "pairs only"
    return 0.0


def film(doc):
    return ["clip.mp4"]
"""
BASE = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/{data}.jsonl}}
test_split: test
doc_to_visual: !function functions.visual
doc_to_text: !function functions.question
metadata: [{{version: 1.0}}]
"""
EXACT = """
doc_to_target: answer
generation_kwargs: {max_new_tokens: 48, do_sample: false, temperature: 0, num_beams: 1, until: ["\\n"]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}
"""
TASKS = {
    "scenes": ("questions", "output_type: generate_until" + EXACT),
    "scenes_chat": ("questions", "output_type: generate_until\ndoc_to_messages: !function functions.turns" + EXACT),
    "scenes_worded": (
        "questions",
        "output_type: generate_until\nlmms_eval_specific_kwargs:\n  default: {post_prompt: ' please'}\n"
        "  other: {post_prompt: ''}" + EXACT,
    ),
    "scenes_choice": (
        "choices",
        "output_type: multiple_choice\ndoc_to_target: gold\ndoc_to_choice: options\ntarget_delimiter: ' '\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}",
    ),
    "scenes_likely": (
        "choices",
        "output_type: loglikelihood\ndoc_to_target: answer\nprocess_results: !function functions.likely\n"
        "metric_list:\n  - {metric: loss, aggregation: mean, higher_is_better: false}\n"
        "  - {metric: said, aggregation: mean, higher_is_better: true}",
    ),
    "scenes_letters": (
        "questions",
        "output_type: generate_until\ndoc_to_target: answer\ngeneration_kwargs: {max_new_tokens: 4}\n"
        "process_results: !function functions.letters\n"
        "metric_list:\n  - {metric: letters, aggregation: mean, higher_is_better: true}",
    ),
    "scenes_rounds": ("questions", "output_type: generate_until_multi_round" + EXACT),
    "scenes_sampled": (
        "questions",
        "output_type: generate_until\ndoc_to_target: answer\ngeneration_kwargs: {do_sample: true, temperature: 0.7}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}",
    ),
    "scenes_film": ("questions", "output_type: generate_until" + EXACT),
    "scenes_mutual": (
        "choices",
        "output_type: multiple_choice\ndoc_to_target: gold\ndoc_to_choice: options\ntarget_delimiter: ' '\n"
        "metric_list:\n  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}",
    ),
    "scenes_pairs": (
        "questions",
        "output_type: generate_until\ndoc_to_target: answer\ngeneration_kwargs: {max_new_tokens: 4}\n"
        "process_results: !function functions.letters\n"
        "metric_list:\n  - {metric: letters, aggregation: !function functions.paired, higher_is_better: true}",
    ),
    "scenes_absent": ("nowhere", "output_type: generate_until" + EXACT),
}


def write_tasks(folder, size=27):
    """Write pictures, questions and yamls; returns the samples that they hold."""
    task = PocketVQA("test", 0, size)
    samples = [task[i] for i in range(size)]
    (folder / "pictures").mkdir(parents=True)
    for sample in samples:
        sample.images[0].save(folder / "pictures" / f"{sample.id}.png")
    write_questions(folder, samples)
    (folder / "functions.py").write_text(FUNCTIONS)
    for name, (data, rest) in TASKS.items():
        text = f"task: {name}\n" + BASE.format(folder=folder, data=data) + rest + "\n"
        if name == "scenes_film":
            text = text.replace("functions.visual", "functions.film")
        (folder / f"{name}.yaml").write_text(text)
    group = "group: all_scenes\ntask: [scenes, scenes_choice]\n"
    (folder / "all_scenes.yaml").write_text(group)
    return samples


def write_questions(folder, samples):
    """Write the tables: all questions, and those that are answered by yes or no."""
    rows = [{"picture": f"{s.id}.png", "question": s.question, "answer": s.reference} for s in samples]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    binary = [r | {"options": ["yes", "no"], "gold": int(r["answer"] == "no")} for r in rows if r["answer"] in BINARY]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in binary))


BINARY = ("yes", "no")
