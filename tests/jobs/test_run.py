"""What a run leaves on disk, files, journal and plans, is whole or not there, and is read back as it was written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, examples, proto

from precisionlab.errors import OptionError, PlanError
from precisionlab.evaluate.run_folder import RunFolder
from precisionlab.jobs.sweep import sweep
from precisionlab.plan.file import plan_files, plan_from_dict, read_plan
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.system.disk import write_whole

# Files


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CONTEXT = {"model": "abc", "samples": ["a", "b"]}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_on_the_way_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), broken)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert inside(tmp_path) == ["plan.json"]


def test_what_is_written_is_utf8_with_its_line_ends_and_readable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_whole(path, "−∞\r\nÄ\n")
    assert path.read_bytes() == "−∞\r\nÄ\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_path_that_is_not_utf8_is_written_as_json_has_it(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, json.dumps({"path": os.fsdecode(b"\xff.onnx")}, ensure_ascii=False))
    assert os.fsencode(json.loads(path.read_text(encoding="utf-8"))["path"]) == b"\xff.onnx"


# The journal

ENTRIES = [({"pins": {"a": "fp32"}}, {"sqnr": 1.5}), ({"pins": {}}, [math.nan, -math.inf]), ({"verify": True}, "−∞")]


def opened(path: Path, context: Mapping[str, Any] = CONTEXT, warn: Callable[[str], None] = lambda _: None) -> RunFolder:
    return RunFolder(path, context, warn)


def folder_with_entries(path: Path, context: Mapping[str, Any] = CONTEXT) -> RunFolder:
    run = opened(path, context)
    for key, value in ENTRIES:
        run.record(key, value)
    return run


def found(run: RunFolder) -> list[Any]:
    return [run.known(key) for key, _ in ENTRIES]


def test_a_run_that_goes_on_knows_what_was_recorded(tmp_path: Path) -> None:
    folder_with_entries(tmp_path / "run")
    again = opened(tmp_path / "run", dict(reversed(CONTEXT.items())))  # the order of keys says nothing
    assert repr(found(again)) == repr([value for _, value in ENTRIES])
    assert again.known({"verify": True, "pins": {}}) is None


def test_another_context_starts_afresh(tmp_path: Path) -> None:
    folder_with_entries(tmp_path)
    other = opened(tmp_path, {**CONTEXT, "model": "abd"})
    assert found(other) == [None] * 3
    other.record({"pins": {}}, 1)
    assert opened(tmp_path, {**CONTEXT, "model": "abd"}).known({"pins": {}}) == 1
    assert found(opened(tmp_path, CONTEXT)) == [None] * 3, "what another context has written over is gone"


@settings(max_examples=examples(40))
@given(st.data())
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    folder_with_entries(folder)
    journal = folder / "journal.jsonl"
    content = journal.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    journal.write_bytes(content[:at])
    whole = max(0, content[:at].count(b"\n") - 1)  # the first line is the context
    run = opened(folder, CONTEXT)
    expected = [value for _, value in ENTRIES[:whole]] + [None] * (len(ENTRIES) - whole)
    assert repr(found(run)) == repr(expected)
    for key, value in ENTRIES[whole:]:
        run.record(key, value)
    assert journal.read_bytes() == content


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\x00", b'{"key": 1', b"null\n[]\n3\n", b'{"key": "without value"}\n', b"\n\n"]
)
def test_a_damaged_line_is_dropped_and_the_others_stay(tmp_path: Path, damage: bytes) -> None:
    folder_with_entries(tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + damage)
    run = opened(tmp_path, CONTEXT)
    assert repr(found(run)) == repr([value for _, value in ENTRIES])
    run.record({"new": 1}, 2)
    assert opened(tmp_path, CONTEXT).known({"new": 1}) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"sqnr": 1.5', b'"sqnr": 9.5'),
        (b'"sqnr": 1.5', b'"sqnr": "1.5"'),
        (b'"sqnr": 1.5', b'"sqnr": ' + b"9" * 400),
        (b'"sha256": "', b'"sha256": "0'),
        (b'{"key": "', b'{"key": "0'),
        (b', "sha256"', b', "more": 1, "sha256"'),
    ],
)
def test_an_edited_line_is_dropped_and_told_and_the_others_stay(tmp_path: Path, old: bytes, new: bytes) -> None:
    folder_with_entries(tmp_path)
    journal = tmp_path / "journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content.replace(old, new, 1))
    told: list[str] = []
    run = opened(tmp_path, CONTEXT, told.append)
    assert repr(found(run)) == repr([None, *(value for _, value in ENTRIES[1:])])
    (text,) = told
    assert text == f"{journal}: 1 line not as precisionlab wrote it; what it said is measured again"
    run.record(*ENTRIES[0])
    assert sorted(journal.read_bytes().splitlines()) == sorted(content.splitlines())
    opened(tmp_path, CONTEXT, told.append)
    assert len(told) == 1, "a journal that is as it was written needs no word"


def test_lines_of_another_journal_are_not_taken(tmp_path: Path) -> None:
    """The digest is of the context too: what was measured of another model does not fit."""
    folder_with_entries(tmp_path / "a", {**CONTEXT, "model": "other"})
    folder_with_entries(tmp_path / "b")
    other = (tmp_path / "a" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    own = (tmp_path / "b" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b" / "journal.jsonl").write_bytes(own[0] + b"".join(other[1:]))
    assert found(opened(tmp_path / "b")) == [None] * 3


def test_a_journal_without_its_context_is_not_trusted(tmp_path: Path) -> None:
    folder_with_entries(tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[1:]))
    assert found(opened(tmp_path, CONTEXT)) == [None] * 3


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/run"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match=r"cannot be written .*choose another folder with --out"):
        opened(tmp_path / place, CONTEXT)


def test_a_disk_that_is_full_later_is_one_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder_with_entries(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match="No space left on device"):
        run.record({"new": 1}, 2)
    with pytest.raises(OptionError, match="No space left on device"):
        run.write("plan.json", "{}")


def test_discarding_removes_what_the_run_has_made_and_no_more(tmp_path: Path) -> None:
    folder_with_entries(tmp_path / "reports" / "model").discard()
    assert inside(tmp_path) == []
    folder_with_entries(tmp_path / "mine")
    opened(tmp_path / "mine", CONTEXT).discard()
    assert repr(found(opened(tmp_path / "mine", CONTEXT))) == repr([value for _, value in ENTRIES])
    beside = opened(tmp_path / "reports" / "model", CONTEXT)
    (tmp_path / "reports" / "note").write_text("somebody else's")
    beside.discard()
    assert inside(tmp_path / "reports") == ["note"]


# Runs


@pytest.mark.slow
def test_a_metric_that_was_edited_is_computed_again(tmp_path: Path) -> None:
    def measured(value: float) -> float:
        (tmp_path / "own.py").write_text(f"def figure(outputs, label):\n    return {value}\n")
        metric = f"{tmp_path / 'own.py'}:figure"
        result = sweep(
            DIGITS / "digits.onnx", DIGITS, precisions="int8", samples=2, metric=metric, out=tmp_path / "run"
        )
        return float(result.variants["metric"].iloc[-1])

    assert measured(0.25) == 0.25
    assert measured(0.5) == 0.5


# Plans

SHA = "ab" * 32
LAYERS = {"conv": ("conv", "bn", "relu"), "add": ("add",), "soft": ("soft",)}
PLAN = PrecisionPlan(
    SHA,
    Precision.INT8,
    (Pin("conv", LAYERS["conv"], Precision.FP32, "−∞ dB"), Pin("soft", LAYERS["soft"], Precision.FP16, "")),
    Precision.BF16,
)


def written(folder: Path, content: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_plan_is_read_back_as_it_was(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path, PLAN.to_dict()), SHA, LAYERS) == PLAN
    assert plan_from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


floats = st.sampled_from(Precision.floats())


@given(st.sampled_from(Precision.formats()), floats, st.dictionaries(texts, st.tuples(texts, texts), max_size=5))
def test_any_plan_survives_json(default: Precision, around: Precision, pins: dict[str, tuple[str, str]]) -> None:
    plan = PrecisionPlan(
        SHA, default, tuple(Pin(n, (n, node), Precision.FP32, r) for n, (node, r) in pins.items()), around
    )
    assert plan_from_dict(json.loads(json.dumps(plan.to_dict(), ensure_ascii=False))) == plan


def test_pins_are_matched_by_node_names_and_a_node_pins_its_whole_layer(tmp_path: Path) -> None:
    """Layers are this version's grouping; the nodes are the model's own, and what people write by hand."""
    short = {"schema": 1, "model": {"sha256": SHA}, "default": "fp16", "pins": [{"nodes": ["bn"]}, {"nodes": ["soft"]}]}
    plan = read_plan(written(tmp_path, short), SHA, LAYERS)
    assert plan.pins == (
        Pin("conv", LAYERS["conv"], Precision.FP32, ""),
        Pin("soft", LAYERS["soft"], Precision.FP32, ""),
    )
    assert plan.around is Precision.FP32


def test_a_pin_of_nodes_that_are_now_two_layers_pins_both(tmp_path: Path) -> None:
    pin = {"layer": "together", "nodes": ["relu", "add"], "reason": "grouped so once"}
    plan = read_plan(written(tmp_path, {**PLAN.to_dict(), "pins": [pin]}), SHA, LAYERS)
    assert [p.layer for p in plan.pins] == ["conv", "add"]


def test_a_node_that_is_pinned_twice_alike_is_pinned_once(tmp_path: Path) -> None:
    pins = [{"nodes": ["bn"]}, {"nodes": ["relu"]}, {"nodes": ["bn"]}]
    plan = read_plan(written(tmp_path, {**PLAN.to_dict(), "pins": pins}), SHA, LAYERS)
    assert plan.pinned() == {"conv": Precision.FP32}


def test_a_byte_order_mark_before_a_plan_does_no_harm(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path, "\ufeff" + json.dumps(PLAN.to_dict())), SHA, LAYERS) == PLAN


def test_unknown_keys_are_left_alone(tmp_path: Path) -> None:
    content = {**PLAN.to_dict(), "met": True, "with_pins": {"sqnr": "nan"}}
    assert read_plan(written(tmp_path, content), SHA, LAYERS) == PLAN


def changed(**changes: Any) -> dict[str, Any]:
    return {**PLAN.to_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\ufffe\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "a plan is a JSON object, this is a list"),
        (None, "a plan is a JSON object"),
        ({}, "schema is None, this version reads 1 and 2"),
        (changed(schema=3), "schema is 3, this version reads 1 and 2"),
        (changed(model={}), "'sha256' is missing"),
        (changed(model=None), "missing or not of the right kind"),
        (changed(model={"sha256": 3}), "`model.sha256` a string"),
        (changed(model={"sha256": "cd" * 32}), "made for another model (sha256 cdcdcdcdcdcd…, this one is abab"),
        (changed(default="fp9"), "unknown precision 'fp9' (did you mean 'fp8'?); use one of fp32, fp16, fp16-sums32"),
        (changed(around=None), "unknown precision 'None'"),
        (changed(around="int8"), "`around` is the precision of the float layers: fp32, fp16 or bf16"),
        (changed(pins=[{"nodes": ["add"]}, {"nodes": ["add"], "precision": "bf16"}]),
         "pins node 'add' to fp32 and to bf16; leave one of them"),
        (changed(pins=[{"nodes": ["conv"]}, {"nodes": ["relu"], "precision": "bf16"}]),
         "pins layer 'conv' to fp32 and to bf16; leave one of them"),
        (changed(pins={}), "`pins` must be a list"),
        (changed(pins=[{"nodes": ["add"]}, {"nodes": "soft"}]), "pins[1].nodes must be a list of node names"),
        (changed(pins=[{"nodes": []}]), "pins[0].nodes must be a list of node names"),
        (changed(pins=[{"nodes": [3]}]), "pins[0].nodes must be a list of node names"),
        (changed(pins=[{"layer": "add"}]), "pins[0] needs `nodes`"),
        (changed(pins=["add"]), "pins[0] needs `nodes`"),
        (changed(pins=[None]), "pins[0] needs `nodes`"),
        (changed(pins=[{"nodes": ["add"], "precision": "half"}]), "pins[0]: unknown precision 'half'"),
        (changed(pins=[{"nodes": ["adds"]}]), "pins node 'adds', which the model does not have"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_used_is_one_sentence_that_names_the_file(
    tmp_path: Path, content: Any, words: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(PlanError) as caught:
        read_plan(path, SHA, LAYERS)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert words in text
    assert "\n" not in text


def test_a_plan_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.json", SHA, LAYERS)
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        read_plan(tmp_path, SHA, LAYERS)
    (tmp_path / "binary").write_bytes(
        proto("(float[1] x) => (float[1] y) { y = Neg(x) }").SerializeToString() + b"\xff"
    )
    with pytest.raises(PlanError, match="not UTF-8"):
        read_plan(tmp_path / "binary", SHA, LAYERS)


def test_one_plan_is_plan_json_and_several_carry_their_precision() -> None:
    assert plan_files(["int8"]) == {"int8": "plan.json"}
    assert plan_files(["fp16", "int8"]) == {"fp16": "plan.fp16.json", "int8": "plan.int8.json"}


def test_new_pins_take_the_place_of_a_plans_own() -> None:
    assert PLAN.with_pins(iter(PLAN.pins[:1])).pinned() == {"conv": Precision.FP32}
    assert PLAN.pinned() == {"conv": Precision.FP32, "soft": Precision.FP16}


@pytest.mark.parametrize("text", ["fp16", " FP16 ", "Fp16"])
def test_a_precision_is_read_in_any_case(text: str) -> None:
    assert Precision.parse(text) is Precision.FP16
