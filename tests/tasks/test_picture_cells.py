"""What a text in the column of pictures is: a path, the picture itself, or an address; messages show little of it."""

import base64
import json
from io import BytesIO

import pytest
from PIL import Image

from btp.tasks.files.vqa_folder import VQAFolder
from btp.tasks.shown import short
from btp.tasks.vqa import VQA


@pytest.fixture
def encoded():
    """A picture of 9 x 7 pixels as base64 of its PNG."""
    buffer = BytesIO()
    Image.new("RGB", (9, 7), (200, 10, 30)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def read(folder, *cells, **more):
    """Samples of a table with these cells of pictures."""
    rows = [{"id": f"s{i}", "image": cell, "question": "q", "answer": "a", **more} for i, cell in enumerate(cells)]
    (folder / "q.json").write_text(json.dumps(rows))
    return VQA("mine", VQAFolder(str(folder / "q.json")), "exact", max_new_tokens=8)


def test_base64_is_read_in_every_way_of_writing_it(tmp_path, encoded):
    lines = "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    url_safe = encoded.replace("+", "-").replace("/", "_").rstrip("=")
    both = {"bytes": encoded, "path": "not there.png"}
    task = read(tmp_path, encoded, f"data:image/png;base64,{encoded}", lines, url_safe, both, [encoded, encoded])
    for i in range(len(task)):
        for picture in task[i].images:
            assert (picture.size, picture.getpixel((3, 3))) == ((9, 7), (200, 10, 30))
    assert len(task[5].images) == 2


def test_another_picture_in_the_table_is_another_content(tmp_path, encoded):
    first = read(tmp_path, encoded).content()
    assert read(tmp_path, encoded).content() == first
    assert read(tmp_path, encoded[:-8] + "AAAA" + encoded[-4:]).content() != first


def test_a_file_whose_name_looks_like_base64_is_a_file(tmp_path, encoded):
    name = "a" * 80
    Image.new("RGB", (5, 5)).save(tmp_path / name, "png")
    assert read(tmp_path, name)[0].images[0].size == (5, 5)
    (tmp_path / "b c.png").write_bytes((tmp_path / name).read_bytes())
    assert read(tmp_path, f"file://{tmp_path}/b%20c.png")[0].images[0].size == (5, 5)


@pytest.mark.parametrize("address", ["https://example.org/a.png?key=" + "x" * 3000, "s3://bucket/a.png", "HTTP://a/b"])
def test_an_address_is_refused_by_the_samples_name(tmp_path, address):
    with pytest.raises(ValueError, match=r"sample s1: its picture is the address .*nothing is downloaded") as error:
        read(tmp_path, None, address)
    assert len(str(error.value)) - len(str(tmp_path)) < 300


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("data:image/png;base64," + "!" * 5000, id="no base64"),
        pytest.param("pictures/" + "x" * 5000 + ".png", id="a long path"),
        pytest.param("QUJD" * 5000, id="base64 of something else"),
        pytest.param({"url": "x" * 5000}, id="an object"),
        pytest.param("a\0b.png", id="a name that no file has"),
    ],
)
def test_no_message_shows_more_than_200_characters_of_a_cell(tmp_path, cell):
    with pytest.raises(ValueError, match="sample s0") as error:
        read(tmp_path, cell)[0].images[0].load()
    said = str(error.value).replace(str(tmp_path), "")
    assert len(said) < 450
    assert not any(long in said for long in ("x" * 201, "!" * 201, "QUJD" * 51))


@pytest.mark.parametrize("name", ["id", "ability", "group"])
def test_long_texts_elsewhere_are_cut_too(tmp_path, name):
    with pytest.raises(ValueError, match="has no `answer`") as error:
        read(tmp_path, None, **{name: "long " * 1000, "answer": ""})
    assert len(str(error.value)) - len(str(tmp_path)) < 400


def test_half_a_character_is_refused_with_its_sample(tmp_path):
    with pytest.raises(ValueError, match=r"sample s0: a text of it holds .*half of a character"):
        read(tmp_path, None, ability="\ud83d")


def test_short():
    assert short("a  b\nc") == "a b c"
    assert short("x" * 500, 60) == "x" * 28 + "..." + "x" * 28
