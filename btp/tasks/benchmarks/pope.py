"""POPE (Li et al. 2023, arXiv:2305.10355): is an object in the picture, asked of those that might well be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class POPE:
    """Reads the subsets, each of which is an ability.

    Attributes:
        path: folder with all of it.
        subsets: Subsets to read: random, popular, adversarial.
        questions: name of a subset's file, with {subset}; one question a line, as .json or .jsonl.
        images: folder of the pictures, val2014 of COCO.
    """

    path: str
    subsets: Sequence[str]
    questions: str
    images: str

    def read(self) -> list[Sample]:
        """One sample per question."""
        place = Place(
            Path(self.path),
            "POPE",
            f"{', '.join(self.questions.format(subset=s) for s in self.subsets)} and {self.images}/COCO_val2014_*.jpg",
            "output/coco of github.com/AoiDragon/POPE, val2014.zip of cocodataset.org",
        )
        samples = []
        for subset in self.subsets:
            name = self.questions.format(subset=subset)
            lines = Path(name).with_suffix(".jsonl").as_posix()
            name = lines if not (place.root / name).exists() and (place.root / lines).exists() else name
            asked = place.entries(name, "task.dataset.reader.subsets")
            place.find(self.images, "task.dataset.reader.images")
            for q in asked:
                own = f"{subset}-{q['question_id']}"
                samples.append(
                    Sample(
                        id=own,
                        images=Pictures(own, [place.picture(f"{self.images}/{q['image']}")]),
                        question=q["text"],
                        reference=q.get("label", ""),
                        ability=subset,
                    )
                )
        return samples
