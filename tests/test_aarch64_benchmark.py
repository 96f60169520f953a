"""What `benchmarks.aarch64` says of two machines' results, and how it goes on where it was ended."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.aarch64 import half, job, kernels, tables


def cache(path: Path, **scales: float) -> Path:
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    path.write_text("\n".join(["TRT-101601-EntropyCalibration2", *lines]) + "\n")
    return path


def typed(path: Path, **constants: np.ndarray) -> Path:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    node = onnx.helper.make_node("Add", list(constants)[:2], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], tensors)), path)
    return path


def test_caches_are_compared_line_by_line(tmp_path: Path) -> None:
    first = cache(tmp_path / "a", **{"x": 1.0, "y": 0.5})
    assert tables._caches(first, first) == "2 of 2 | 0"
    assert tables._caches(first, cache(tmp_path / "b", **{"x": 1.0, "y": 0.75})) == "1 of 2 | 0.5"
    assert "other tensors" in tables._caches(first, cache(tmp_path / "c", x=1.0))


def test_typed_models_are_the_same_bytes_or_it_is_said_what_differs(tmp_path: Path) -> None:
    weight, scale = np.arange(4, dtype=np.int8), np.float32(0.5)
    first = typed(tmp_path / "a", w=weight, s=np.asarray(scale))
    assert tables._typed(first, typed(tmp_path / "b", w=weight, s=np.asarray(scale))) == "same bytes"
    off = tables._typed(first, typed(tmp_path / "c", w=weight, s=np.asarray(np.float32(0.505))))
    assert off == "1 of 2 constants differ, all scales, by 0.01 at most"
    assert "weights among them" in tables._typed(first, typed(tmp_path / "d", w=weight + 1, s=np.asarray(scale)))


def test_loops_that_give_other_bytes_on_one_machine_are_named(tmp_path: Path) -> None:
    for name, digest in zip(tables.NAMES, ("0123456789abcdef", "fedcba9876543210"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernels.log").write_text(f"a warning\n{digest} error sums\n0000000000000000 histogram\n")
        (tmp_path / name / "kernels").touch()
    said = list(tables.tables(tmp_path))
    assert "| error sums | **no** |" in said
    assert "| histogram | yes |" in said


def sweep(place: Path, sqnr: float, own: float, pins: tuple[str, ...]) -> None:
    (place / "sweep").mkdir(parents=True)
    (place / "swept").touch()
    variants = f"variant,precision,sqnr_db,verdict,part_of\nfp16,fp16,-inf,NOT met,\nfp16 mixed,fp16,{sqnr},met,\n"
    (place / "sweep" / "variants.csv").write_text(variants)
    layers = f"precision,layer,introduced_sqnr_db,inherited_sqnr_db\nfp16,a,{own},{own}\nfp16,b,-inf,-inf\nint8,a,1,1\n"
    (place / "sweep" / "layers.csv").write_text(layers)
    plan = {"pins": [{"layer": name, "precision": "fp32"} for name in pins]}
    (place / "sweep" / "plan.json").write_text(json.dumps(plan))


def test_sweeps_are_told_by_figures_verdicts_and_pins(tmp_path: Path) -> None:
    (tmp_path / tables.NAMES[0] / "m").mkdir(parents=True)
    (tmp_path / tables.NAMES[0] / "m" / "calibrated").touch()
    sweep(tmp_path / tables.NAMES[0] / "m", 60.5, 70, ("a",))
    sweep(tmp_path / tables.NAMES[1] / "m", 60.75, 70.25, ("b",))
    assert list(tables.tables(tmp_path))[2:4] == [
        "| m | fp16 | −∞ / −∞ | NOT met | 0, the same | own 0.250 dB; so far 0.250 dB |",
        "| m | fp16 mixed | 60.500 / 60.750 | met | **1 / 1** |  |",
    ]


def test_loops_are_hashed_alike_twice_and_every_size_counts() -> None:
    first = kernels._hash(*(kernels._errors(*kernels._odd(size)) for size in kernels.SIZES))
    assert first == kernels._hash(*(kernels._errors(*kernels._odd(size)) for size in kernels.SIZES))
    assert first != kernels._hash(*(kernels._errors(*kernels._odd(size)) for size in kernels.SIZES[:-1]))


def test_models_with_half_inside_are_written_alike_twice(tmp_path: Path) -> None:
    names = half.write_models(tmp_path / "a")
    assert names == half.write_models(tmp_path / "b")
    for name in names:
        files = sorted(
            path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / name).rglob("*") if path.is_file()
        )
        assert len(files) == 1 + half.SAMPLES
        assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_steps_that_are_done_are_not_done_again_and_one_that_fails_ends_none(tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text("print('said')")
    (tmp_path / "fails.py").write_text("raise SystemExit(2)")
    steps = [job.Step(str(tmp_path / "results" / name), (name,)) for name in ("fails", "said")]
    job.write_steps(steps, tmp_path / "steps.json")
    command = [sys.executable, "-m", "benchmarks.aarch64.job", str(tmp_path / "steps.json")]
    root = Path(__file__).parents[1]
    for told in (["fails", "said"], ["fails"]):
        environment = {"PYTHONPATH": f"{root}:{tmp_path}", "PATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        assert [line.rsplit(" ", 1)[-1] for line in done.stdout.splitlines()] == told
    assert (tmp_path / "results" / "said.log").read_text() == "said\n"
    assert json.loads((tmp_path / "results" / "said").read_text())["code"] == 0
    assert not (tmp_path / "results" / "fails").exists()
