"""What a model gets of a user's picture file is what a person sees of it, wherever the file is opened."""

import json
import re
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from btp.tasks.benchmarks.mme import MME
from btp.tasks.files.calibration_sets import LlavaInstruct, PictureFolder
from btp.tasks.files.decode_image import FORMATS
from btp.tasks.files.images import PictureFile, Pictures, picture_sizes
from btp.tasks.files.vqa_folder import VQAFolder

ORIENTATION = 274  # EXIF tag


def read(path):
    """The picture as a sample shows it, and the size that is told without opening it."""
    shown = Pictures("7", [PictureFile(path)])
    return np.asarray(shown[0]), picture_sizes(shown)[0]


def halves():
    """6 x 4 pixels: red on the left, blue on the right."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0] = pixels[:, 3:, 2] = 255
    return Image.fromarray(pixels)


def turned(path, orientation, kind=None):
    """Save the halves with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    halves().save(path, kind, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


HIDDEN = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "SUN": b"\x59\xa6\x6a\x95" + struct.pack(">7I", 1, 1, 24, 3, 1, 0, 0) + b"\0\0\0\0",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_other_formats_are_not_even_tried(tmp_path, kind):
    """Whatever a file is called: EPS, for one, would be handed to Ghostscript."""
    path = tmp_path / "x.jpg"
    path.write_bytes(HIDDEN[kind])
    with Image.open(path) as seen:
        assert seen.format == kind
    for look in (lambda shown: shown[0], picture_sizes):
        with pytest.raises(ValueError, match=r"x\.jpg cannot be read: no picture format is known for it \(JPEG, PNG"):
            look(Pictures("7", [PictureFile(path)]))


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_that_are_read_whatever_the_file_is_called(tmp_path, kind):
    halves().save(tmp_path / "x.jpg", kind)
    shown, size = read(tmp_path / "x.jpg")
    assert size == shown.shape[:2] == (4, 6)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_grey_keep_their_shades(tmp_path, mode):
    """0 is black and 65535 white, and all between lies between, in proportion."""
    ramp = np.linspace(0, 65535, 256).round()
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    Image.frombytes(mode, (256, 1), ramp.astype(kind).tobytes()).save(tmp_path / "ramp.tiff")
    shown, _ = read(tmp_path / "ramp.tiff")
    assert shown[0, :, 0].tolist() == list(range(256))
    assert (shown == shown[..., :1]).all()


def test_a_png_of_sixteen_bits_is_not_white(tmp_path):
    pixels = np.full((4, 4), 20000, np.uint16)
    pixels[0] = 60000
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=60000)
    shown, _ = read(tmp_path / "x.png")
    assert (shown[1:] == 78).all()
    assert (shown[0] == 255).all()  # transparent


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), "from 0 to 1 (mode F)"),
        (np.full((4, 4), 200, np.uint16), "from 200 to 200 (mode I;16)"),
        (np.full((4, 4), 70000, np.int32), "from 70000 to 70000 (mode I)"),
        (np.full((4, 4), -1, np.int32), "from -1 to -1 (mode I)"),
    ],
)
def test_numbers_of_which_none_is_white_are_refused(tmp_path, pixels, said):
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    message = f"x.tiff cannot be read: its pixels go {said}, and nothing says which number is white"
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path / "x.tiff")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "black.png")
    assert not read(tmp_path / "black.png")[0].any()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """A black line on nothing, in every way that a PNG can say nothing."""
    alpha = np.zeros((5, 5), np.uint8)
    alpha[2] = 255
    drawing = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    drawing.putalpha(Image.fromarray(alpha))
    if mode in ("RGB", "L"):  # a colour that is not shown
        Image.fromarray(255 - alpha).point(lambda v: 7 if v else 0).convert(mode).save(
            tmp_path / "x.png", transparency=(7, 7, 7) if mode == "RGB" else 7
        )
    else:
        drawing.convert(mode).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.mode == mode
    shown, _ = read(tmp_path / "x.png")
    assert (shown[2] == 0).all()
    assert (np.delete(shown, 2, axis=0) == 255).all()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "x.png")
    assert np.abs(read(tmp_path / "x.png")[0].astype(int) - 127).max() <= 1


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize(
    ("orientation", "size", "first"),
    [(1, (4, 6), "red"), (2, (4, 6), "blue"), (3, (4, 6), "blue"), (4, (4, 6), "red"), (5, (6, 4), "red"),
     (6, (6, 4), "red"), (7, (6, 4), "blue"), (8, (6, 4), "blue")],
)  # fmt: skip
def test_pictures_stand_as_the_camera_says(tmp_path, ending, orientation, size, first):
    """Upright in pixels and in the size that is told; the first pixel says which way."""
    shown, told = read(turned(tmp_path / f"x{ending}", orientation))
    assert shown.shape[:2] == told == size
    assert (shown[0, 0, 0] > shown[0, 0, 2]) == (first == "red")


def test_sizes_decode_no_pixels(tmp_path, monkeypatch):
    """Not even where the orientation is asked of a PNG."""
    halves().save(tmp_path / "plain.png")
    files = [turned(tmp_path / f"x{ending}", 6) for ending in (".jpg", ".png", ".webp", ".tiff")]
    loaded = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self) or real(self))
    shown = Pictures("7", [PictureFile(path) for path in [*files, tmp_path / "plain.png"]])
    assert shown.sizes() == [(6, 4)] * 4 + [(4, 6)]
    assert loaded == []


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_is_broken_turns_nothing(tmp_path, exif):
    halves().save(tmp_path / "x.jpg", exif=exif)
    assert read(tmp_path / "x.jpg")[1] == (4, 6)


def test_a_picture_with_too_many_pixels_says_which(tmp_path):
    """By its head alone: a PNG of four hundred million pixels, of which none is there."""
    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    halves().save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[16:29] = head
    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "x.png").write_bytes(data)
    shown = Pictures("7", [PictureFile(tmp_path / "x.png")])
    for look in (shown.sizes, lambda: shown[0]):
        with pytest.raises(
            ValueError, match=r"sample 7: the picture .*x.png is too large: it has more than 178 million"
        ):
            look()


def mine(folder):
    """task=vqa_folder."""
    (folder / "q.json").write_text(json.dumps([{"image": "a/x.jpg", "question": "q", "answer": "a"}]))
    return VQAFolder(str(folder / "q.json"))


def inside(folder):
    """task=vqa_folder, the bytes in a parquet file."""
    row = {"image": (folder / "a" / "x.jpg").read_bytes(), "question": "q", "answer": "a"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "q.parquet")
    return VQAFolder(str(folder / "q.parquet"))


def instruct(folder):
    """calibration=llava_instruct."""
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    (folder / "c.json").write_text(json.dumps([{"id": 1, "image": "x.jpg", "conversations": turns}]))
    return LlavaInstruct(str(folder), "c.json", "a")


def calibration(folder):
    """calibration=folder."""
    return PictureFolder(str(folder / "a"), "q")


def benchmark(folder):
    """task=mme."""
    (folder / "count").mkdir()
    (folder / "a" / "x.jpg").rename(folder / "count" / "x.jpg")
    (folder / "count" / "x.txt").write_text("q\tYes\n")
    return MME(str(folder))


@pytest.mark.parametrize("reader", [mine, inside, instruct, calibration, benchmark])
def test_every_reader_opens_pictures_alike(tmp_path, reader):
    (tmp_path / "a").mkdir()
    turned(tmp_path / "a" / "x.jpg", 6)
    (sample,) = reader(tmp_path).read()
    assert sample.images.sizes() == [(6, 4)]
    assert sample.images[0].size == (4, 6)
