"""CelebA's tables and folders in all their variants."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgtool.data.celeba import CelebA, resize_squares
from imgtool.data.celeba_tables import parse_table, read_attributes, read_partition, read_table
from imgtool.data.pyramid import unpack
from imgtool.errors import DataError, UsageError

NAMES = [f"{number:06d}.jpg" for number in range(1, 7)]
LABELS = [1, -1, 1, -1, -1, 1]
HEAD = "Bangs Smiling Young"


def attribute_lines(gap: str = " ") -> list[str]:
    return [f"{name}{gap}-1{gap}{label}{gap}1" for name, label in zip(NAMES, LABELS, strict=True)]


def txt(gap: str = " ") -> str:
    return "\n".join([str(len(NAMES)), HEAD, *attribute_lines(gap)]) + "\n"


def csv_text() -> str:
    lines = ["image_id," + HEAD.replace(" ", ","), *attribute_lines(",")]
    return "\r\n".join(lines) + "\r\n"


def numbered(text: str, comma: str, name: str = "") -> str:
    """The table as pandas writes it, with a column that counts the rows."""
    head, *rows = text.splitlines()
    return "\n".join([name + comma + head, *(f"{i}{comma}{row}" for i, row in enumerate(rows))])


@pytest.fixture
def make_celeba(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Callable[..., Path]:
    def make(folder: str = "img_align_celeba", names: list[str] = NAMES, name: str = "a") -> Path:
        root = tmp_path / name
        (root / folder).mkdir(parents=True)
        for number, image in enumerate(names):
            Image.fromarray(noise(number, 218, 178)).save(root / folder / image, quality=90)
        (root / "list_attr_celeba.txt").write_text(txt())
        return root

    return make


def opened(root: Path, attribute: str = "Smiling", **options: object) -> CelebA:
    return CelebA(root, attribute, image_sizes=(64, 32), **options)


# --- tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        txt(),
        txt("   "),
        txt("  ").replace("6\n", "", 1),
        txt().replace(HEAD, f"image_id {HEAD}"),
        "\ufeff" + csv_text(),
        csv_text().replace("image_id,", '"image_id",'),
        txt().replace("\n", "\r\n"),
        "\n" + txt() + "\n\n",
        txt().replace(" -1", " 0"),
        csv_text().replace(",", ";"),
        csv_text().replace(",", " | "),
        csv_text().replace(",1", ",True").replace(",-1", ",False"),
        csv_text().replace(",1", ",1.0").replace(",-1", ",-1.00"),
        csv_text().replace(",", ";").replace("-1", "-1,0"),
        csv_text().replace(",", "\t"),
        numbered(csv_text(), ","),
        numbered(csv_text(), ",", "Unnamed: 0"),
        numbered(csv_text().replace(",", ";"), ";"),
        numbered(csv_text().replace(",", " "), " ", '""'),
        "\n".join(numbered(csv_text().replace(",", " "), " ").split(" image_id ")).lstrip(),
    ],
)
def test_every_variant_of_the_attribute_table_says_the_same(tmp_path, text):
    path = tmp_path / "table"
    path.write_bytes(text.encode())
    names, labels = read_attributes(path, "Smiling")
    assert names == NAMES
    assert labels.tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("\n \n", "the table is empty"),
        ("6\n" + HEAD + "\n", "lists no images"),
        (txt().replace("6\n", "7\n", 1), "promises 7 rows, and it has 6"),
        (txt().replace("000003.jpg -1", "000003.jpg"), "line 5: 3 columns, and 4 above"),
        (txt() + "000007.jpg", "line 9: 1 column, and 4 above"),
        (txt().replace("000003.jpg", "000002.jpg"), "line 5: 000002.jpg is listed twice"),
        (txt().replace("000002.jpg -1", "000002.jpg yes"), "line 4: not all its values"),
        (txt().replace("000002.jpg -1 -1", "000002.jpg -1 5"), "Smiling of 000002.jpg is 5"),
        (txt().replace(HEAD, "Smiling Young"), "2 column names for 3 columns"),
        (txt().replace(HEAD, "Young Smiling Young"), "two columns are named Young"),
        ("\n".join(attribute_lines()), "no line of column names"),
        (txt().replace("000002.jpg -1", "000002.jpg nan"), "a value of 000002.jpg is no finite"),
        (txt().replace(" ", ":"), "line 3: one column, and no values"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_attributes(path, "Smiling")
    assert str(path) in str(error.value)


def test_what_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "table.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(DataError, match="not a text file"):
        read_table(path)
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.txt")


word = st.text("abcdefghijklmnopqrstuvwxyzABC_0123456789", min_size=1, max_size=12).filter(
    lambda text: not re.fullmatch(r"[0-9_]+(e[0-9_]+)?", text)  # would be one of the values
)


@settings(max_examples=60)
@given(
    names=st.lists(word, min_size=1, max_size=8, unique=True),
    columns=st.lists(word, min_size=2, max_size=6, unique=True),
    kind=st.sampled_from(["txt", "csv", "counted"]),
    data=st.data(),
)
def test_any_table_is_read_back(names, columns, kind, data):
    number = st.integers(-(2**31), 2**31)
    values = [[data.draw(number) for _ in columns] for _ in names]
    comma = "," if kind == "csv" else " " * data.draw(st.integers(1, 4))
    head = (["image_id"] if kind == "csv" else []) + columns
    lines = [comma.join(head)]
    lines += [comma.join([name, *map(str, row)]) for name, row in zip(names, values, strict=True)]
    if kind == "counted":
        lines.insert(0, str(len(names)))
    table = parse_table("\n".join(lines), Path("table"))
    assert table.columns == tuple(columns)
    assert table.names == names
    assert table.values.tolist() == values


@settings(max_examples=150)
@given(st.text("01-,;|ab \n\"'\t\u00e9.", max_size=80))
def test_any_text_is_a_table_or_a_clear_error(text):
    try:
        table = parse_table(text, Path("table"))
    except DataError as error:
        said = str(error)
    else:
        said = f"table {table.path}"
        assert table.values.shape == (len(table.names), len(table.columns))
    assert said.startswith("table")


def test_parts_are_read_with_and_without_a_line_of_names(tmp_path):
    for name, text in {
        "a.txt": "a.jpg 0\nb.jpg 1\nc.jpg 2\n",
        "a.csv": "image_id,partition\na.jpg,0\nb.jpg,1\nc.jpg,2\n",
        "b.csv": ",image_id,partition\n0,a.jpg,0\n1,b.jpg,1\n2,c.jpg,2\n",
        "c.csv": "0;a.jpg;0\n1;b.jpg;1\n2;c.jpg;2\n",
        "d.csv": ",image_id,partition\n0,1,0.0\n",
    }.items():
        (tmp_path / name).write_text(text)
        wanted = {"1": 0} if name == "d.csv" else {"a.jpg": 0, "b.jpg": 1, "c.jpg": 2}
        assert read_partition(tmp_path / name) == wanted
    (tmp_path / "bad.txt").write_text("a.jpg 3\n")
    with pytest.raises(DataError, match="not a table of parts"):
        read_partition(tmp_path / "bad.txt")


# --- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["align_5p", "img_align_celeba", "img_align_celeba/img_align_celeba", "data", "."]
)
def test_every_layout_is_found_and_is_the_same_data(make_celeba, folder):
    faces = opened(make_celeba(folder))
    assert [faces.name(i) for i in range(len(faces))] == NAMES
    assert faces.positives.tolist() == [0, 2, 5]
    assert faces.negatives.tolist() == [1, 3, 4]
    assert faces.positives.dtype == np.int64
    assert faces.fingerprint == opened(make_celeba(name="elsewhere")).fingerprint
    assert faces.label_names == ("without Smiling", "with Smiling")
    assert faces.targets == {"label"}
    assert not faces.missing


def test_aligned_images_come_first(make_celeba):
    root = make_celeba()
    shutil.copytree(root / "img_align_celeba", root / "align_5p")
    assert opened(root).folder == root / "align_5p"


def test_the_table_may_lie_beside_in_anno_above_or_be_named(make_celeba):
    root = make_celeba()
    here = root / "list_attr_celeba.txt"
    fingerprint = opened(root).fingerprint
    for folder in ("Anno", "."):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "list_attr_celeba.csv").write_text(csv_text())
        here.unlink(missing_ok=True)
        assert opened(root).fingerprint == fingerprint
        (root / folder / "list_attr_celeba.csv").unlink()
    (root / "mine.txt").write_text(txt("  "))
    assert opened(root, attribute_file=root / "mine.txt").fingerprint == fingerprint
    (root / "mine.txt").rename(here)
    assert opened(root / "img_align_celeba").fingerprint == fingerprint


def test_an_unknown_attribute_is_named_with_a_guess_and_the_list(make_celeba):
    with pytest.raises(UsageError, match="^no attribute 'Smilng'$") as error:
        opened(make_celeba(), "Smilng")
    assert "did you mean 'Smiling'?" in error.value.hint
    assert "Bangs, Smiling, Young" in error.value.hint


def test_a_missing_table_lists_what_was_looked_for(make_celeba):
    root = make_celeba()
    (root / "list_attr_celeba.txt").unlink()
    with pytest.raises(DataError, match="no table of attributes") as error:
        opened(root)
    assert "list_attr_celeba.txt, list_attr_celeba.csv" in error.value.hint
    with pytest.raises(DataError, match="no such file"):
        opened(root, attribute_file=root / "none.csv")
    with pytest.raises(DataError, match="no such folder"):
        opened(root / "none")


def test_missing_images_are_counted_and_named(make_celeba):
    root = make_celeba(names=NAMES[1:])
    faces = opened(root)
    assert faces.missing == NAMES[:1]
    assert len(faces) == 5
    assert faces.fingerprint != opened(make_celeba(name="whole")).fingerprint


def test_too_many_missing_images_are_an_error(make_celeba):
    with pytest.raises(DataError, match="more than half of the 6 images .*4; the first is 000001"):
        opened(make_celeba(names=NAMES[4:]))
    with pytest.raises(DataError, match="all of the 6 images"):
        opened(make_celeba(names=["other.jpg"], name="b"))


def test_listed_as_jpg_and_there_as_png_is_the_same_image(make_celeba):
    faces = opened(make_celeba(names=[name.replace("jpg", "png") for name in NAMES]))
    assert faces.name(0) == "000001.jpg"
    assert faces.path(0).endswith("000001.png")
    assert faces.read(0).image.shape == (64 * 64 + 32 * 32, 1, 3)


def test_the_official_parts_can_be_asked_for(make_celeba):
    root = make_celeba()
    with pytest.raises(DataError, match="no table of CelebA's own parts"):
        opened(root).partition()
    lines = [f"{name} {number // 2}" for number, name in enumerate(NAMES)]
    (root / "list_eval_partition.txt").write_text("\n".join(lines))
    assert opened(root).partition() == {name: number // 2 for number, name in enumerate(NAMES)}
    assert opened(root).without_part() == []
    (root / "list_eval_partition.txt").write_text("\n".join(lines[:5]))
    assert opened(root).without_part() == NAMES[5:]


def test_names_that_point_out_of_the_folder_are_only_missing(make_celeba):
    root = make_celeba()
    table = root / "list_attr_celeba.txt"
    table.write_text(txt().replace("000001.jpg", "../../x.jpg"))
    assert opened(root).missing == ["../../x.jpg"]


# --- reading --------------------------------------------------------------------------------


def test_one_decode_gives_every_size_within_a_grey_level_of_pillows(make_celeba):
    faces = CelebA(make_celeba(), "Smiling", image_sizes=(64, 96, 128))
    sample = faces.read(2)
    assert (sample.label, sample.name) == (1, "000003.jpg")
    assert sample.image.shape == (*faces.size(2), 3) == (64**2 + 96**2 + 128**2, 1, 3)
    image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
    with Image.open(faces.path(2)) as source:
        for side, square in unpack(image, (64, 96, 128)).items():
            wanted = np.asarray(source.resize((side, side), Image.Resampling.BILINEAR), int)
            difference = abs(square[0].permute(1, 2, 0).numpy() - wanted)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.05


def test_an_image_of_the_very_size_is_left_as_it_is(noise):
    image = noise(0, 48, 48)
    assert (resize_squares(image, (48,)).reshape(48, 48, 3) == image).all()


def test_odd_images_are_read_too(make_celeba, noise):
    root = make_celeba()
    folder = root / "img_align_celeba"
    Image.fromarray(noise(0, 50, 70)).convert("L").save(folder / NAMES[0])
    Image.fromarray(noise(1, 1, 1)).save(folder / NAMES[1])
    faces = opened(root)
    grey = faces.read(0).image
    assert (grey[..., 0] == grey[..., 1]).all()
    assert len(np.unique(faces.read(1).image, axis=0)) == 1


def test_a_damaged_image_is_named_when_it_is_read_and_can_be_left_out(make_celeba):
    root = make_celeba()
    victim = root / "img_align_celeba" / NAMES[3]
    victim.write_bytes(victim.read_bytes()[:2000])
    faces = opened(root)
    with pytest.raises(DataError, match=r"000004\.jpg: damaged") as error:
        faces.read(3)
    assert "--skip-bad" in error.value.hint
    rest = opened(root, skip_bad=True)
    assert rest.bad_files == [NAMES[3]]
    assert len(rest) == 5
    assert rest.negatives.tolist() == [1, 3]
    assert rest.name(3) == NAMES[4]
    assert rest.read(3).label == 0
