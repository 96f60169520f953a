"""What a command shows on its way, and how it helps to type it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import onnx
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from models import DIGITS, proto

from precisionlab.cli import cli
from precisionlab.cli.help import SECTIONS, Command
from precisionlab.jobs.sweep import sweep
from precisionlab.system.runlog import RUN_LOG

MODEL = "(float[1,4] x) => (float[1,4] y) { t = Tanh(x) y = Softmax(t) }"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A sweep of a small model, ready to be typed; it ends with 1 where nobody asked for random inputs."""
    monkeypatch.chdir(tmp_path)
    onnx.save(proto(MODEL), tmp_path / "model.onnx")
    return ("sweep", "model.onnx", "--random", "--precisions", "fp16", "--backend", "onnxruntime")


def test_quietly_there_is_the_result_and_nothing_of_the_way(swept: tuple[str, ...]) -> None:
    plain, quiet = run(*swept), run(*swept, "--out", "other", "-q")
    assert plain.exit_code == quiet.exit_code == 0
    assert "fp16 (8 samples)" in plain.stderr
    assert quiet.stderr == ""
    assert "fp16" in quiet.stdout


def test_an_error_is_told_quietly_too(swept: tuple[str, ...]) -> None:
    result = run(*swept, "-q", "--precisions", "fp61")
    assert result.exit_code == 2
    assert "unknown precision 'fp61' (did you mean 'fp16'?); use one of" in result.stderr


def test_verbosely_each_line_has_its_time_in_a_terminal_too(
    swept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run(*swept, "-v")
    assert re.search(r"^ +[0-9]+\.[0-9] s  fp16 \(8 samples\)", result.stderr, re.MULTILINE)
    assert "\x1b[2K" not in result.stderr


def test_nothing_and_everything_cannot_be_asked_for_together(swept: tuple[str, ...]) -> None:
    result = run(*swept, "-q", "-v")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


def test_what_all_tables_of_layers_are_ordered_by_is_said_once(swept: tuple[str, ...]) -> None:
    result = run(*swept, "--precisions", "fp16,bf16")
    assert result.stdout.count("worst layers in") == 2
    assert result.stdout.count("order: ") == 1


def test_below_the_worst_layers_stands_how_many_make_the_error(swept: tuple[str, ...]) -> None:
    result = run(*swept, "--tolerance", "sqnr>=90")
    assert re.search(r"^[12] of 2 layers makes? 90 % of the error, by what each does alone$", result.stdout, re.M)
    assert "90 %" not in run(*swept, "--out", "right").stdout, "not measured where no pin was needed"


# The run's log


def test_a_run_keeps_what_it_told_with_the_time_and_one_that_goes_on_adds_to_it(swept: tuple[str, ...]) -> None:
    assert run(*swept, "-q").exit_code == 0
    log = Path("reports/model") / RUN_LOG
    first = log.read_text().splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S.*", line) for line in first)
    assert [line for line in first if line.endswith("  fp16 (8 samples)")]
    assert run(*swept, "-q").exit_code == 0
    assert log.read_text().splitlines()[: len(first)] == first
    assert "taken from the journal" in log.read_text()


def test_each_plan_of_a_search_stands_in_the_log(tmp_path: Path) -> None:
    sweep(DIGITS / "digits.onnx", DIGITS, precisions="fp16", repair=False, samples=4, out=tmp_path)
    assert re.search(r"  4 pins: sqnr [0-9.]+: holds; best so far 4 pins\n", (tmp_path / RUN_LOG).read_text())


def test_a_log_that_is_a_link_is_not_followed_and_ends_nothing(swept: tuple[str, ...], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    folder = tmp_path / "reports" / "model"
    folder.mkdir(parents=True)
    (folder / RUN_LOG).symlink_to(elsewhere)
    assert run(*swept).exit_code == 0
    assert elsewhere.read_text() == "mine"


# Help


def test_every_command_is_summed_up_in_a_line_of_80_columns() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["--help"])
    listed = result.stdout.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(cli.commands)
    assert not [line for line in listed if len(line) > 80 or line.endswith("...")]


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        (name, typed)
        for name, command in cli.commands.items()
        if isinstance(command, Command)
        for typed in command.examples
    ],
)
def test_every_example_in_the_help_is_one_that_the_command_takes(name: str, typed: str) -> None:
    command = cli.commands[name]
    context = command.make_context(name, shlex.split(typed))
    assert f"precisionlab {name} {typed}".rstrip() in command.get_help(context)


def test_options_stand_in_sections_each_once() -> None:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli, ["sweep", "--help"])
    assert [title for title in SECTIONS if f"\n{title}:\n" in result.stdout] == list(SECTIONS)
    for parameter in cli.commands["sweep"].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert len(re.findall(rf"^  (?:-\w, )?{parameter.opts[-1]}\b", result.stdout, re.MULTILINE)) == 1


def completed(command: str, *arguments: str) -> list[str]:
    shell = ShellComplete(cli, {}, "precisionlab", "_PRECISIONLAB_COMPLETE")
    return [item.value for item in shell.get_completions([command, *arguments[:-1]], arguments[-1])]


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (("--precisions", "fp16,i"), ["fp16,int8", "fp16,int4"]),
        (("--backend", "tensorrt"), ["tensorrt", "tensorrt-rtx"]),
        (("--backend", "a"), ["auto"]),
        (("--minimize", ""), ["pins", "cost"]),
        (("--sums", "half"), ["half", "half-single"]),
        (("--calibration", "m"), ["mse", "max"]),
        (("--target", "l"), ["l4"]),
        (("--tolerance", "metric"), ["metric", "metric_drop"]),
        (("--layers", "x"), []),
    ],
)
def test_a_shell_completes_what_an_option_takes(arguments: tuple[str, str], values: list[str]) -> None:
    assert completed("sweep", *arguments) == values
