"""DocVQA (Mathew et al. 2021, arXiv:2007.00398): questions about scanned documents."""

from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class DocVQA:
    """Reads the questions file of one split.

    Attributes:
        path: folder with it and with the pictures, which it names as documents/<page>.png.
        questions: val_v1.0.json, or val_v1.0_withQT.json, which says what a question is about (the ability).
    """

    path: str
    questions: str

    def read(self) -> list[Sample]:
        """One sample per question; of several question types the first is its ability."""
        place = Place(
            Path(self.path),
            "DocVQA",
            f"{self.questions} and documents/<page>.png",
            "Single Page Document VQA of rrc.cvc.uab.es/?ch=17, behind a registration",
        )
        asked = place.entry(self.questions, "task.dataset.reader.questions").entries("data")
        samples = []
        for q in asked:
            name, answers = str(q["questionId"]), q.texts("answers") or ("",)
            samples.append(
                Sample(
                    id=name,
                    images=Pictures(name, [place.picture(q["image"])]),
                    question=q["question"],
                    reference=answers[0],
                    references=answers,
                    ability=(q.texts("question_types") or ("document",))[0],
                )
            )
        return samples
