"""`repair` makes a model right in half without a pin, and gives what the original gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from models import Array, proto

from precisionlab.cli import cli
from precisionlab.errors import ModelError, OptionError
from precisionlab.jobs.repair import repair
from precisionlab.jobs.sweep import sweep

RMS = """(float[4, 32] x) => (float[4, 8] y) {
    h = MatMul(x, w)
    sq = Mul(h, h)
    ms = ReduceMean <axes = [-1]> (sq)
    me = Add(ms, eps)
    rt = Sqrt(me)
    hn = Div(h, rt)
    y = MatMul(hn, w2)
}"""


def weights(scale: float) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "w": (rng.standard_normal((32, 32)) * scale).astype(np.float32),
        "w2": (rng.standard_normal((32, 8)) * 0.2).astype(np.float32),
        "eps": np.float32(1e-5),
    }


def made(folder: Path, body: str, weights: dict[str, Array], count: int = 8) -> tuple[Path, Path]:
    """A model and its samples."""
    path, data = folder / "model.onnx", folder / "data"
    onnx.save_model(proto(body, weights), path)
    data.mkdir()
    for number in range(count):
        sample = np.random.default_rng(number).standard_normal((4, 32)).astype(np.float32)
        np.save(data / f"{number}.npy", sample)
    return path, data


@pytest.fixture
def breaking(tmp_path: Path) -> tuple[Path, Path]:
    """An RMSNorm whose squares leave half."""
    return made(tmp_path, RMS, weights(400))


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["repair", *map(str, args)], catch_exceptions=False)


def test_a_model_that_breaks_is_right_without_a_pin_and_gives_the_same_bits(
    breaking: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = breaking
    found = repair(model, data, out=tmp_path / "fixed.onnx", threads=1)

    assert found.met
    assert not found.before.met
    assert found.same is not None
    assert found.same.is_bitwise
    assert [one.kind for one in found.found.repairs] == ["scale_sum_of_squares"]
    was, now = (onnxruntime.InferenceSession(str(path)) for path in (model, found.file))
    for file in data.iterdir():
        feed = {"x": np.load(file)}
        assert np.array_equal(was.run(None, feed)[0], now.run(None, feed)[0])


def test_a_sweep_of_the_repaired_model_needs_no_pin_and_has_the_figure_that_repair_told(
    breaking: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = breaking
    found = repair(model, data, out=tmp_path / "fixed.onnx", threads=1)
    assert found.file is not None

    swept = sweep(found.file, data, precisions="fp16", backend="onnxruntime", out=tmp_path / "run", threads=1)

    assert swept.met
    assert swept.plans["fp16"].pins == ()
    (result,) = swept.precisions
    assert result.mixed.tolerance[0].of(result.mixed.comparison) == found.after.values["sqnr"]


def test_the_command_says_what_it_did_and_exits_with_0(breaking: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = breaking
    done = command(model, "--data", data, "--out", tmp_path / "fixed.onnx", "--threads", "1")

    assert done.exit_code == 0
    assert "right with 1 repair, without a pin (sqnr>=30)" in " ".join(done.stdout.split())
    assert "bit for bit" in done.stdout


def test_what_is_right_as_it_is_is_not_rewritten(tmp_path: Path) -> None:
    model, data = made(tmp_path, RMS, weights(1))
    done = command(model, "--data", data, "--out", tmp_path / "fixed.onnx", "--threads", "1")

    assert done.exit_code == 0
    assert "right as it is" in done.stdout
    assert not (tmp_path / "fixed.onnx").exists()


def test_where_no_repair_helps_nothing_is_written_and_the_command_exits_with_1(tmp_path: Path) -> None:
    body = "(float[4, 32] x) => (float[4, 32] y) { h = Mul(x, k)  e = Exp(h)  y = Log(e) }"
    model, data = made(tmp_path, body, {"k": np.float32(12)})
    done = command(model, "--data", data, "--out", tmp_path / "fixed.onnx", "--threads", "1")

    assert done.exit_code == 1
    assert "no repair helps" in done.stdout
    assert "overflow" in done.stdout
    assert not (tmp_path / "fixed.onnx").exists()


def test_the_model_itself_is_not_overwritten(breaking: tuple[Path, Path]) -> None:
    model, data = breaking
    with pytest.raises(OptionError, match="is the model itself"):
        repair(model, data, out=model)


def test_a_model_that_computes_in_half_itself_is_refused(tmp_path: Path) -> None:
    body = "h = Cast <to = 10> (x) s = Mul(h, h) y = Cast <to = 1> (s)"
    model, data = made(tmp_path, f"(float[4, 32] x) => (float[4, 32] y) {{ {body} }}", {})
    with pytest.raises(ModelError, match="computes in half itself"):
        repair(model, data, out=tmp_path / "fixed.onnx")


def test_a_sweep_repairs_what_a_quantised_model_leaves_in_float(tmp_path: Path) -> None:
    body = RMS.replace("h = MatMul(x, w)", "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) h = MatMul(d, w)")
    model, data = made(tmp_path, body, {**weights(400), "s": np.float32(0.03), "z": np.int8(0)}, count=2)
    options = {"precisions": "fp16", "backend": "onnxruntime", "out": tmp_path / "run", "threads": 1}
    (found,) = sweep(model, data, **options).precisions  # type: ignore[arg-type]
    assert [one.kind for one in found.plan.repairs] == ["scale_sum_of_squares"]
    assert found.plan.pins == ()
    assert found.met


def test_layers_around_are_for_int8_alone(breaking: tuple[Path, Path]) -> None:
    model, data = breaking
    with pytest.raises(OptionError, match="around fp16: is for quantized precisions"):
        repair(model, data, around="fp16")


def test_a_sweep_that_leaves_the_graph_alone_says_which_repairs_apply_and_that_none_was_tried(
    breaking: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = breaking
    options = ["sweep", model, "--data", data, "--precisions", "fp16", "--backend", "onnxruntime"]
    options.append("--no-repair")
    done = CliRunner().invoke(cli, [*map(str, options), "--out", str(tmp_path / "run")], catch_exceptions=False)

    assert done.exit_code == 0
    assert "a repair may do without pins; none was tried" in done.stdout
    assert f"precisionlab repair {model} --data {data} --precision fp16 --tolerance 'sqnr>=30'" in done.stdout
    for name in ("summary.md", "report.html"):
        assert "scale_sum_of_squares at node_of_sq" in (tmp_path / "run" / name).read_text().replace("\\_", "_")


MASKED = """(float[4, 8] x, float[4, 8] m) => (float[4, 8] y) {
    far = Mul(m, least)
    s = Add(x, far)
    y = Softmax(s)
}"""


def masked(folder: Path, rows: int) -> tuple[Path, Path]:
    """A softmax with a mask of −3.4e38, and samples in which so many rows are masked as a whole."""
    path, data = folder / "model.onnx", folder / "data"
    onnx.save_model(proto(MASKED, {"least": np.float32(-3.4e38)}), path)
    data.mkdir()
    for number in range(8):
        mask = np.triu(np.ones((4, 8), np.float32), 4)
        mask[:rows] = 1
        x = np.random.default_rng(number).standard_normal((4, 8)).astype(np.float32)
        np.savez(data / f"{number}.npz", x=x, m=mask)
    return path, data


def test_a_mask_is_not_repaired_where_a_row_is_masked_as_a_whole_and_nothing_dies_of_it(tmp_path: Path) -> None:
    model, data = masked(tmp_path, rows=1)
    done = command(model, "--data", data, "--out", tmp_path / "fixed.onnx", "--threads", "1")
    swept = sweep(model, data, precisions="fp16", backend="onnxruntime", out=tmp_path / "run", threads=1)

    assert done.exit_code == 0
    assert "clamped, as TensorRT's builder does; no repair makes it right where they are not" in " ".join(
        done.stdout.split()
    )
    assert not (tmp_path / "fixed.onnx").exists()
    assert swept.plans["fp16"].repairs == ()


def test_a_mask_is_repaired_where_no_row_is_masked_as_a_whole(tmp_path: Path) -> None:
    model, data = masked(tmp_path, rows=0)
    found = repair(model, data, out=tmp_path / "fixed.onnx", threads=1)

    assert [one.kind for one in found.found.repairs] == ["clamp_constant"]
    assert found.same is not None
    assert found.same.is_bitwise


def test_a_repair_that_only_constants_not_clamped_need_is_proven_by_them_and_everything_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = masked(tmp_path, rows=0)
    swept = CliRunner().invoke(cli, ["sweep", str(model), "--data", str(data), "--precisions", "fp16", "--out", "run"])
    plan = json.loads(Path("run/plan.json").read_text())["certificate"]
    (left_out,) = plan["repairs"]
    assert left_out["constants"] == "rounded"
    assert not left_out["met"]
    assert plan["proven"]
    words = " ".join(swept.stdout.split())
    assert "with any one repair left out, sqnr>=30 holds only as TensorRT clamps constants" in words
    assert "with it left out, the tolerance holds only as TensorRT clamps" in Path("run/summary.md").read_text()
    assert "where constants are not clamped: as TensorRT clamps them" in Path("run/report.html").read_text()

    verified = " ".join(CliRunner().invoke(cli, ["verify", "run/plan.json"]).stdout.split())
    assert "or right only as TensorRT clamps constants" in verified


@pytest.mark.thorough
def test_of_plans_with_as_many_pins_the_one_is_taken_that_hangs_on_no_clamped_constant(tmp_path: Path) -> None:
    model, data = masked(tmp_path, rows=0)
    body = MASKED.replace("float[4, 8] y)", "float[4, 8] y, float[4, 8] z)").replace(
        "\n}", " h = Mul(x, k) e = Exp(h) z = Log(e) }"
    )
    onnx.save_model(proto(body, {"least": np.float32(-3.4e38), "k": np.float32(12)}), model)
    (found,) = sweep(model, data, precisions="fp16", backend="onnxruntime", out=tmp_path / "run", threads=1).precisions

    assert found.met
    assert found.plan.pins
    assert [one.kind for one in found.plan.repairs] == ["clamp_constant"]
    assert not found.mixed.refuted


def test_an_output_that_half_cannot_hold_is_told(tmp_path: Path) -> None:
    body = "(float[4, 32] x) => (float[4, 32] y) { y = Mul(x, k) }"
    model, data = made(tmp_path, body, {"k": np.float32(1e6)})
    done = command(model, "--data", data, "--out", tmp_path / "fixed.onnx", "--threads", "1")

    assert done.exit_code == 1
    assert "output y: float32 itself gives up to" in done.stderr
