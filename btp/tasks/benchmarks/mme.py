"""MME (Fu et al. 2023, arXiv:2306.13394): two yes-or-no questions about each picture, in 14 categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.images import ENDINGS, PictureFile, Pictures
from btp.tasks.files.local import Place, lines_of, read_text
from btp.tasks.metrics.mme import COGNITION, PERCEPTION
from btp.tasks.sample import Sample

QUESTIONS, IMAGES = "questions_answers_YN", "images"


@dataclass(frozen=True)
class MME:
    """Reads the categories' folders.

    Attributes:
        path: folder of the categories.
        categories: some of them; None = every one that is there.
    """

    path: str
    categories: Sequence[str] | None = None

    def read(self) -> list[Sample]:
        """Two samples per picture, of one group."""
        place = Place(
            Path(self.path),
            "MME",
            "a folder per category (existence, count ...) with pictures and a .txt of the same name for each, which "
            f"holds lines of question, tab, Yes or No; or both apart in {IMAGES} and {QUESTIONS}",
            "MME_Benchmark_release_version, on request: github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
        )
        known = [name for name in (*PERCEPTION, *COGNITION) if (place.root / name).is_dir()]
        for name in self.categories or known[:1] or PERCEPTION[:1]:
            place.find(name, "task.dataset.reader.categories")
        return [sample for name in self.categories or known for sample in _category(place.find(name))]


def _category(folder: Path) -> list[Sample]:
    texts = folder / QUESTIONS if (folder / QUESTIONS).is_dir() else folder
    pictures = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    by_stem = {p.stem: p for p in pictures.iterdir() if p.suffix.lower() in ENDINGS}
    samples = []
    for text in sorted(p for p in texts.iterdir() if p.suffix.lower() == ".txt"):
        picture = by_stem.get(text.stem, pictures / f"{text.stem}.jpg")
        for number, line in enumerate(lines_of(read_text(text, "task.path"))):
            if not line.strip():
                continue
            question, tab, answer = line.rstrip().rpartition("\t")
            if not tab:
                raise ValueError(f"{text}, line {number + 1}, has no tab between question and answer. Get it anew.")
            own = f"{folder.name}-{text.stem}-{number}"
            samples.append(
                Sample(
                    id=own,
                    images=Pictures(own, [PictureFile(picture)]),
                    question=question.strip(),
                    reference=answer.strip().lower(),
                    ability=folder.name,
                    group=text.stem,
                )
            )
    return samples
