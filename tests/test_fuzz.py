"""What fuzzing has found stays fixed: the corpus and all crashes are read again, and each reader is fuzzed briefly."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, survives
from tests.fuzz.run import FEWEST

FUZZ = Path(__file__).parent / "fuzz"
SECONDS = 1
LARGEST_CORPUS = 300_000


@pytest.mark.parametrize("reader", READERS)
def test_every_input_of_the_corpus_ends_in_a_result_or_in_one_of_our_errors(reader: str) -> None:
    files = sorted((FUZZ / "corpus" / reader).iterdir())
    assert 0 < len(files) <= 30
    for file in files:
        survives(READERS[reader], file.read_bytes())


@pytest.mark.parametrize(
    "crash", sorted((FUZZ / "crashes").glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name[-8:]}"
)
def test_what_once_broke_a_reader_no_longer_does(crash: Path) -> None:
    survives(READERS[crash.parent.name], crash.read_bytes())


def test_the_corpus_stays_small_and_every_reader_has_one() -> None:
    files = [path for path in FUZZ.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) < LARGEST_CORPUS
    assert {path.name for path in (FUZZ / "corpus").iterdir()} == set(READERS)


def test_a_reader_that_breaks_is_noticed() -> None:
    def broken(content: bytes) -> None:
        raise KeyError(content)

    with pytest.raises(KeyError):
        survives(broken, b"x")


def of_those_that_fail(said: str) -> str:
    """The logs of the readers that have found something: the others say nothing of it, and drown it."""
    logs = re.split(r"^(?==== \w+: exit status )", said, flags=re.MULTILINE)
    return "".join(log for log in logs if not re.match(r"=== \w+: exit status 0\n", log))


def test_of_a_run_that_finds_something_only_the_failing_readers_are_shown() -> None:
    found = "=== cache: exit status 77\nKeyError: 'x'\n"
    assert of_those_that_fail(f"=== model: exit status 0\nINFO\n{found}=== plan: exit status 0\n") == found


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
def test_fuzzing_each_reader_for_a_moment_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "all", "--seconds", str(SECONDS)]
    folders = ["--corpus", str(tmp_path / "corpus"), "--crashes", str(tmp_path / "crashes")]
    found = subprocess.run(
        [*command, *folders], cwd=FUZZ.parent.parent, capture_output=True, text=True, errors="replace", timeout=300
    )
    assert found.returncode == 0, of_those_that_fail(found.stdout)[-5000:] + found.stderr[-1000:]
    for reader in READERS:
        _, _, said = found.stdout.partition(f"=== {reader}: exit status 0")
        executions = re.search(r"^(\d+) executions in \d+ s$", said, re.MULTILINE)
        assert executions is not None, reader
        assert int(executions[1]) >= FEWEST, reader


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
def test_fuzzing_writes_down_what_breaks_a_reader(tmp_path: Path) -> None:
    """The same run of a reader that cannot bear one byte."""
    code = (
        "import sys, tests.fuzz.run as run\n"
        "from tests.fuzz import readers\n"
        "def broken(content):\n"
        "    if content[:1] == b'T': raise KeyError('found')\n"
        "readers.READERS['cache'] = broken\n"
        f"sys.argv[1:] = ['cache', '--seconds', '30', '--crashes', {str(tmp_path)!r}]\n"
        "sys.exit(run.main())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=FUZZ.parent.parent, capture_output=True, text=True, errors="replace"
    )
    assert found.returncode == 77
    assert "KeyError: 'found'" in found.stdout
    assert [path.read_bytes()[:1] for path in (tmp_path / "cache").iterdir()] == [b"T"]
