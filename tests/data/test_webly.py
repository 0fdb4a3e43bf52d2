"""Clothing1M and mini-WebVision in their own formats, what is refused there, and training on them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import labelproof as lp
from labelproof.data import catalog, webly
from labelproof.data.images import ImageFiles
from labelproof.data.readers import read, write_table
from tests.data.webly_files import CLOTHES, clothing1m, jpeg, listing, pairs, webvision

pytestmark = pytest.mark.usefixtures("own_places")


def brightness(x: np.ndarray) -> list[int]:
    """The label that the generated photographs show."""
    return np.rint((x.mean((1, 2, 3)) - 10) / 17).astype(int).tolist()


@pytest.mark.parametrize("inside", ["", "annotations"])
@pytest.mark.parametrize("base", ["", "clothing1m", "Clothing1M"])
def test_clothing1m(folder, inside, base):
    made = clothing1m(folder / base, inside)
    train = catalog.load("clothing1m", data_dir=folder, image_size=16)
    assert train.ids.tolist() == list(made["noisy_train"])
    assert train.y.tolist() == list(made["noisy_train"].values())
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((28, 3, 16, 16), np.uint8, np.int64)
    assert brightness(train.x) == [i % 14 for i in range(28)]
    assert train.classes.tolist() == list(CLOTHES)
    assert (train.truth, train.name) == (None, "clothing1m")
    test = catalog.load("clothing1m", split="test", data_dir=folder, image_size=16)
    assert dict(zip(test.ids.tolist(), test.y.tolist(), strict=True)) == made["clean_test"]


def test_clothing1m_clean(folder):
    made = clothing1m(folder)
    data = read("clothing1m:clean", data_dir=folder, image_size=(10, 20))
    assert dict(zip(data.ids.tolist(), data.y.tolist(), strict=True)) == made["clean_train"]
    assert data.x.shape == (14, 3, 10, 20)
    test = catalog.load("clothing1m:clean", split="test", data_dir=folder, image_size=16)
    assert test.ids.tolist() == list(made["clean_test"])


def test_photographs_are_224_pixels_a_side_unless_asked(folder):
    clothing1m(folder, n=14)
    assert catalog.load("clothing1m", data_dir=folder).x.shape == (14, 3, 224, 224)


def test_photographs_beyond_memory_are_opened_as_they_are_used(folder, monkeypatch):
    made, opened = clothing1m(folder), []
    held = catalog.load("clothing1m", data_dir=folder, image_size=16)
    real = ImageFiles._open
    monkeypatch.setattr(ImageFiles, "_open", lambda self, index: opened.append(index) or real(self, index))
    data = read("clothing1m", data_dir=folder, image_size=16, max_bytes=28 * 3 * 256 - 1)
    assert isinstance(data.x, ImageFiles)
    assert opened == [0]
    copy = pickle.loads(pickle.dumps(data.x))
    np.testing.assert_array_equal(np.stack([copy[i] for i in range(28)]), held.x)
    assert copy.where(4) == str(folder / list(made["noisy_train"])[4])
    with pytest.raises(IndexError):
        copy[28]


def test_class_names_are_numbers_without_their_file(folder):
    clothing1m(folder, "")
    webvision(folder)
    for name in ("category_names_eng.txt", "info/synsets.txt"):
        (folder / name).unlink()
    assert catalog.load("clothing1m", data_dir=folder, image_size=8).classes.tolist() == list(range(14))
    assert catalog.load("webvision", data_dir=folder, image_size=8).classes.tolist() == list(range(50))


@pytest.mark.parametrize("images", ["val_images_256", "val_images"])
def test_mini_webvision_is_the_first_50_classes(folder, images):
    train, test = webvision(folder / "webvision", images)
    for split, labels in (("train", train), ("test", test)):
        kept = {key: k for key, k in labels.items() if k < 50}
        assert 0 < len(kept) < len(labels)
        data = catalog.load("webvision", split=split, data_dir=folder, image_size=16)
        assert dict(zip(data.ids.tolist(), data.y.tolist(), strict=True)) == kept
        assert brightness(data.x) == [k % 14 for k in kept.values()]
        assert data.classes.tolist() == [f"thing {i}, and so on" for i in range(50)]


def test_line_ends_of_windows_and_empty_lines_at_the_end_do_not_matter(folder):
    made = clothing1m(folder, "")
    listing(folder / "noisy_train_key_list.txt", [*made["noisy_train"], "", ""], "\r\n")
    listing(folder / "noisy_label_kv.txt", pairs(made["noisy_train"]), "\r\n")
    (folder / "category_names_eng.txt").write_text("\ufeff" + "\n".join(CLOTHES), encoding="utf-8")
    data = catalog.load("clothing1m", data_dir=folder, image_size=8)
    assert data.y.tolist() == list(made["noisy_train"].values())
    assert data.classes.tolist() == list(CLOTHES)


BROKEN = [
    ("noisy_train_key_list.txt", "", r"key_list.txt is empty: download it again"),
    ("noisy_train_key_list.txt", "A\nB\nA\n", r"key_list.txt, line 3: 'A' stands in a line before as well \(1 lines"),
    ("noisy_train_key_list.txt", "A\n\nB\n", r"key_list.txt, line 2: '' must be the path of an image and nothing"),
    ("noisy_train_key_list.txt", "A 3\nB 4\n", r"list.txt, line 1: 'A 3' must be the path .*\(2 of 2 lines are not\)"),
    (
        "noisy_train_key_list.txt",
        "A\nimages/0/0/other.jpg\n",
        r"key_list.txt, line 2: 'images/0/0/other.jpg' has no label in .*noisy_label_kv.txt \(1 of 2 .*take those",
    ),
    ("noisy_label_kv.txt", "A 3\nB\n", r"kv.txt, line 2: 'B' must be the path of an image, a space and a label"),
    ("noisy_label_kv.txt", "A 3\nB 4 5\n", r"kv.txt, line 2: 'B 4 5' must be .*\(1 of 2 lines are not\): correct it"),
    ("noisy_label_kv.txt", "A 3\nB four\n", r"kv.txt, line 2: 'B four' must be"),
    ("noisy_label_kv.txt", "A 3\nB 14\n", r"kv.txt, line 2: label 14 is not within 0 and 13: correct the line"),
    ("noisy_label_kv.txt", "A -1\nB 1\n", r"kv.txt, line 1: label -1 is not within 0 and 13"),
    ("noisy_label_kv.txt", "A 3\nB 1\nA 4\n", r"kv.txt, line 3: 'A' has another label than in a line before: keep"),
    ("noisy_label_kv.txt", "\x00\n", r"kv.txt, line 1: '.*' must be the path of an image"),
    ("category_names_eng.txt", "a\nb\n", r"names_eng.txt has 2 lines, 2 different .*must name 14 classes"),
    ("category_names_eng.txt", "a\n" * 14, r"names_eng.txt has 14 lines, 1 different .*called by their numbers"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN)
def test_broken_lists_are_named_with_the_line(folder, name, text, message):
    first, second = list(clothing1m(folder, "")["noisy_train"])[:2]
    put = {"A": first, "B": second}
    (folder / name).write_text("".join(put.get(c, c) for c in text) if name != "category_names_eng.txt" else text)
    for letter, key in put.items():
        message = message.replace(f"'{letter}", f"'{key}")
    with pytest.raises(ValueError, match=message):
        catalog.load("clothing1m", data_dir=folder, image_size=8)


def test_the_same_label_twice_does_no_harm(folder):
    made = clothing1m(folder, "")["noisy_train"]
    listing(folder / "noisy_label_kv.txt", pairs(made) * 2)
    assert catalog.load("clothing1m", data_dir=folder, image_size=8).y.tolist() == list(made.values())


def test_lists_that_are_no_text_are_refused(folder):
    clothing1m(folder, "")
    (folder / "noisy_label_kv.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"noisy_label_kv.txt is not text in UTF-8"):
        catalog.load("clothing1m", data_dir=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("google/q0001/a 1.jpg\n", r"train_filelist_google.txt, line 1: 'google/q0001/a 1.jpg' must be the path of an"),
        ("a.jpg 3\nb.jpg 1000\n", r"google.txt, line 2: label 1000 is not within 0 and 999"),
        ("a.jpg 3\na.jpg 4\n", r"google.txt, line 2: 'a.jpg' stands in a line before"),
        ("a.jpg 77\n", r"google.txt has no image of the first 50 classes"),
        ("", r"google.txt is empty"),
    ],
)
def test_broken_lists_of_webvision_are_named(folder, text, message):
    webvision(folder)
    (folder / "info" / "train_filelist_google.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        catalog.load("webvision", data_dir=folder)


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"clothing1m was not found in .*data.*ask its authors.*--data-dir"):
        catalog.load("clothing1m", data_dir=folder)
    with pytest.raises(FileNotFoundError, match=r"webvision was not found in .*get WebVision 1.0 .*val_images_256/"):
        catalog.load("webvision", data_dir=folder)
    clothing1m(folder, "annotations")
    (folder / "annotations" / "noisy_label_kv.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"noisy_label_kv.txt or .*annotations/noisy_label_kv.txt does not"):
        catalog.load("clothing1m", data_dir=folder)


@pytest.mark.parametrize("max_bytes", [0, 10**9])
def test_a_missing_image_is_named_with_its_line(folder, max_bytes):
    _, test = webvision(folder)
    kept = [(key, line) for line, (key, k) in enumerate(test.items(), 1) if k < 50]
    key, line = kept[-1]
    assert line > len(kept)  # lines of the file, not rows of the data
    (folder / "val_images_256" / key).unlink()

    def use() -> None:
        data = catalog.load("webvision", split="test", data_dir=folder, image_size=8, max_bytes=max_bytes)
        data.x[len(kept) - 1]

    with pytest.raises(FileNotFoundError, match=rf"{key} \(line {line} of .*val_filelist.txt\) does not exist: put it"):
        use()


def test_images_put_elsewhere_are_noticed_at_once(folder):
    clothing1m(folder)
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(FileNotFoundError, match=r"0,0.jpg \(line 1 of .*noisy_train_key_list.txt\) does not"):
        catalog.load("clothing1m", data_dir=folder, max_bytes=0)


def test_a_broken_image_is_named(folder):
    made = clothing1m(folder)
    key = list(made["noisy_train"])[5]
    (folder / key).write_bytes(b"<html>sold out</html>")
    with pytest.raises(ValueError, match=rf"cannot read image .*{key}: not an image, or a broken one"):
        catalog.load("clothing1m", data_dir=folder, image_size=8)


def test_other_named_sets_have_a_size_of_their_own():
    with pytest.raises(ValueError, match=r"image_size=8 means nothing for the named data set digits: leave.*webvision"):
        read("digits", image_size=8)


def test_available_says_where_they_are(folder):
    clothing1m(folder / "clothing1m")
    table = catalog.available(data_dir=folder).set_index("name")
    assert table.loc["clothing1m"].tolist() == [
        "photographs, web labels", 1_000_000, 10_526, 14, str(folder / "clothing1m")
    ]  # fmt: skip
    assert table.loc["clothing1m:clean", "train"] == 47_570
    assert table.loc["webvision", "where"].startswith("not found: unpack it into --data-dir")
    assert set(webly.NAMES) <= set(catalog.NAMES)


def test_a_copy_with_other_labels_points_at_the_photographs(folder, tmp_path):
    made = clothing1m(folder)["noisy_train"]
    data = read("clothing1m", data_dir=folder, image_size=16)
    noisy = data.relabelled((data.y + 1) % 14)
    out = write_table("clothing1m", noisy, tmp_path / "noisy.parquet", data_dir=folder)
    frame = pd.read_parquet(out)
    assert frame["image"].tolist() == [str((folder / key).resolve()) for key in made]
    again = read(out, image_size=16, truth="label_original")
    np.testing.assert_array_equal(again.x, data.x)
    assert again.ids.tolist() == list(made)
    assert again.classes[again.y].tolist() == [CLOTHES[(k + 1) % 14] for k in made.values()]
    assert again.classes[again.truth].tolist() == [CLOTHES[k] for k in made.values()]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labelproof", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(("name", "make"), [("clothing1m", clothing1m), ("webvision", webvision)])
def test_training_from_the_command_line(folder, tmp_path, name, make):
    make(folder)
    how = ("--network", "cnn", "--image-size", "16", "--epochs", "1", "--device", "cpu", "--out", tmp_path / "run")
    done = run("train", name, "--data-dir", folder, *how)
    assert done.returncode == 0, done.stderr
    issues = pd.read_csv(tmp_path / "run" / "issues.csv")
    assert set(issues["id"]) == set(catalog.load(name, data_dir=folder, image_size=16).ids)
    assert set(issues["given"]) <= {*CLOTHES, *(f"thing {i}, and so on" for i in range(50))}


def test_a_broken_list_on_the_command_line(folder, tmp_path):
    clothing1m(folder, "")
    listing(folder / "noisy_label_kv.txt", ["images/1.jpg"])
    done = run("train", "clothing1m", "--data-dir", folder, "--epochs", "1", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "noisy_label_kv.txt, line 1: 'images/1.jpg' must be the path of an image" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_training_from_python_streams_the_photographs(folder):
    made = clothing1m(folder)
    data = catalog.load("clothing1m", data_dir=folder, image_size=16, max_bytes=0)
    clf = lp.NoisyLabelClassifier(method="ce", network="cnn", epochs=2, batch_size=14, device="cpu")
    clf.fit(data.x, data.classes[data.y])
    assert len(clf.find_issues()) == len(made["noisy_train"])
    jpeg(folder / next(iter(made["clean_test"])), 0, 40)
    test = catalog.load("clothing1m", split="test", data_dir=folder, image_size=16, max_bytes=0)
    assert clf.predict_proba(test.x).shape == (14, len(np.unique(data.y)))
