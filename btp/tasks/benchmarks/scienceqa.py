"""ScienceQA (Lu et al. 2022, arXiv:2209.09513): school questions with options, by subject."""

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from btp.tasks.files.entries import Entry
from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample
from btp.tasks.shown import brief


@dataclass(frozen=True)
class ScienceQA:
    """Reads the problems of one split.

    Attributes:
        path: folder with all of it.
        split: Split of pid_splits.json, such as test or minival.
        images: folder of <split>/<id>/<picture>.
        only_pictures: ask those with a picture, which papers call ScienceQA-IMG.
    """

    path: str
    split: str
    images: str
    only_pictures: bool

    def read(self) -> list[Sample]:
        """One sample per problem; its hint stands in front of the question."""
        place = Place(
            Path(self.path),
            "ScienceQA",
            f"problems.json, pid_splits.json and {self.images}/<split>/<id>/image.png",
            "data/scienceqa of github.com/lupantech/ScienceQA, pictures by its tools/download.sh",
        )
        problems, splits = place.entry("problems.json"), place.entry("pid_splits.json")
        if self.split not in splits:
            raise ValueError(f"task.dataset.reader.split is {self.split!r}. Choose from: {', '.join(splits)}.")
        samples = []
        for name in splits.texts(self.split):
            problem = Entry(problems[name], f"{problems.where}, {name}")
            picture = problem.get("image")
            if self.only_pictures and not picture:
                continue
            hint = f"Context: {problem['hint']}\n" if problem.get("hint") else ""
            choices, answer = problem.texts("choices"), problem["answer"]
            if not isinstance(answer, int) or not 0 <= answer < len(choices):
                raise ValueError(
                    f"{problem.where}: `answer` is {brief(answer)}, not the place of one of its {len(choices)} "
                    "`choices`, from 0. Get the file anew."
                )
            folder = f"{self.images}/{problem.get('split', self.split)}/{name}"
            samples.append(
                Sample(
                    id=name,
                    images=Pictures(name, [place.picture(f"{folder}/{picture}")] if picture else []),
                    question=hint + problem["question"],
                    reference=ascii_uppercase[answer],
                    ability=problem["subject"],
                    choices=choices,
                )
            )
        return samples
