"""`repair` makes a model right in int8 without a pin: channels' powers of two go into weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from models import Array, proto
from rtx import needs_rtx

from precisionlab.cli import cli
from precisionlab.jobs.repair import RepairResult, repair
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify

BOUND = "sqnr>=34"
UNEVEN = """(float[4, 32] x) => (float[4, 8] y) {
    h = LayerNormalization(x, g, b)
    u = MatMul(h, w)
    v = Relu(u)
    r = Add(v, h)
    n = LayerNormalization(r, g2, b)
    y = MatMul(n, w2)
}"""


def uneven() -> dict[str, Array]:
    """A model with channels many times as large as the others, of which a residual sum takes the first too."""
    rng = np.random.default_rng(0)
    sizes = np.where(np.arange(32) % 8 == 3, 80, 1).astype(np.float32)
    return {
        "g": sizes,
        "g2": np.roll(sizes, 1),
        "b": rng.standard_normal(32).astype(np.float32),
        "w": (rng.standard_normal((32, 32)) * 0.2).astype(np.float32),
        "w2": (rng.standard_normal((32, 8)) * 0.2).astype(np.float32),
    }


def made(folder: Path, body: str, weights: dict[str, Array], count: int) -> tuple[Path, Path]:
    """A model and its samples."""
    path, data = folder / "model.onnx", folder / "data"
    onnx.save_model(proto(body, weights), path)
    data.mkdir()
    for number in range(count):
        np.save(data / f"{number:02}.npy", np.random.default_rng(number).standard_normal((4, 32)).astype(np.float32))
    return path, data


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["repair", *map(str, args)], catch_exceptions=False)


@dataclass(frozen=True)
class Repaired:
    model: Path
    data: Path
    found: RepairResult

    @property
    def file(self) -> Path:
        assert self.found.file is not None
        return self.found.file


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Repaired:
    folder = tmp_path_factory.mktemp("uneven")
    model, data = made(folder, UNEVEN, uneven(), 32)
    found = repair(model, data, precision="int8", tolerance=BOUND, out=folder / "fixed.onnx", threads=1)
    return Repaired(model, data, found)


def test_outlier_channels_are_right_without_a_pin_on_samples_that_chose_nothing_too(repaired: Repaired) -> None:
    found = repaired.found

    assert found.met
    assert not found.before.met
    assert found.held_out is not None
    assert found.held_out[1].values["sqnr"] > found.held_out[0].values["sqnr"] + 3
    assert {one.kind for one in found.found.repairs} == {"migrate_channels"}


def test_the_repaired_model_gives_the_same_bits_in_float32(repaired: Repaired) -> None:
    assert repaired.found.same is not None
    assert repaired.found.same.is_bitwise
    was, now = (onnxruntime.InferenceSession(str(path)) for path in (repaired.model, repaired.file))
    for file in repaired.data.iterdir():
        feed = {"x": np.load(file)}
        assert np.array_equal(was.run(None, feed)[0], now.run(None, feed)[0])


@pytest.mark.slow
def test_a_sweep_of_the_repaired_model_needs_no_pin(repaired: Repaired, tmp_path: Path) -> None:
    swept = sweep(
        repaired.file,
        repaired.data,
        precisions="int8",
        tolerance=BOUND,
        backend="onnxruntime",
        out=tmp_path / "run",
        threads=1,
    )

    assert swept.met
    assert swept.plans["int8"].pins == ()


@pytest.mark.slow
def test_with_fp16_around_it_is_found_as_well(tmp_path: Path) -> None:
    model, data = made(tmp_path, UNEVEN, uneven(), 8)
    found = repair(
        model, data, precision="int8", around="fp16", tolerance=BOUND, out=tmp_path / "fixed.onnx", threads=1
    )

    assert found.after.values["sqnr"] > found.before.values["sqnr"] + 3


def test_int8_that_holds_on_all_samples_is_right_as_it_is(tmp_path: Path) -> None:
    even = {**uneven(), "g": np.ones(32, np.float32), "g2": np.ones(32, np.float32)}
    model, data = made(tmp_path, UNEVEN, even, 8)
    done = command(model, "--data", data, "--precision", "int8", "--out", tmp_path / "fixed.onnx", "--threads", "1")

    assert done.exit_code == 0
    assert "int8: right as it is" in done.stdout
    assert not (tmp_path / "fixed.onnx").exists()


def test_where_no_channel_folds_int8_stays_as_it_was(tmp_path: Path) -> None:
    body = "(float[4, 32] x) => (float[4, 8] y) { h = MatMul(x, w)  t = HardSwish(h)  y = MatMul(t, w2) }"
    weights = uneven()
    model, data = made(tmp_path, body, {"w": weights["w"] * weights["g"], "w2": weights["w2"]}, 8)
    options = ("--precision", "int8", "--tolerance", "sqnr>=60", "--out", tmp_path / "fixed.onnx")
    done = command(model, "--data", data, *options)

    assert done.exit_code == 1
    assert "no repair helps" in done.stdout
    assert not (tmp_path / "fixed.onnx").exists()


def test_a_sweep_scales_channels_before_it_pins_and_proves_all_of_them_together(
    repaired: Repaired, tmp_path: Path
) -> None:
    options = {"precisions": "int8", "tolerance": BOUND, "threads": 1}
    swept = sweep(repaired.model, repaired.data, out=tmp_path / "run", **options)
    pinned = sweep(repaired.model, repaired.data, out=tmp_path / "pinned", repair=False, **options)
    (found,), (without,) = swept.precisions, pinned.precisions

    assert found.met
    assert found.plan.pins == ()
    assert len(without.plan.pins) > 0
    assert {repair.kind for repair in found.plan.repairs} == {"migrate_channels"}
    assert found.repaired is not None
    assert found.repaired.same.is_bitwise
    assert found.certificate is not None
    assert found.certificate.proven
    assert {release.together for release in found.certificate.repairs} == {len(found.plan.repairs)}
    again = verify(tmp_path / "run" / "plan.json", threads=1)
    assert again.holds
    assert again.certificate.to_dict() == found.certificate.to_dict()


@needs_rtx
@pytest.mark.thorough
def test_where_engines_are_compiled_each_has_the_ranges_of_its_own_model(repaired: Repaired, tmp_path: Path) -> None:
    options = {"precisions": "int8", "tolerance": BOUND, "backend": "tensorrt-rtx", "target": "l4", "threads": 1}
    found = sweep(repaired.model, repaired.data, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    (result,) = found.precisions
    assert any(repair.conditions for repair in result.plan.repairs)  # a normalisation is computed twice
    assert [one.refused for one in result.compiled] == ["", ""]

    again = sweep(
        repaired.model, repaired.data, plan=tmp_path / "run" / "plan.json", out=tmp_path / "again",
        backend="tensorrt-rtx", target="l4", threads=1,
    )  # fmt: skip
    assert [one.refused for one in again.precisions[0].compiled] == ["", ""]
