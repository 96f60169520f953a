"""A model with a fixed batch takes single samples and stacks of any height, every row once, in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Array, examples, load, proto
from PIL import Image

import precisionlab
from precisionlab.cli import cli
from precisionlab.data import MANIFEST, Dataset, open_dataset
from precisionlab.errors import DataError
from precisionlab.model import Model

FOUR = "(float[4,3] x) => (float[4,3] y) { y = Relu(x) }"
TWO_INPUTS = "(float[4,3] x, int64[4] n) => (float[4,3] y, int64[4] m) { y = Relu(x) m = Abs(n) }"


@pytest.fixture
def four(tmp_path: Path) -> Model:
    return load(proto(FOUR), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def rows(count: int, start: int = 0) -> Array:
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(3, np.float32)


def first_column(dataset: Dataset, name: str = "x") -> list[list[float]]:
    return [sample.inputs[name].reshape(4, -1)[:, 0].tolist() for sample in dataset]


def notes(dataset: Dataset) -> list[str]:
    look = dataset.checked().look
    assert look is not None
    return [finding.text for finding in look.findings]


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_single_samples_are_grouped_in_the_order_of_their_names(
    folder: Path, four: Model, shape: tuple[int, ...]
) -> None:
    for index in range(10):
        np.save(folder / f"s{index:03}.npy", np.full(shape, index, np.float32))
    dataset = open_dataset(folder, four, None, 0)
    assert dataset.names == ("s000.npy…s003.npy", "s004.npy…s007.npy")
    assert first_column(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "2 rows at the end left out: no batch of 4" in notes(dataset)


@pytest.mark.parametrize(("count", "left"), [(16, 0), (18, 2), (8, 0), (5, 1), (7, 3)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_stack_is_cut_into_batches(folder: Path, four: Model, count: int, left: int, suffix: str) -> None:
    if suffix == "npy":
        np.save(folder / "calib.npy", rows(count))
    else:
        np.savez_compressed(folder / "calib.npz", x=rows(count))
    dataset = open_dataset(folder, four, None, 0)
    assert dataset.names == tuple(f"calib.{suffix}[{i}:{i + 4}]" for i in range(0, count - left, 4))
    assert first_column(dataset) == [[i, i + 1, i + 2, i + 3] for i in range(0, count - left, 4)]
    told = [text for text in notes(dataset) if "left out" in text]
    assert told == ([f"{left} row{'s' if left > 1 else ''} at the end left out: no batch of 4"] if left else [])


def test_a_file_with_just_a_batch_is_one_sample_as_ever(folder: Path, four: Model) -> None:
    np.save(folder / "a.npy", rows(4))
    np.save(folder / "b.npy", rows(1, 10))
    np.save(folder / "c.npy", rows(4, 20))
    np.save(folder / "d.npy", rows(3, 11))
    dataset = open_dataset(folder, four, None, 0)
    assert dataset.names == ("a.npy", "c.npy", "b.npy…d.npy[2]")
    assert first_column(dataset) == [[0, 1, 2, 3], [20, 21, 22, 23], [10, 11, 12, 13]]


@given(
    heights=st.lists(st.integers(1, 9), min_size=1, max_size=6), batch=st.integers(2, 5), kinds=st.lists(st.booleans())
)
@settings(max_examples=examples(40))
def test_batches_cover_each_row_once_and_in_order(
    heights: list[int], batch: int, kinds: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files that are a batch already stand by themselves; all other rows follow one another."""
    path = tmp_path_factory.mktemp("batches")
    (path / "data").mkdir()
    of = load(proto(f"(float[{batch},3] x) => (float[{batch},3] y) {{ y = Relu(x) }}"), path)
    start, loose, whole = 0, [], []
    for index, height in enumerate(heights):
        value = rows(height, start)
        if index < len(kinds) and kinds[index]:
            np.savez(path / f"data/{index}.npz", x=value)
        else:
            np.save(path / f"data/{index}.npy", value)
        (whole if height == batch else loose).extend(range(start, start + height))
        start += height
    kept = len(loose) - len(loose) % batch
    if not kept and not whole:
        with pytest.raises(DataError, match=f"{len(loose)} of the {batch} rows"):
            open_dataset(path / "data", of, None, 0)
        return
    dataset = open_dataset(path / "data", of, None, 0)
    found = [sample.inputs["x"][:, 0].astype(int).tolist() for sample in dataset]
    assert [row for one in found if one[0] in loose for row in one] == loose[:kept]
    assert [row for one in found if one[0] in whole for row in one] == whole
    assert len(set(dataset.names)) == len(found)


def test_too_few_rows_are_told(folder: Path, four: Model) -> None:
    np.save(folder / "a.npy", rows(3))
    with pytest.raises(DataError, match="3 of the 4 rows"):
        open_dataset(folder, four, None, 0)
    np.save(folder / "b.npy", rows(1))
    assert open_dataset(folder, four, None, 0).names == ("a.npy[0]…b.npy",)


def test_images_and_several_inputs_are_grouped_too(folder: Path, tmp_path: Path) -> None:
    images = load(proto("(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Relu(x) }"), tmp_path)
    for level in (51, 102):
        Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(folder / f"{level:03}.png")
    (found,) = open_dataset(folder, images, None, 0)
    assert found.name == "051.png…102.png"
    assert found.inputs["x"][:, 0, 0, 0] == pytest.approx([0.2, 0.4])
    for file in folder.iterdir():
        file.unlink()
    for index in range(4):
        np.savez(folder / f"{index}.npz", x=np.full(3, index, np.float32), n=np.int64([index]))
    (found,) = open_dataset(folder, load(proto(TWO_INPUTS), tmp_path), None, 0)
    assert (found.inputs["x"][:, 0].tolist(), found.inputs["n"].tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
    np.savez(folder / "0.npz", x=rows(4), n=np.arange(4))
    np.savez(folder / "1.npz", x=rows(8), n=np.arange(8))
    names = open_dataset(folder, load(proto(TWO_INPUTS), tmp_path), None, 0).names
    assert names == ("0.npz", "1.npz[0:4]", "1.npz[4:8]")


def test_rows_of_different_lengths_make_no_batch(folder: Path, tmp_path: Path) -> None:
    of = load(proto("(float[2,L] x) => (float[2,L] y) { y = Relu(x) }"), tmp_path)
    np.save(folder / "a.npy", np.zeros((1, 5), np.float32))
    np.save(folder / "b.npy", np.zeros((1, 7), np.float32))
    with pytest.raises(DataError, match=r"a\.npy…b\.npy: input 'x' has shape 1×5 in a\.npy and 1×7 in b\.npy.*pad"):
        list(open_dataset(folder, of, None, 0))
    np.save(folder / "b.npy", np.zeros((1, 5), np.float32))
    (found,) = open_dataset(folder, of, None, 0)
    assert found.inputs["x"].shape == (2, 5)


def test_what_is_wrong_with_a_row_names_its_file(folder: Path, four: Model) -> None:
    for index in range(8):
        np.save(folder / f"{index}.npy", rows(1, index))
    np.save(folder / "2.npy", np.float32([[1, np.nan, 2]]))
    dataset = open_dataset(folder, four, None, 0)
    with pytest.raises(DataError, match=r"2\.npy: input 'x' holds 1 value"):
        dataset.checked()
    good = dataset.checked(skip_bad=True)
    assert good.names == ("4.npy…7.npy",)
    assert [bad.name for bad in good.skipped] == ["0.npy…3.npy"]


def test_the_hash_covers_every_row(folder: Path, four: Model) -> None:
    for index in range(4):
        np.save(folder / f"{index}.npy", rows(1, index))
    before = open_dataset(folder, four, None, 0).sha256
    np.save(folder / "2.npy", rows(1, 9))
    assert open_dataset(folder, four, None, 0).sha256 != before


# Labels


def labelled(folder: Path, names: list[str]) -> None:
    (folder / MANIFEST).write_text('[labels]\nfile = "labels.csv"\nmetric = "accuracy"\n')
    lines = [f"{name},{index % 3}" for index, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["sample,label", *lines]))


def test_labels_of_rows_are_those_of_their_batches(folder: Path, four: Model) -> None:
    np.save(folder / "a.npy", rows(5))
    for name in "bcd":
        np.save(folder / f"{name}.npy", rows(1))
    labelled(folder, [*(f"a.npy[{i}]" for i in range(5)), "b.npy", "c.npy", "d.npy"])
    dataset = open_dataset(folder, four, None, 0)
    assert {s.name: s.label for s in dataset} == {"a.npy[0:4]": "[0, 1, 2, 0]", "a.npy[4]…d.npy": "[1, 2, 0, 1]"}
    assert dataset.is_labelled
    labelled(folder, [f"a.npy[{i}]" for i in range(4)])
    dataset = open_dataset(folder, four, None, 0)
    assert [s.label for s in dataset] == ["[0, 1, 2, 0]", None]
    assert not dataset.is_labelled


def test_labels_that_are_no_numbers_stay_text(folder: Path, four: Model) -> None:
    for name in ("0", "1", "2", "3"):
        np.save(folder / f"{name}.npy", rows(1))
    (folder / "samples.csv").write_text('path,label\n0.npy,cat\n1.npy,"[1, 2]"\n2.npy,007\n3.npy,3\n')
    (found,) = open_dataset(folder, four, None, 0)
    assert found.label == '["cat", [1, 2], "007", 3]'


SORTED = "(float[B,3] x) => (float[B,3] y) { y = Identity(x) }"


@pytest.mark.slow
def test_accuracy_and_the_split_are_the_same_as_those_of_single_rows(folder: Path, tmp_path: Path) -> None:
    """160 rows in batches of 4, and the same with a batch of 1: the same rows are right."""
    generator = np.random.default_rng(0)
    value = generator.standard_normal((160, 3)).astype(np.float32)
    labels = generator.integers(0, 3, 160)
    right = float(np.mean(value.argmax(1) == labels))
    np.save(folder / "calib.npy", value)
    (folder / MANIFEST).write_text('[labels]\nfile = "labels.csv"\nmetric = "accuracy"\n')
    lines = [f"calib.npy[{index}],{label}" for index, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["sample,label", *lines]))
    found = []
    for batch in (1, 4):
        of = load(proto(SORTED.replace("B", str(batch))), tmp_path)
        result = precisionlab.sweep(
            of.path, folder, precisions="fp16", out=tmp_path / f"out{batch}", holdout=0, backend="onnxruntime"
        )
        found.append(float(result.variants["metric"].iloc[0]))
    assert found == [pytest.approx(right), pytest.approx(right)]


# Hooks

HOOK = """
import numpy as np
def rows(n, start): return np.arange(start, start + n, dtype=np.float32)[:, None] * np.ones(3, np.float32)
def batches():
    start = 0
    for height in {heights}:
        yield {{"x": rows(height, start)}}, list(range(start, start + height)) if height > 1 else start
        start += height
"""


def hook(folder: Path, heights: list[int]) -> str:
    file = folder / f"hook{len(list(folder.glob('hook*')))}.py"
    file.write_text(HOOK.format(heights=heights))
    return f"{file}:batches"


@pytest.mark.parametrize(
    ("heights", "names", "labels"),
    [
        ([1] * 9, ["batches[0]…batches[3]", "batches[4]…batches[7]"], ["[0, 1, 2, 3]", "[4, 5, 6, 7]"]),
        ([8, 2], ["batches[0][0:4]", "batches[0][4:8]"], ["[0, 1, 2, 3]", "[4, 5, 6, 7]"]),
        ([4, 4], ["batches[0]", "batches[1]"], ["[0, 1, 2, 3]", "[4, 5, 6, 7]"]),
        ([3, 3, 2], ["batches[0][0]…batches[1][0]", "batches[1][1]…batches[2][1]"], ["[0, 1, 2, 3]", "[4, 5, 6, 7]"]),
    ],
)
def test_a_hook_may_give_rows_or_batches_of_any_height(
    tmp_path: Path, four: Model, heights: list[int], names: list[str], labels: list[str]
) -> None:
    dataset = open_dataset(hook(tmp_path, heights), four, None, 0)
    found = list(dataset)
    assert [sample.name for sample in found] == names
    assert [sample.label for sample in found] == labels
    assert first_column(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    left = sum(heights) - 8
    assert [text for text in notes(dataset) if "left out" in text] == (
        [f"{names[-1]}: {left} row{'s' if left > 1 else ''} at the end left out: no batch of 4"] if left else []
    )
    assert open_dataset(hook(tmp_path, heights), four, 1, 0).size == 1


def test_a_hook_with_too_few_rows_is_told(tmp_path: Path, four: Model) -> None:
    with pytest.raises(DataError, match="3 of the 4 rows"):
        list(open_dataset(hook(tmp_path, [1, 2]), four, None, 0))


def test_a_hook_of_batches_is_read_row_by_row_where_the_model_takes_one(tmp_path: Path) -> None:
    one = load(proto(FOUR.replace("4", "1")), tmp_path)
    dataset = open_dataset(hook(tmp_path, [2, 1]), one, None, 0)
    found = [(sample.name, sample.label, sample.inputs["x"][0, 0]) for sample in dataset]
    assert found == [("batches[0][0]", "0", 0), ("batches[0][1]", "1", 1), ("batches[1]", "2", 2)]


def test_a_bad_row_of_a_hook_is_told_and_can_be_left_out(tmp_path: Path, four: Model) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "import numpy as np\ndef f():\n  for i in range(8): yield {'x': np.full(3, np.nan if i == 5 else i, 'f4')}\n"
    )
    dataset = open_dataset(f"{file}:f", four, None, 0)
    with pytest.raises(DataError, match=r"f\[5\]: input 'x' holds 3 values"):
        dataset.checked()
    assert dataset.checked(skip_bad=True).names == ("f[0]…f[3]",)


# From the command line


@pytest.mark.parametrize("command", ["sweep", "calibrate"])
@pytest.mark.parametrize("fill", ["single", "stack"])
def test_both_commands_say_what_is_left_out(folder: Path, four: Model, command: str, fill: str, tmp_path: Path) -> None:
    if fill == "single":
        for index in range(18):
            np.save(folder / f"{index:02}.npy", rows(1, index))
    else:
        np.save(folder / "calib.npy", rows(18))
    arguments = [command, str(four.path), "--data", str(folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 rows at the end left out: no batch of 4" in result.output
