"""TextVQA (Singh et al. 2019, arXiv:1904.08920): questions that ask to read text in a photo."""

from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place, commonest
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class TextVQA:
    """Reads the questions file of one split.

    Attributes:
        path: folder with both.
        questions: such as TextVQA_0.5.1_val.json.
        images: folder of <image_id>.jpg; those of train and val lie in train_images.
    """

    path: str
    questions: str
    images: str

    def read(self) -> list[Sample]:
        """One sample per question, with the ten answers."""
        place = Place(
            Path(self.path),
            "TextVQA",
            f"{self.questions} and {self.images}/<image_id>.jpg",
            "textvqa.org/dataset (train_val_images.zip)",
        )
        asked = place.entry(self.questions, "task.dataset.reader.questions").entries("data")
        place.find(self.images, "task.dataset.reader.images")
        samples = []
        for q in asked:
            name, answers = str(q["question_id"]), q.texts("answers") or ("",)
            samples.append(
                Sample(
                    id=name,
                    images=Pictures(name, [place.picture(f"{self.images}/{q['image_id']}.jpg")]),
                    question=q["question"],
                    reference=commonest(answers),
                    references=answers,
                    ability="text",
                )
            )
        return samples
