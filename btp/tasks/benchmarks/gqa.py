"""GQA (Hudson and Manning 2019, arXiv:1902.09506): questions about relations in photos, by structural type."""

from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.entries import Entry
from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class GQA:
    """Reads the questions file of one split.

    Attributes:
        path: folder with both.
        questions: such as testdev_balanced_questions.json.
        images: folder of <imageId>.jpg.
    """

    path: str
    questions: str
    images: str

    def read(self) -> list[Sample]:
        """One sample per question."""
        place = Place(
            Path(self.path),
            "GQA",
            f"{self.questions} and {self.images}/<imageId>.jpg",
            "questions1.2.zip and images.zip of cs.stanford.edu/people/dorarad/gqa/download.html",
        )
        asked = place.entry(self.questions, "task.dataset.reader.questions")
        place.find(self.images, "task.dataset.reader.images")
        return [
            Sample(
                id=name,
                images=Pictures(name, [place.picture(f"{self.images}/{q['imageId']}.jpg")]),
                question=q["question"],
                reference=q.get("answer", ""),
                ability=Entry(q.get("types") or {}, f"{q.where}, types").get("structural", "all"),
            )
            for name, q in ((name, Entry(q, f"{asked.where}, {name}")) for name, q in asked.items())
        ]
