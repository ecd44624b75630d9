"""ChartQA (Masry et al. 2022, arXiv:2203.10244): questions about charts, by people and by a machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class ChartQA:
    """Reads the two parts of one split, each of which is an ability.

    Attributes:
        path: folder of the splits, "ChartQA Dataset".
        split: train, val or test.
        parts: Parts to read: human, augmented.
    """

    path: str
    split: str
    parts: Sequence[str]

    def read(self) -> list[Sample]:
        """One sample per question."""
        files = {part: f"{self.split}/{self.split}_{part}.json" for part in self.parts}
        place = Place(
            Path(self.path),
            "ChartQA",
            f"{', '.join(files.values())} and {self.split}/png/<imgname>",
            "the link to the full dataset in github.com/vis-nlp/ChartQA",
        )
        samples = []
        for part, file in files.items():
            asked = place.entries(file, "task.dataset.reader.split")
            place.find(f"{self.split}/png")
            for number, q in enumerate(asked):
                name = f"{part}-{number:05d}"
                samples.append(
                    Sample(
                        id=name,
                        images=Pictures(name, [place.picture(f"{self.split}/png/{q['imgname']}")]),
                        question=q["query"],
                        reference=str(q.get("label", "")),
                        ability=part,
                    )
                )
        return samples
