"""Run folders of strangers: whatever value stands in them, `report` and `diff` end in a page or in one sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.cli import cli

MODEL = DIGITS / "digits.onnx"
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**18, 10**400, 1e308, -1e308, "", "x", "\x1b[2J", "<script>", "nan"),
    *([], [[]], {}, {"a": []}, ["x"] * 3),
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "run"
    options = ["--data", str(DIGITS), "--precisions", "fp16,int8", "--samples", "4", "--max-evaluations", "6"]
    assert CliRunner().invoke(cli, ["sweep", str(MODEL), *options, "--out", str(folder)]).exit_code in (0, 1)
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "run"))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    found = CliRunner().invoke(cli, list(map(str, arguments)))
    assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
    return found.exit_code, found.stdout, found.stderr


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object and list within, with each of its keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield value, key
        yield from places(below)


def ended_well(code: int, said: str, what: str) -> None:
    assert code in (0, 1, 2), what
    if code == 2:
        assert said.strip().splitlines()[-1].startswith("precisionlab: "), (what, said)
        assert "\x1b" not in said
    assert "internal error" not in said, what


@pytest.mark.parametrize("name", ["run.json", "plan.fp16.json", "histograms.json"])
def test_any_value_of_a_json_file_may_be_odd(folder: Path, swept: Path, name: str) -> None:
    drawn = random.Random(name)
    content = (folder / name).read_text()
    count = sum(1 for _ in places(json.loads(content)))
    for place in drawn.sample(range(count), min(count, 30)):
        data = json.loads(content)
        holder, key = list(places(data))[place]
        if drawn.random() < 0.15:
            del holder[key]
        else:
            holder[key] = drawn.choice(ODD)
        (folder / name).write_text(json.dumps(data))
        what = f"{name}: {key!r} is {holder.get(key, 'gone') if isinstance(holder, dict) else '…'}"
        code, _, said = run("report", folder)
        ended_well(code, said, what)
        code, _, said = run("diff", swept, folder)
        ended_well(code, said, what)


@pytest.mark.parametrize("name", ["layers.csv", "variants.csv", "pareto.csv", "samples.csv"])
def test_any_cell_of_a_table_may_be_odd(folder: Path, swept: Path, name: str) -> None:
    drawn = random.Random(name)
    lines = (folder / name).read_text().splitlines()
    cells = ("", "x", "-1", "1e999", "-1e999", "nan", "True", "10" * 200, '"a,b"', "=1+1", "\x00", "[]", "0")
    for _ in range(20):
        row = drawn.randrange(len(lines))
        parts = lines[row].split(",")
        parts[drawn.randrange(len(parts))] = drawn.choice(cells)
        if drawn.random() < 0.2:
            parts = parts[: drawn.randrange(len(parts))]
        (folder / name).write_text("\n".join([*lines[:row], ",".join(parts), *lines[row + 1 :]]) + "\n")
        for command in (("report", folder), ("diff", swept, folder)):
            code, _, said = run(*command)
            ended_well(code, said, f"{name}: {parts}")


@pytest.mark.parametrize("name", ["layers.csv", "variants.csv", "pareto.csv", "samples.csv"])
def test_a_table_of_nothing_but_its_header_is_told_or_drawn(folder: Path, name: str) -> None:
    header = (folder / name).read_text().splitlines()[0]
    (folder / name).write_text(header + "\n")
    code, _, said = run("report", folder)
    ended_well(code, said, name)


def test_a_file_as_large_as_a_disk_is_not_read(folder: Path) -> None:
    for name in ("run.json", "layers.csv", "histograms.json"):
        content = (folder / name).read_bytes()
        with (folder / name).open("ab") as stream:
            stream.truncate(3 << 30)  # a hole: it takes no room
        code, _, said = run("report", folder)
        assert code == 2
        assert f"{name}: larger than 256 MiB" in said
        (folder / name).write_bytes(content)
    assert run("report", folder)[0] == 0


# Digests


def test_a_run_as_it_was_written_has_nothing_said_of_it(swept: Path, folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    code, _, said = run("report", folder)
    assert (code, said) == (0, "")
    assert (folder / "report.html").read_text(encoding="utf-8") == page.replace(str(swept), str(folder))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("plan.fp16.json", '"met": true', '"met": false'),
        ("layers.csv", "fp16", "fp16 "),
        ("run.json", '"met": true', '"met": false'),
        ("run.json", '"layers.csv": "', '"layers.csv": "0'),
    ],
)
def test_what_was_changed_in_a_run_is_told_by_name(folder: Path, swept: Path, name: str, old: str, new: str) -> None:
    content = (folder / name).read_text()
    assert old in content
    (folder / name).write_text(content.replace(old, new, 1))
    code, _, said = run("report", folder)
    assert code in (0, 2)
    if code == 0:
        assert f"not as written by precisionlab: {name}" in said
        assert "Not as written by precisionlab" in (folder / "report.html").read_text()
    assert f"not as written by precisionlab: {name}" in run("diff", swept, folder)[2] or code == 2


def test_a_run_of_an_older_version_has_no_digests_and_is_drawn(folder: Path) -> None:
    data = json.loads((folder / "run.json").read_text())
    del data["written"]
    (folder / "run.json").write_text(json.dumps(data))
    assert run("report", folder)[0] == 0
