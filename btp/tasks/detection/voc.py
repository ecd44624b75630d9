"""Pascal VOC (Everingham et al. 2010, doi:10.1007/s11263-009-0275-4): an XML file for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

from btp.tasks.detection.boxes import box_within
from btp.tasks.detection.task import Labelled, Object
from btp.tasks.files.local import Place, lines_of, read_text
from btp.tasks.shown import brief

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COCO = {
    "aeroplane": ("airplane",),
    "diningtable": ("dining table",),
    "motorbike": ("motorcycle",),
    "pottedplant": ("potted plant",),
    "sofa": ("couch",),
    "tvmonitor": ("tv",),
}
MOST_BYTES = 1 << 20  # of an annotation, which has a few thousand


class VOC:
    """Reads the pictures of one split.

    Args:
        path: the folder with Annotations, JPEGImages and ImageSets.
        split: Split of ImageSets/Main: val | train | trainval | test, or a file of one's own there.
    """

    names: Sequence[str] = NAMES
    aliases: Mapping[str, Sequence[str]] = MappingProxyType(COCO)

    def __init__(self, path: str, split: str):
        layout = f"ImageSets/Main/{split}.txt, Annotations/ID.xml and JPEGImages/ID.jpg"
        self.place = Place(Path(path), "Pascal VOC", layout, "VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk")
        self.split = split

    def read(self) -> list[Labelled]:
        """The pictures that the split lists, in its order. What is marked difficult counts neither way."""
        listed = self.place.find(f"ImageSets/Main/{self.split}.txt", "task.dataset.reader.split")
        self.place.find("Annotations")
        self.place.find("JPEGImages")
        ids = [line.split()[0] for line in lines_of(read_text(listed, "task.path")) if line.strip()]
        return [self._labelled(one) for one in ids]

    def _labelled(self, name: str) -> Labelled:
        file = self.place.find(f"Annotations/{name}.xml")
        root = _xml(file)
        width, height = (round(_number(root, f"size/{side}", file)) for side in ("width", "height"))
        found = []
        for number, one in enumerate(root.iter("object")):
            where = f"{file}, object {number}"
            kind = one.findtext("name", "").strip()
            if kind not in NAMES:
                raise ValueError(f"{where}: `name` is {brief(kind)}, which is none of VOC's 20 classes. Correct it.")
            corners = [_number(one, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")]
            low = tuple(v - 1 for v in corners[:2])  # VOC counts pixels from 1, and the last one belongs to the box
            box = box_within((*low, *corners[2:]), width, height, f"{where}: `bndbox`", name)  # type: ignore[arg-type]
            area = (box[2] - box[0]) * (box[3] - box[1])
            found.append(Object(kind, box, area, one.findtext("difficult", "0").strip() == "1"))
        return Labelled(name, self.place.root / "JPEGImages" / f"{name}.jpg", width, height, tuple(found))


def _xml(file: Path) -> ElementTree.Element:
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, more than any annotation. Get it anew.")
    try:
        return ElementTree.fromstring(file.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is no XML: {error}. Get it anew.") from None


def _number(node: ElementTree.Element, key: str, where: object) -> float:
    text = node.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{where}: `{key.replace('/', '.')}` is {brief(text)}, not a number. Correct it.") from None
