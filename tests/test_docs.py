"""The documentation is true of the code: files, links, commands and examples that it names are there, and run.

Blocks after `<!-- run -->` are run on the bundled digits model, those after `<!-- file: NAME -->` are files for them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from models import DIGITS
from pages import PAGES, ROOT, anchors, blocks, command_of, commands, inline, links, options, parse

import precisionlab
from precisionlab.cli import cli
from precisionlab.report.columns import SCHEMAS

FILES = re.compile(r"(?:precisionlab|tests|examples|benchmarks|docs)/[\w./-]*")
FEW = ["--samples", "8"]  # what is shown to users takes all 64
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

OTHERS = {
    # trtexec's and Polygraphy's
    *("--layerPrecisions", "--layerOutputTypes", "--precisionConstraints=obey", "--calib", "--layer-precisions"),
    *("--int8", "--fp8", "--stronglyTyped", "--strongly-typed", "--staticPlugins", "--dynamicPlugins", "--plugins"),
    *("--save-inputs", "--data-loader-script", "--load-outputs", "--loadInputs=x:x.bin,mask:mask.bin"),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    dead = []
    for link in links(ROOT / name):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", *(n for n in NAMES if n.startswith("docs"))])
def test_the_files_that_a_page_names_are_there(name: str) -> None:
    named = [code for code in inline(ROOT / name) if FILES.fullmatch(code)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_page_can_be_found_from_the_site_and_from_the_readme() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))) == pages
    reached, found = set(), [ROOT / "README.md"]
    while found:
        page = found.pop()
        here = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        new = {path for path in here if path.suffix == ".md"} - reached
        reached |= new
        found += new
    assert {ROOT / "docs" / name for name in pages} - reached == {ROOT / "docs/index.md"}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shown_is_one_that_click_can_read(name: str) -> None:
    for block in blocks(ROOT / name):
        for words in commands(block.text):
            parse(words)
    for code in inline(ROOT / name):
        for words in commands(code) if code.startswith("precisionlab ") and "…" not in code else ():
            command, rest = command_of([word for word in words if word.islower() or word.startswith("-")])
            assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options(command), code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["swep", "m.onnx"], "swep"),
        (["sweep", "m.onnx", "--precison", "fp16"], "No such option"),
        (["export", "plan.json", "--format", "trt"], "is not one of"),
        (["sweep"], "Missing"),
    ],
)
def test_a_command_that_click_cannot_read_is_seen(words: list[str], said: str) -> None:
    with pytest.raises((KeyError, click.UsageError)) as caught:
        parse(words)
    assert said in (caught.value.format_message() if isinstance(caught.value, click.UsageError) else str(caught.value))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("docs", "README"))])
def test_every_option_named_is_one_of_ours_or_of_a_tool_that_is_named(name: str) -> None:
    named = {code.split()[0] for code in inline(ROOT / name) if code.startswith("--")}
    assert named - options() - OTHERS == set()


def test_every_make_target_named_is_one() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {target for page in PAGES for code in inline(page) for target in re.findall(r"^make ([\w-]+)", code)}
    named |= {t for page in PAGES for b in blocks(page) for t in re.findall(r"^\s*make ([\w-]+)", b.text, re.M)}
    assert named
    assert named <= targets


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    found = re.findall(r"^::: ([\w.]+)$", text, re.M)
    assert {name.rpartition(".")[2] for name in found} == set(precisionlab.__all__)
    for name in found:
        module, _, member = name.rpartition(".")
        homes = importlib.import_module(module), precisionlab
        own, public = (inspect.unwrap(getattr(home, member)) for home in homes)
        assert own is public
        assert public.__doc__


def test_the_reference_of_files_takes_its_tables_from_modules_that_have_them() -> None:
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    modules = re.findall(r"^::: ([\w.]+)$", text, re.M)
    assert modules
    assert all(
        ".csv`" in str(doc) or ".json`" in str(doc) for doc in (importlib.import_module(m).__doc__ for m in modules)
    )


def test_the_reference_of_files_has_the_columns_of_every_table() -> None:
    hooks = runpy.run_path(str(ROOT / "docs/site_hooks.py"))
    shown = hooks["with_columns"]((ROOT / "docs/reference/files.md").read_text(encoding="utf-8"))
    for schema in SCHEMAS.values():
        assert f"A row for {schema.rows}." in shown
        assert schema.markdown() in shown


@pytest.mark.parametrize("name", NAMES)
def test_python_and_json_shown_can_be_read(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.kind == "python":
            compile(block.text, name, "exec")
        if block.kind == "json":
            json.loads(block.text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything that is marked so was run, page by page; each command once."""
    before, made = Path.cwd(), tmp_path_factory.mktemp("docs")
    (made / "calib_data").symlink_to(DIGITS, target_is_directory=True)
    os.chdir(made)
    try:
        done: set[str] = set()
        for block in (block for page in PAGES for block in blocks(page) if block.what):
            if block.what != "run":
                Path(block.what.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
            elif block.text not in done:
                done.add(block.text)
                _run(block.kind, block.text)
        assert done
        yield made
    finally:
        os.chdir(before)


def _run(kind: str, text: str) -> None:
    if kind == "python":
        exec(text, {})
        return
    lines = text.replace("\\\n", " ").strip().splitlines()
    found = list(commands(text))
    assert len(found) == len(lines), "only commands of precisionlab are run"
    for words in found:
        ended = CliRunner().invoke(cli, [*words, *(FEW if words[0] == "sweep" and "--samples" not in words else [])])
        assert ended.exit_code == 0, f"{shlex.join(words)}\n{ended.output}"


@pytest.mark.slow
@pytest.mark.slow
def test_what_is_marked_to_run_runs(folder: Path) -> None:
    assert (folder / "reports/digits/report.html").is_file()


@pytest.mark.slow
def test_every_file_and_key_of_a_run_is_explained(folder: Path) -> None:
    text = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    run, plan = (json.loads((folder / "reports/digits" / name).read_text()) for name in ("run.json", "plan.fp16.json"))
    names = {path.name for path in (folder / "reports/digits").iterdir()}
    names |= _keys(run, ("data", "layers", "model", "reference"))
    names |= _keys(next(iter(run["precisions"].values())), ("verdict",))
    names |= _keys(run["reference"]["steadiness"], ())
    names |= _keys(plan, ("certificate", "held_out"))
    assert {name for name in names if f"`{name}`" not in text and f"`{name}." not in text} == set()


def _keys(facts: dict[str, Any], within: tuple[str, ...]) -> set[str]:
    return set(facts) | {key for name in within for key in facts.get(name) or ()}


def test_install_lines_name_extras_that_are_there_in_quotes_which_every_shell_takes() -> None:
    table = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = ", table, re.MULTILINE))
    named = {
        (source.name, *found)
        for source in (*PAGES, *(ROOT / "precisionlab").rglob("*.py"), ROOT / "Makefile")
        for line in re.findall(r"pip install ([^`\n]*)", source.read_text("utf-8"))
        for found in re.findall(r"(.?)(?:precisionlab|\.)\[([\w,-]+)\](.?)", line)
    }
    assert {row for row in named if (row[1], row[3]) != ('"', '"')} == set()
    assert {extra for row in named for extra in row[2].split(",")} - extras == set()
    assert {"tensorrt-cu12", "tensorrt-cu13", "jetson", "dask"} <= {row[2] for row in named}
