"""One folder of pictures for each class, as ImageNet's validation set lies in its folders of wnids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from btp.tasks.classes.task import Named
from btp.tasks.files.images import ENDINGS, PictureFile, Pictures

KEY = "task.path"


class PictureFolders:
    """Reads folders of pictures; the classes are the folders' names, sorted.

    Args:
        path: folder of the class folders.
    """

    def __init__(self, path: str):
        self.root = Path(path)
        folders = subfolders(self.root, "a folder of pictures for each class")
        self.classes: Sequence[str] = tuple(folder.name for folder in folders)

    def read(self) -> list[Named]:
        """All pictures, by class and name.

        Raises:
            ValueError: a class has none.
        """
        found = []
        for label in self.classes:
            folder = self.root / label
            files = sorted(file for file in folder.rglob("*") if is_picture(file))
            if not files:
                raise ValueError(
                    f"{folder} holds no picture ({', '.join(sorted(ENDINGS))}), but each folder in {KEY} is a class. "
                    "Put its pictures there, or take it away."
                )
            for file in files:
                name = file.relative_to(self.root).as_posix()
                found.append(Named(name, Pictures(name, [PictureFile(file)], KEY), label, str(file)))
        return found


def subfolders(path: Path, layout: str, below: str = "") -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are left out.

    Args:
        path: the folder, as the config names it.
        layout: what must lie there, for messages.
        below: Path of the folders below it.

    Raises:
        ValueError: there is no such folder, or none in it.
    """
    root = path / below
    if not root.is_dir():
        raise ValueError(f"{KEY} is {path}, but there is no folder {root}. It needs {layout}.")
    found = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{KEY} is {path}, but {root} holds no folder. It needs {layout}.")
    return found


def is_picture(path: Path) -> bool:
    """True of files that say so by their name; hidden ones are what systems leave beside pictures."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
