"""A user's function as data: called anew for each pass, the same each time, and told where it fails."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from models import load, proto

from precisionlab.data import Dataset, open_dataset
from precisionlab.errors import DataError
from precisionlab.model import Model

ONE = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
GOOD = """
import numpy as np
calls = 0

def batches():
    global calls
    calls += 1
    for i in range(6):
        yield {"x": np.full((1, 3), i, np.float32)}
"""


@pytest.fixture
def one(tmp_path: Path) -> Model:
    return load(proto(ONE), tmp_path)


def hook(folder: Path, code: str, name: str = "batches") -> str:
    (folder / "loader.py").write_text(code)
    return f"{folder / 'loader.py'}:{name}"


def opened(folder: Path, of: Model, code: str, limit: int | None = None) -> Dataset:
    return open_dataset(hook(folder, code), of, limit, 0)


def body(text: str) -> str:
    return "import numpy as np\n\ndef batches():\n" + "".join(f"    {line}\n" for line in text.splitlines())


def fails(folder: Path, of: Model, code: str, *words: str, skip_bad: bool = False) -> None:
    with pytest.raises(DataError) as caught:
        opened(folder, of, code).checked(skip_bad=skip_bad)
    text = str(caught.value)
    assert "\n" not in text
    assert "loader.py:batches" in text
    for word in words:
        assert word in text, text


def calls() -> int:
    import sys

    return int(sys.modules["precisionlab_user_loader"].calls)


def test_a_hook_is_called_for_each_pass_and_counted_by_the_check(tmp_path: Path, one: Model) -> None:
    dataset = opened(tmp_path, one, GOOD)
    assert calls() == 0
    assert dataset.size is None
    assert not dataset.is_random
    assert dataset.folder is None
    assert dataset.files == ()
    checked = dataset.checked()
    assert calls() == 1
    assert checked.size == len(checked) == 6
    assert len(checked.sha256) == 64
    assert checked.look is not None
    assert calls() == 1  # one reading for the count, the hash and the look
    for _ in range(2):
        assert [(s.name, s.inputs["x"][0, 0]) for s in checked] == [(f"batches[{i}]", i) for i in range(6)]
    assert calls() == 3
    assert checked.origin == f"{tmp_path / 'loader.py'}:batches"


def test_a_hook_that_was_not_checked_still_tells_its_length_and_hash(tmp_path: Path, one: Model) -> None:
    dataset = opened(tmp_path, one, GOOD)
    assert len(dataset) == 6
    assert dataset.sha256 == dataset.checked().sha256
    assert not dataset.is_labelled
    assert calls() == 2
    assert [s.name for s in dataset.only({"batches[4]"})] == ["batches[4]"]


def test_a_module_works_as_a_file_does(tmp_path: Path, one: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg_of_hooks").mkdir()
    (tmp_path / "pkg_of_hooks/loader.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_dataset("pkg_of_hooks.loader:batches", one, None, 0)) == 6
    assert len(open_dataset(Path("pkg_of_hooks.loader:batches"), one, None, 0)) == 6


def test_a_folder_of_that_name_is_a_folder(tmp_path: Path, one: Model) -> None:
    (tmp_path / "a:b").mkdir()
    np.save(tmp_path / "a:b/0.npy", np.zeros((1, 3), np.float32))
    assert open_dataset(tmp_path / "a:b", one, None, 0).folder == tmp_path / "a:b"


def test_samples_are_chosen_by_the_seed(tmp_path: Path, one: Model) -> None:
    spec = hook(tmp_path, GOOD)
    chosen = [open_dataset(spec, one, 3, seed).names for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1
    assert all(len(c) == 3 and list(c) == sorted(c) for c in chosen)
    assert [s.name for s in open_dataset(spec, one, 3, 0).checked()] == list(chosen[0])
    assert len(open_dataset(spec, one, 99, 0)) == 6


def test_a_list_has_a_length_and_needs_no_pass(tmp_path: Path, one: Model) -> None:
    code = body("return [{'x': np.zeros((1, 3), np.float32)}] * 4")
    assert len(opened(tmp_path, one, code, limit=2)) == 2
    assert [s.name for s in opened(tmp_path, one, code)] == [f"batches[{i}]" for i in range(4)]


def test_labels_come_with_the_samples(tmp_path: Path, one: Model) -> None:
    code = body(
        "for label in (7, 'a', [1, 2], np.array([1, 2]), np.int64(3)):\n"
        "    yield {'x': np.zeros((1, 3), np.float32)}, label"
    )
    dataset = opened(tmp_path, one, code).checked()
    assert [s.label for s in dataset] == ["7", "a", "[1, 2]", "[1, 2]", "3"]
    assert dataset.is_labelled
    assert opened(tmp_path, one, code, limit=2).is_labelled
    changed = opened(tmp_path, one, code.replace("7", "8"))
    assert changed.sha256 != dataset.sha256


def test_the_hash_covers_values_order_and_number(tmp_path: Path, one: Model) -> None:
    codes = [f"for v in {v}:\n    yield {{'x': np.full((1, 3), v, np.float32)}}" for v in ("1, 2", "2, 1", "1, 2, 2")]
    assert len({opened(tmp_path, one, body(code)).sha256 for code in codes}) == 3


def test_a_buffer_that_is_filled_again_does_no_harm(tmp_path: Path, one: Model) -> None:
    code = body("x = np.zeros((1, 3), np.float32)\nfor i in range(3):\n    x[:] = i\n    yield {'x': x}")
    assert [s.inputs["x"][0, 0] for s in list(opened(tmp_path, one, code))] == [0, 1, 2]


def test_a_missing_batch_dimension_is_added_and_lists_are_arrays(tmp_path: Path, one: Model) -> None:
    (found,) = opened(tmp_path, one, body("yield {'x': np.float32([1, 2, 3])}"))
    assert found.inputs["x"].shape == (1, 3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("yield {'x': np.zeros((1, 3), np.float32)}\nraise KeyError('gone')", ["sample 1", "KeyError", "line 5"]),
        ("return [][0]", ["IndexError", "line 4"]),
        ("return {'x': np.zeros((1, 3), np.float32)}", ["gives a dict", "yield"]),
        ("return None", ["gives a NoneType"]),
        ("return []", ["gives no sample"]),
        ("yield [np.zeros((1, 3), np.float32)] * 3", ["sample 0", "list", "dict"]),
        ("yield 3", ["sample 0", "int", "an array for each input"]),
        ("yield {'y': np.zeros((1, 3), np.float32)}", ["sample 0", "lacks x"]),
        ("yield {'x': np.array([[1, 2, 2**24 + 1]])}", ["sample 0", "'x'", "int64", "16777217", ".astype('float32')"]),
        ("yield {'x': np.zeros((1, 4), np.float32)}", ["sample 0", "1×4"]),
        ("yield {'x': np.float32([[1, np.inf, 2]])}", ["sample 0", "NaN or Inf"]),
        ("yield {'x': [[1], [1, 2]]}", ["sample 0", "ValueError"]),
    ],
)
def test_an_error_names_hook_and_sample(tmp_path: Path, one: Model, code: str, words: list[str]) -> None:
    fails(tmp_path, one, body(code), *words)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_package_here:fn", ["no_such_package_here"]),
        ("absent.py:fn", ["no such Python file"]),
        ("loader.py:absent", ["absent"]),
        ("loader.py:calls", ["is no function"]),
        ("broken.py:fn", ["SyntaxError"]),
        ("raising.py:fn", ["ZeroDivisionError", "raising.py", "line 1"]),
    ],
)
def test_a_hook_that_cannot_be_loaded_is_told(
    tmp_path: Path, one: Model, monkeypatch: pytest.MonkeyPatch, spec: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hook(tmp_path, GOOD)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    with pytest.raises(DataError) as caught:
        open_dataset(spec, one, None, 0)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in (spec, *words)), text


def test_what_does_not_look_like_a_hook_is_a_folder(one: Model) -> None:
    for data in ("nowhere", "nowhere:", ":fn", "C:\\data", "a:b/c"):
        with pytest.raises(DataError, match="no such folder"):
            open_dataset(data, one, None, 0)


def test_a_bad_sample_can_be_left_out_but_not_a_failing_hook(tmp_path: Path, one: Model) -> None:
    code = body("for v in 1, np.nan, 2:\n    yield {'x': np.full((1, 3), v, np.float32)}")
    good = opened(tmp_path, one, code).checked(skip_bad=True)
    assert good.names == ("batches[0]", "batches[2]")
    assert [name for name, _ in good.skipped] == ["batches[1]"]
    assert [s.inputs["x"][0, 0] for s in good] == [1, 2]
    fails(
        tmp_path, one, body("yield {'x': np.zeros((1, 3), np.float32)}\nraise OSError('disk')"), "disk", skip_bad=True
    )


def test_a_hook_without_seed_is_told_on_the_second_pass(tmp_path: Path, one: Model) -> None:
    dataset = opened(tmp_path, one, body("yield {'x': np.random.standard_normal((1, 3)).astype('f4')}")).checked()
    with pytest.raises(DataError, match=r"batches\[0\] is not what it was.*seed"):
        list(dataset)


def test_a_hook_that_gives_fewer_samples_is_told(tmp_path: Path, one: Model) -> None:
    code = (
        "import numpy as np\nleft = [3]\ndef batches():\n    left[0] -= 1\n"
        "    for i in range(left[0]):\n        yield {'x': np.zeros((1, 3), np.float32)}\n"
    )
    dataset = opened(tmp_path, one, code).checked()
    with pytest.raises(DataError, match=r"ends before batches\[1\]"):
        list(dataset)


def test_a_hook_must_end(tmp_path: Path, one: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precisionlab.data.hook.MOST_SAMPLES", 50)
    fails(tmp_path, one, body("while True:\n    yield {'x': np.zeros((1, 3), np.float32)}"), "must end")


def test_one_sample_is_held_at_a_time(tmp_path: Path, one: Model) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    for sample in opened(tmp_path, one, body("for i in range(20):\n    yield {'x': np.full((1, 3), i, np.float32)}")):
        alive.append(weakref.ref(sample.inputs["x"]))
        del sample
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= 1


def test_what_the_user_stops_is_closed(tmp_path: Path, one: Model) -> None:
    code = (
        "import numpy as np\nclosed = []\ndef batches():\n    try:\n        for i in range(9):\n"
        "            yield {'x': np.zeros((1, 3), np.float32)}\n    finally:\n        closed.append(1)\n"
    )
    dataset = opened(tmp_path, one, code, limit=1)
    closed = dataset.source.function.__globals__["closed"]  # type: ignore[attr-defined]
    closed.clear()
    list(dataset)
    gc.collect()
    assert closed == [1]
