"""Calibration sets of local files: as many samples as asked, drawn by seed, with the draw on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from btp.tasks.files.entries import Entry
from btp.tasks.files.images import ENDINGS, PictureFile, Pictures
from btp.tasks.files.local import Place, Reader, file_name
from btp.tasks.sample import Sample
from btp.tasks.vqa import digest_of

KEY = "calibration.path"
GROUP = "calibration"  # of the config, for messages


class Draw:
    """Some of a reader's samples with a picture, the same for a seed; their pictures are opened when looked at.

    Args:
        reader: Reader of the files.
        samples: Number of samples.
        seed: Seed of the draw.
        key: group of the config that it belongs to, for messages.

    Raises:
        ValueError: files are missing or broken, or there are too few samples.
    """

    def __init__(self, reader: Reader, samples: int, seed: int, key: str = GROUP):
        found = [sample for sample in reader.read() if len(sample.images)]
        if len(found) < samples:
            raise ValueError(
                f"{key}.samples is {samples}, but {key}.path holds {len(found)} samples with a picture. Lower "
                f"{key}.samples, or name more."
            )
        drawn = np.random.default_rng(seed).choice(len(found), samples, replace=False)
        self._samples = [found[i] for i in drawn]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def content(self) -> dict[str, object]:
        """A digest of what was drawn, every picture's bytes included, and the ids in the order of the draw.

        Raises:
            ValueError: a picture is missing or broken; says which.
        """
        for sample in self._samples:
            list(sample.images)  # all of each, since a picture that was cut off has a sound head
        return {"digest": digest_of(self._samples, whole=True), "drawn": [sample.id for sample in self._samples]}


@dataclass(frozen=True)
class LlavaInstruct:
    """Reads conversations in the format of LLaVA-Instruct (Liu et al. 2023, arXiv:2304.08485).

    Attributes:
        path: folder with both.
        conversations: a JSON list of {id, image, conversations: [{from: human | gpt, value}]}.
        images: folder that its pictures are relative to.
        key: group of the config that it belongs to, for messages.
    """

    path: str
    conversations: str
    images: str
    key: str = GROUP

    def read(self) -> list[Sample]:
        """The first question of every conversation about a picture, with its answer; the id is the place in the file.

        Ids of the files themselves repeat.
        """
        place = Place(
            Path(self.path),
            "LLaVA-Instruct",
            f"{self.conversations} and the pictures that it names in {self.images}",
            "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, train2017.zip of cocodataset.org",
            f"{self.key}.path",
        )
        listed = place.entries(self.conversations, f"{self.key}.dataset.reader.conversations")
        place.find(self.images, f"{self.key}.dataset.reader.images")
        samples = []
        for number, entry in enumerate(listed):
            if not entry.get("image"):
                continue
            said = {turn["from"]: turn["value"] for turn in reversed(entry.entries("conversations"))}
            turns = Entry(said, f"{entry.where}, conversations")
            name = f"{number:06d}-{file_name(entry['id'])}"
            samples.append(
                Sample(
                    id=name,
                    images=Pictures(name, [place.picture(f"{self.images}/{entry['image']}")], f"{self.key}.path"),
                    question=str(turns["human"]).replace("<image>", "").strip(),
                    reference=str(turns.get("gpt", "")),
                    ability="all",
                )
            )
        return samples


def _is_picture(path: Path) -> bool:
    """True of files that say so by their name; hidden ones are what systems leave beside pictures."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


@dataclass(frozen=True)
class PictureFolder:
    """Takes every picture below a folder.

    Attributes:
        path: the folder.
        question: what each is asked.
    """

    path: str
    question: str

    def read(self) -> list[Sample]:
        """One sample per picture, in the order of their paths.

        Raises:
            ValueError: there is no such folder, or no picture in it.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise ValueError(f"{KEY} is {root}, but there is no such folder. Name a folder of pictures.")
        found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if _is_picture(p))
        if not found:
            raise ValueError(f"{KEY} is {root}, which holds no picture ({', '.join(sorted(ENDINGS))}). Name another.")
        return [
            Sample(
                id=file_name(name),
                images=Pictures(name, [PictureFile(root / name)], KEY),
                question=self.question,
                reference="",
                ability="all",
            )
            for name in found
        ]
