"""No name in a run's folder is followed out of it: the folder may be a stranger's, and its links stay untouched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from models import DIGITS

from precisionlab.cli import cli
from precisionlab.system.lock import held_file, held_folder
from precisionlab.system.plainfiles import LinkError, make_plain_folder, open_plain, open_to_append, open_to_read

MODEL = DIGITS / "digits.onnx"
CALIBRATE = ["calibrate", str(MODEL), "--data", str(DIGITS), "--samples", "4"]
SWEEP = [
    "sweep",
    str(MODEL),
    "--data",
    str(DIGITS),
    "--precisions",
    "fp16",
    "--samples",
    "8",
    "--no-repair",
    "--max-evaluations",
    "2",
]
SECRET = "not for others\n"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")


def run(*arguments: str | Path) -> tuple[int, str]:
    found = CliRunner().invoke(cli, list(map(str, arguments)))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "run"
    assert run(*SWEEP, "--out", folder)[0] in (0, 1)
    return folder


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """A run's folder that somebody may have tampered with."""
    return Path(shutil.copytree(swept, tmp_path / "run"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's that a link in the folder leads to."""
    path = tmp_path / "target"
    path.write_text(SECRET)
    return path


def linked(folder: Path, name: str, target: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


# What is written


@pytest.mark.parametrize("name", [".lock", "journal.jsonl"])
def test_a_link_where_a_sweep_writes_is_refused_and_its_target_stays(folder: Path, target: Path, name: str) -> None:
    linked(folder, name, target)
    code, said = run(*SWEEP, "--out", folder)
    assert (code, target.read_text()) == (2, SECRET)
    assert f"{name}: a link" in said
    assert "remove it" in said


@pytest.mark.parametrize("name", ["report.html", "run.json", "plan.json", "layers.csv", "best.fp16.json"])
def test_a_result_takes_the_place_of_a_link_and_not_of_its_target(folder: Path, target: Path, name: str) -> None:
    linked(folder, name, target)
    assert run(*SWEEP, "--out", folder)[0] in (0, 1)
    assert target.read_text() == SECRET
    assert not (folder / name).is_symlink()


def test_a_lock_that_has_other_names_is_not_signed(folder: Path, target: Path) -> None:
    os.link(target, folder / ".lock")
    with held_folder(folder, print):
        assert target.read_text() == SECRET
    assert target.read_text() == SECRET


def test_a_journal_that_has_other_names_is_written_anew_before_it_grows(folder: Path, tmp_path: Path) -> None:
    before = (folder / "journal.jsonl").read_bytes()
    os.link(folder / "journal.jsonl", tmp_path / "backup")
    assert run(*SWEEP[:-1], "3", "--out", folder)[0] in (0, 1)
    assert (tmp_path / "backup").read_bytes() == before
    assert len((folder / "journal.jsonl").read_bytes()) > len(before)


def test_a_page_and_its_lock_are_not_written_through_links(folder: Path, target: Path, tmp_path: Path) -> None:
    linked(folder, ".report.html.lock", target)
    code, said = run("report", folder, "--out", folder / "report.html")
    assert (code, target.read_text()) == (2, SECRET)
    assert ".report.html.lock: a link" in said
    (folder / ".report.html.lock").unlink()
    linked(folder, "report.html", target)
    assert run("report", folder)[0] == 0
    assert (target.read_text(), (folder / "report.html").is_symlink()) == (SECRET, False)


@pytest.mark.parametrize(("name", "out"), [(".x.sh.lock", "x.sh"), (".x.json.lock", "x.json")])
def test_an_export_is_not_written_through_a_link(folder: Path, target: Path, name: str, out: str) -> None:
    linked(folder, name, target)
    kind = "trtexec" if out.endswith("sh") else "json"
    code, said = run("export", folder / "plan.json", "--format", kind, "--out", folder / out)
    assert (code, target.read_text()) == (2, SECRET)
    assert f"{name}: a link" in said
    (folder / name).unlink()
    linked(folder, out, target)
    assert run("export", folder / "plan.json", "--format", kind, "--out", folder / out)[0] == 0
    assert target.read_text() == SECRET


def test_a_folder_in_the_folder_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "onnxruntime").symlink_to(elsewhere)
    code, said = run(*CALIBRATE, "--out", out)
    assert code == 2
    assert "onnxruntime: a link" in said
    assert list(elsewhere.iterdir()) == []
    assert not (out / "ranges.csv").exists(), "all files of a calibration, or none"
    (out / "onnxruntime").unlink()
    assert run(*CALIBRATE, "--out", out)[0] == 0
    assert sorted(path.name for path in (out / "onnxruntime").iterdir())


def test_the_lock_of_a_cache_is_not_a_link(tmp_path: Path, target: Path) -> None:
    linked(tmp_path, ".c.cache.lock", target)
    code, said = run(*CALIBRATE, "--out", tmp_path / "out", "--cache", tmp_path / "c.cache")
    assert (code, target.read_text()) == (2, SECRET)
    assert ".c.cache.lock: a link" in said


def test_the_users_own_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "reports").symlink_to(tmp_path / "disk")
    assert run(*SWEEP, "--out", tmp_path / "reports")[0] in (0, 1)
    assert (tmp_path / "disk" / "report.html").exists()


# What is read


@pytest.mark.parametrize("name", ["run.json", "layers.csv", "variants.csv", "pareto.csv", "samples.csv", "plan.json"])
@pytest.mark.parametrize("kind", ["elsewhere", "the same", "nowhere", "pipe"])
def test_a_link_is_not_read(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    content = tmp_path / "content"
    (folder / name).rename(content)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to({"elsewhere": content, "the same": folder / name, "nowhere": tmp_path / "no"}[kind])
    code, said = run("report", folder)
    assert code == 2
    assert name in said
    assert ("a pipe" if kind == "pipe" else "a link") in said
    (folder / name).unlink()
    content.rename(folder / name)
    assert run("report", folder)[0] == 0


@pytest.mark.parametrize("name", ["plan.json", "run.json"])
@pytest.mark.parametrize("command", ["verify", "export"])
def test_a_plan_and_what_stands_beside_it_are_no_links(folder: Path, tmp_path: Path, name: str, command: str) -> None:
    content = tmp_path / "content"
    (folder / name).rename(content)
    linked(folder, name, content)
    options = ["--format", "json"] if command == "export" else ["--threads", "1"]
    code, said = run(command, folder / "plan.json", *options)
    assert code == 2
    assert f"{name}: a link" in said


def test_runs_with_links_are_not_compared(folder: Path, swept: Path, target: Path) -> None:
    assert run("diff", swept, folder)[0] == 0
    linked(folder, "histograms.json", target)
    code, said = run("diff", swept, folder)
    assert code == 2
    assert "histograms.json: a link" in said
    assert SECRET not in said


# The parts


def test_a_file_is_opened_through_folders_of_its_own(tmp_path: Path) -> None:
    make_plain_folder(tmp_path, "a/b")
    with open_to_append(tmp_path, "a/b/log") as stream:
        stream.write(b"1")
    with open_to_append(tmp_path, "a/b/log") as stream:
        stream.write(b"2")
    with open_to_read(tmp_path, "a/b/log") as stream:
        assert stream.read() == b"12"


def test_no_link_on_the_way_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "b").mkdir(parents=True)
    (tmp_path / "real" / "b" / "log").write_text("")
    (tmp_path / "a").symlink_to("real")
    for action in (lambda: open_to_read(tmp_path, "a/b/log"), lambda: make_plain_folder(tmp_path, "a/c")):
        with pytest.raises(LinkError, match="a link"):
            action()


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/etc/hosts"])
def test_a_name_that_leads_out_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name in a folder"):
        open_plain(tmp_path, name, os.O_RDONLY)


def test_what_is_missing_is_told_by_its_path(tmp_path: Path) -> None:
    for name in ("log", "no/log"):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            open_to_read(tmp_path, name)


def test_a_file_is_held_beside_a_link_of_the_same_name(tmp_path: Path, target: Path) -> None:
    linked(tmp_path, "x.sh", target)
    with held_file(tmp_path / "x.sh", print, "choose another place"):
        pass
    assert target.read_text() == SECRET
