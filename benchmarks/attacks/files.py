"""Run folders of strangers: links, pipes, folders and other names of a file in the place of the run's own files."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks.attacks.attempt import ANY, OUTSIDE, REFUSED, RUNS, SWEEP, Attempt, Kind, after, words

RUN = Path("run")
READ = ("run.json", "layers.csv", "variants.csv", "pareto.csv", "samples.csv", "histograms.json", "plan.fp16.json")
WRITTEN = (*READ, "report.html", "summary.md", "annotated.onnx", "best.fp16.json", "plan.int8.json")
HELD = (".lock", "journal.jsonl")


def to_secret(path: Path) -> None:
    path.symlink_to(Path("..") / OUTSIDE / "secret")


def to_folder(path: Path) -> None:
    path.symlink_to(Path("..") / OUTSIDE / "folder")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def to_nowhere(path: Path) -> None:
    path.symlink_to(Path("..") / OUTSIDE / "new")


def hard_link(path: Path) -> None:
    path.hardlink_to(OUTSIDE / "secret")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("a user's\n")


def moved(path: Path) -> None:
    """The file itself, but elsewhere: what a link would read is sound."""
    path.symlink_to(path.with_suffix(".real"))


THINGS: dict[str, Callable[[Path], None]] = {
    "a link to a secret": to_secret,
    "a link to a folder": to_folder,
    "a link to itself": to_itself,
    "a link to nowhere": to_nowhere,
    "a hard link": hard_link,
    "a pipe": pipe,
    "a link to a device": to_device,
    "a folder": folder,
    "a link to the file itself": moved,
}
LINKS = ("a link to a secret", "a link to itself", "a link to nowhere", "a link to the file itself", "a pipe")

COMMANDS: dict[str, tuple[str, ...]] = {
    "report": ("report", "run"),
    "diff": ("diff", "run", "run"),
    "verify": ("verify", "run/plan.fp16.json", "--threads", "1"),
    "export": ("export", "run/plan.fp16.json", "--format", "json", "--threads", "1"),
    "sweep": SWEEP,
}


def placed(name: str, thing: str) -> Callable[[], None]:
    """Put the thing in the place of a run's file."""

    def change() -> None:
        path = RUN / name
        if thing == "a link to the file itself" and path.exists():
            path.rename(path.with_suffix(".real"))
        path.unlink(missing_ok=True)
        THINGS[thing](path)

    return change


def attempt(name: str, thing: str, command: str, codes: frozenset[int] = ANY, names: str = "") -> Attempt:
    """One command with one thing in the place of one file."""
    make = after(placed(name, thing), *COMMANDS[command])
    return Attempt(f"{command}, {name} is {thing}", make, codes, names, run=True)


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    twins = [
        Attempt(f"twin of {name}", words(*command), RUNS, run=True, twin=True) for name, command in COMMANDS.items()
    ]
    readers = [
        *((name, thing, "report") for name in ("run.json", "layers.csv", "plan.fp16.json") for thing in LINKS),
        *((name, thing, "diff") for name in ("run.json", "histograms.json") for thing in LINKS[:3]),
        *(("run.json", thing, command) for thing in LINKS for command in ("verify", "export")),
    ]
    yield Kind(
        "links in the place of what is read",
        "`report`, `diff`, `verify`, `export` on a run's folder whose files are links or pipes",
        "refused by name; nothing waited for, nothing read",
        [*twins, *(attempt(name, thing, command, REFUSED, name) for name, thing, command in readers)],
    )
    drawn = [(dice.choice(READ), dice.choice(list(THINGS)), dice.choice(list(COMMANDS)[:4])) for _ in range(8)]
    yield Kind(
        "things in the place of what is read",
        "the same with hard links, folders, devices; file, thing and command drawn",
        "a page, or refused",
        [attempt(*parts) for parts in dict.fromkeys(drawn)],
    )
    yield Kind(
        "things in the place of what is written",
        "a sweep into a folder whose results, lock or journal are links, hard links, pipes, devices or folders",
        "results take the place of links, what is held is refused; no target is touched",
        list(written(dice)),
    )
    yield Kind(
        "folders that are links",
        "a folder in the folder, or the folder itself, is a link",
        "the user's word for the folder itself, refused below it",
        list(linked()),
    )


def written(dice: random.Random) -> Iterator[Attempt]:
    """Attempts on what a sweep writes."""
    for name in HELD:
        for thing in LINKS[:3]:
            yield attempt(name, thing, "sweep", REFUSED, name)
        for thing in ("a hard link", "a folder", "a pipe", "a link to a device"):
            yield attempt(name, thing, "sweep")
    for thing in ("a link to a secret", "a hard link", "a link to nowhere"):
        for name in ("report.html", "run.json"):
            yield attempt(name, thing, "sweep", RUNS)
    drawn = [(dice.choice(WRITTEN), dice.choice(list(THINGS)), "sweep") for _ in range(8)]
    yield from (attempt(*parts) for parts in dict.fromkeys(drawn))
    for lock, out in (
        (".report.html.lock", ("report", "run")),
        (".x.json.lock", (*COMMANDS["export"], "--out", "run/x.json")),
    ):
        for thing in LINKS[:2]:
            yield Attempt(f"{lock} is {thing}", after(placed(lock, thing), *out), ANY, run=True)


def linked() -> Iterator[Attempt]:
    """Folders that are links."""

    def elsewhere() -> None:
        Path("disk").mkdir()
        RUN.symlink_to("disk")

    def other_name() -> None:
        RUN.rename("disk")
        RUN.symlink_to("disk")

    def below() -> None:
        RUN.mkdir()
        (RUN / "onnxruntime").symlink_to(Path("..") / OUTSIDE / "folder")

    def draft() -> None:
        for name in (".draft", ".run.json.draft", "run.json.draft", ".results"):
            (RUN / name).symlink_to(Path("..") / OUTSIDE / "folder")

    def removed() -> None:
        shutil.rmtree(RUN)
        RUN.write_text("a file in the way")

    calibrate = ("calibrate", *SWEEP[1:4], "--samples", "4", "--threads", "1", "--out", "run")
    yield Attempt("the folder of a calibration holds a link", after(below, *calibrate), REFUSED, "onnxruntime")
    yield Attempt("twin of calibrate", words(*calibrate), RUNS, twin=True)
    yield Attempt("names of drafts are links", after(draft, *SWEEP), RUNS, run=True)
    yield Attempt("the folder is a file", after(removed, *SWEEP), REFUSED, "run", run=True)
    yield Attempt("report of a folder that is a link", after(other_name, "report", "disk"), RUNS, run=True)
