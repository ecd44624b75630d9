"""ScienceQA (Lu et al. 2022, arXiv:2209.09513): school questions with options, by subject."""

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class ScienceQA:
    """Reads the problems of one split.

    Attributes:
        path: folder with all of it.
        split: of pid_splits.json, such as test or minival.
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
        problems, splits = place.json("problems.json"), place.json("pid_splits.json")
        if self.split not in splits:
            raise ValueError(f"task.dataset.reader.split is {self.split!r}. Choose from: {', '.join(splits)}.")
        samples = []
        for name in splits[self.split]:
            problem = problems[name]
            picture = problem.get("image")
            if self.only_pictures and not picture:
                continue
            hint = f"Context: {problem['hint']}\n" if problem.get("hint") else ""
            folder = f"{self.images}/{problem.get('split', self.split)}/{name}"
            samples.append(
                Sample(
                    id=name,
                    images=Pictures(name, [place.picture(f"{folder}/{picture}")] if picture else []),
                    question=hint + problem["question"],
                    reference=ascii_uppercase[problem["answer"]],
                    ability=problem["subject"],
                    choices=tuple(problem["choices"]),
                )
            )
        return samples
