"""Rows are split once: stratified, by their names, never the same text on both sides."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.formats.cifar_files import TEN, binary_ten, python_ten
from tests.formats.cifar_files import pictures as random_pictures
from tests.formats.test_idx import mnist
from tests.formats.test_off import modelnet

from haversack.core.errors import DamagedFileError, UserError
from haversack.train._examples import is_labelled, match_classes, read_examples, split, tokens_of
from haversack.train._network import Features, Pictures, Tokens

Image = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install haversack[vision])")


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def pictures(folder: Path, classes: dict[str, int], size: int = 8) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shade = np.full((size, size, 3), 20 * number % 255, np.uint8)
            Image.fromarray(shade).save(folder / name / f"{number}.png")
    return folder


@given(
    st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3)), min_size=1, max_size=60), st.integers(0, 5)
)
def test_a_split_is_stratified_and_keeps_equal_rows_together(rows: list[tuple[int, str]], seed: int) -> None:
    labels, keys = np.array([label for label, _ in rows]), [key for _, key in rows]
    learned, held_out = split(labels, keys, seed)
    assert sorted([*learned, *held_out]) == list(range(len(rows)))
    assert not {keys[row] for row in learned} & {keys[row] for row in held_out}


def test_every_class_gives_a_fifth() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 2])
    keys = [f"{label} {row}" for row, label in enumerate(labels)]
    _, held_out = split(labels, keys, 0)
    assert np.bincount(labels[held_out]).tolist() == [10, 2, 1]


def test_the_split_follows_names_not_order() -> None:
    labels, keys = np.zeros(40, int), [f"row {number}" for number in range(40)]
    _, one = split(labels, keys, 0)
    order = np.random.default_rng(0).permutation(40)
    _, other = split(labels, [keys[row] for row in order], 0)
    assert {keys[row] for row in one} == {keys[order[row]] for row in other}
    assert set(one) != set(split(labels, keys, 1)[1])


def test_pictures_of_parts_keep_them(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"cat": 4, "dog": 3})
    pictures(tmp_path / "test", {"cat": 2, "dog": 2})
    found = read_examples(tmp_path, Pictures(8, 8))
    assert found.classes == ("cat", "dog") and len(found.learned) == 7 and len(found.held_out) == 4
    assert {found.keys[row].partition("/")[0] for row in found.held_out} == {"test"}
    batch = found.batch(found.learned[:3])
    assert batch.inputs.shape == (3, 8, 8, 3) and batch.inputs.dtype == np.uint8
    inner = found.validation(0)
    assert set(inner.held_out) < set(found.learned) and not set(inner.learned) & set(inner.held_out)


def test_a_broken_picture_is_named_and_left_out_only_if_asked(tmp_path: Path) -> None:
    pictures(tmp_path, {"cat": 6, "dog": 6}, 64)
    broken = tmp_path / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(DamagedFileError, match=r"dog/3\.png .*--skip-broken"):
        read_examples(tmp_path, Pictures(8, 8))
    found = read_examples(tmp_path, Pictures(8, 8), skip_broken=True)
    assert len(found.labels) == 11 and found.left_out[0][0] == str(broken)
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="every picture of the class dog is broken"):
        read_examples(tmp_path, Pictures(8, 8), skip_broken=True)


def test_labels_beyond_the_head_are_named(tmp_path: Path) -> None:
    found = read_examples(pictures(tmp_path, {"cat": 4, "emu": 4}), Pictures(8, 8))
    with pytest.raises(
        UserError, match="the label emu is beyond the head of net, whose classes are cat, dog"
    ):
        match_classes(found, ("cat", "dog"), "net")
    matched = match_classes(found, ("dog", "emu", "cat"), "net")
    assert [matched.classes[label] for label in matched.labels] == [found.classes[k] for k in found.labels]


def test_data_of_another_form_and_of_one_class_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(UserError, match="takes a folder of pictures"):
        read_examples(table, Pictures(8, 8))
    with pytest.raises(UserError, match="takes a table of texts"):
        read_examples(pictures(tmp_path / "p", {"a": 2, "b": 2}), Tokens(4, Letters()))
    with pytest.raises(UserError, match="takes measured values"):
        read_examples(tmp_path / "p", Features((3,)))
    with pytest.raises(UserError, match="single class"):
        read_examples(pictures(tmp_path / "one", {"a": 4}), Pictures(8, 8))
    table.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(UserError, match="nothing to judge by"):
        read_examples(table, Tokens(4, Letters()))


def test_texts_become_rows_of_tokens(tmp_path: Path) -> None:
    assert tokens_of(["ab", "abcdef"], Tokens(4, Letters())).tolist() == [[97, 98, -1, -1], [97, 98, 99, 100]]
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"{'ab'[n % 2] * (n + 1)},{n % 2}\n" for n in range(10)))
    found = read_examples(table, Tokens(4, Letters()))
    assert found.classes == ("0", "1") and len(found.held_out) == 2
    assert found.mark != read_examples(table, Tokens(4, Letters()), seed=3).mark


def test_kinds_of_data_are_told_apart(tmp_path: Path) -> None:
    assert is_labelled([tmp_path]) and is_labelled([Path("a.csv")]) and is_labelled([Path("cifar-10")])
    assert not is_labelled([Path("a.txt"), Path("b.py")])
    with pytest.raises(UserError, match="several --data"):
        is_labelled([Path("a.csv"), Path("b.csv")])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("write", [binary_ten, python_ten])
@pytest.mark.parametrize("packed", [False, True])
def test_cifars_own_files_are_pictures(write: object, packed: bool, tmp_path: Path, cache: None) -> None:
    values, held = random_pictures(20), random_pictures(10, 1)
    batches = {"data_batch_1": (values, [n % 10 for n in range(20)]), "test_batch": (held, list(range(10)))}
    folder = write(tmp_path / "in" / "cifar-10-batches", batches)  # type: ignore[operator]
    place = folder
    if packed:
        place = tmp_path / "cifar-10.tar.gz"
        with tarfile.open(place, "w:gz") as archive:
            archive.add(folder, folder.name)
    assert is_labelled([place])
    found = read_examples(place, Pictures(32, 32))
    assert found.classes == TEN and found.held_out.tolist() == list(range(20, 30))
    batch = found.batch(np.array([3, 25]))
    assert np.array_equal(batch.inputs, np.moveaxis(np.stack([values[3], held[5]]), 1, 3))
    assert batch.labels.tolist() == [3, 5]
    assert read_examples(place, Pictures(48, 48, 1)).batch(found.learned[:2]).inputs.shape == (2, 48, 48, 1)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnists_own_files_are_grey_pictures(zipped: bool, tmp_path: Path, cache: None) -> None:
    values = mnist(tmp_path, "train", [n % 3 for n in range(30)], zipped)
    found = read_examples(tmp_path, Pictures(28, 28, 1))
    assert found.classes == ("0", "1", "2") and len(found.held_out) == 6
    assert np.array_equal(found.batch(found.learned).inputs[..., 0], values[found.learned])
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if zipped else ''}"
    assert is_labelled([path]) and read_examples(path, Pictures(32, 32)).read(np.array([0])).shape == (
        1,
        32,
        32,
        3,
    )
    mnist(tmp_path, "t10k", [2, 1], zipped)
    assert read_examples(tmp_path, Pictures(28, 28, 1)).held_out.tolist() == [30, 31]


def test_meshes_are_clouds_of_points(tmp_path: Path, cache: None) -> None:
    root = modelnet(tmp_path / "ModelNet10")
    found = read_examples(root, Features((16, 3)))
    assert found.classes == ("chair", "sofa") and found.batch(found.held_out).inputs.shape == (2, 16, 3)
    broken = root / "sofa" / "test" / "sofa_0002.off"
    broken.write_text("OFF")
    with pytest.raises(DamagedFileError, match="sofa_0002"):
        read_examples(root, Features((16, 3)))
    left = read_examples(root, Features((16, 3)), skip_broken=True)
    assert left.left_out[0][0] == str(broken) and len(left.labels) == 5
    with pytest.raises(UserError, match="takes a folder of meshes"):
        read_examples(pictures(tmp_path / "p", {"a": 2, "b": 2}), Features((16, 3)))
    with pytest.raises(UserError, match=r"class chair of .* has no pictures"):
        read_examples(root, Pictures(8, 8))
