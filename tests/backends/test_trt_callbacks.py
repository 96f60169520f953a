"""Our calibrator, listener, monitor, profiler and logger do what TensorRT's C++ expects of them, and lose no error."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from bindings.versions import ROOT, TensorRT, parameters
from models import Array
from rtx import drive, needs_rtx

from precisionlab.backends.tensorrt.calibrator import check_calibration_inputs, make_calibrator
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.monitor import TOTAL, Phases
from precisionlab.errors import DataError
from precisionlab.model.graph import TensorInfo

DRIVER = ROOT / "tests" / "bindings" / "callbacks.py"

weakly_typed = parameters(lambda tested: not tested.is_strong)
every_version = parameters()
with_monitor = parameters(lambda tested: not tested.is_old)


@cache
def driven(version: TensorRT, folder: Path) -> dict[str, Any]:
    """What came out of the vtables of this version, in one process; with `log`, what the logger wrote."""
    log = folder / f"{version}.log"
    found: dict[str, Any] = json.loads(version.run(DRIVER, version.module, log))
    assert found["version"] == version.version
    return {**found, "log": log.read_text("utf-8")}


@pytest.fixture(scope="session")
def seen_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Version → what came out of its vtables."""
    folder = tmp_path_factory.mktemp("callbacks")
    return lambda version: driven(version, folder)


END = [False, [None, None]]


class TestCalibrator:
    @pytest.mark.parametrize("version", weakly_typed)
    def test_tensorrt_gets_the_samples_addresses_until_they_end(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)["calibrator"]["all"]
        assert found["seen"] == [[True, [0x1000, 0x2000]], [True, [0x3000, 0x7FFF00004000]], END, END]
        assert found["asked"] == [["image", "a: b"]] * 3  # not again after the end
        assert found["batches"] == 2
        assert found["kept"] is None
        assert found["cache"] is None

    @pytest.mark.parametrize("version", weakly_typed)
    def test_an_exception_ends_the_data_and_is_raised_after_the_build(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)["calibrator"]
        assert found["raises"]["seen"] == [[True, [0x1000, 0x2000]], END, END]
        assert len(found["raises"]["asked"]) == 2
        assert found["raises"]["kept"] == "OSError: the sample is gone"
        assert found["interrupted"]["seen"] == [END, END]
        assert found["interrupted"]["kept"] == "KeyboardInterrupt: "

    @pytest.mark.parametrize("case", ["short", "long", "empty", "null", "no addresses"])
    @pytest.mark.parametrize("version", weakly_typed)
    def test_addresses_that_do_not_fit_the_names_never_reach_tensorrt(
        self, version: TensorRT, case: str, seen_in: Any
    ) -> None:
        found = seen_in(version)["calibrator"][case]
        assert found["seen"] == [END, END]
        assert found["kept"].startswith("ValueError: ")
        assert found["batches"] == 0

    @pytest.mark.parametrize("version", weakly_typed)
    def test_a_ready_cache_is_handed_on_and_one_that_is_refused_is_an_error(
        self, version: TensorRT, seen_in: Any
    ) -> None:
        found = seen_in(version)["calibrator"]["cached"]
        assert found["back"] == "TRT-1-EntropyCalibration2\nx: 3c010a14\n"
        assert found["kept"] is None
        assert found["asked"] == [False, [None]]
        assert found["fed"] == []
        refused = f"BuildError: TensorRT {version.version} does not take the calibration cache"
        assert found["kept then"].startswith(refused)
        assert "'TRT-1-EntropyCalibration2'" in found["kept then"]

    @pytest.mark.parametrize("version", weakly_typed)
    def test_the_cache_that_tensorrt_writes_is_kept(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)["calibrator"]["cached"]
        assert found["written"] == "TRT-2-EntropyCalibration2\nx: 3c010a14\n"
        assert found["size"] == 1
        assert found["algorithm"]

    def test_a_calibrator_with_nothing_to_go_by_is_not_made(self) -> None:
        with pytest.raises(ValueError, match="a cache or samples"):
            make_calibrator(None, None, None)


class TestCalibrationInputs:
    INPUTS = (
        TensorInfo("image", ir.DataType.FLOAT, ("N", 3, "H", 4)),
        TensorInfo("ids", ir.DataType.INT64, (1, 2)),
        TensorInfo("mask", ir.DataType.BOOL, (2,)),
    )

    def check(self, **changes: Array) -> None:
        good: dict[str, Array] = {
            "image": np.zeros((2, 3, 8, 4), np.float32),
            "ids": np.zeros((1, 2), np.int64),
            "mask": np.zeros(2, np.bool_),
        }
        profiles = {"image": Profile((1, 3, 1, 4), (2, 3, 8, 4), (8, 3, 16, 4))}
        check_calibration_inputs("dog.npy", good | changes, self.INPUTS, profiles)

    def test_what_fits_the_opt_shape_and_the_models_index_types_passes(self) -> None:
        self.check()

    @pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int32])
    def test_anything_but_float32_for_a_float_input_is_refused(self, dtype: Any) -> None:
        with pytest.raises(DataError, match=rf"dog\.npy: input 'image' is {np.dtype(dtype)}; .* float32"):
            self.check(image=np.zeros((2, 3, 8, 4), dtype))

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_an_index_input_has_the_models_own_type(self, dtype: Any) -> None:
        with pytest.raises(DataError, match=rf"input 'ids' is {np.dtype(dtype)}; .* int64"):
            self.check(ids=np.zeros((1, 2), dtype))

    def test_a_float16_model_calibrates_on_float32_too(self) -> None:
        inputs = [TensorInfo("x", ir.DataType.FLOAT16, (2,))]
        check_calibration_inputs("a", {"x": np.zeros(2, np.float32)}, inputs, {})
        with pytest.raises(DataError, match="input 'x' is float16"):
            check_calibration_inputs("a", {"x": np.zeros(2, np.float16)}, inputs, {})

    def test_another_shape_than_opt_is_refused_with_both(self) -> None:
        with pytest.raises(DataError, match=r"input 'image' has shape 1x3x8x4, .* 2x3x8x4; .* or another OPT"):
            self.check(image=np.zeros((1, 3, 8, 4), np.float32))
        with pytest.raises(DataError, match=r"input 'ids' has shape 2, .* 1x2; give samples of this shape$"):
            self.check(ids=np.zeros(2, np.int64))

    def test_a_missing_input_is_named(self) -> None:
        with pytest.raises(DataError, match=r"dog\.npy: input 'mask' is missing"):
            check_calibration_inputs("dog.npy", {}, self.INPUTS[2:], {})

    def test_a_dynamic_input_without_a_profile_is_our_own_mistake(self) -> None:
        with pytest.raises(ValueError, match="'image' is dynamic"):
            check_calibration_inputs("a", {"image": np.zeros((1, 3, 1, 4), np.float32)}, self.INPUTS[:1], {})


class TestListener:
    @pytest.mark.parametrize("version", with_monitor)
    def test_tensors_come_with_name_type_shape_stream_and_values(self, version: TensorRT, seen_in: Any) -> None:
        rest = ["FLOAT", [2, 3], 77, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]
        found = seen_in(version)["listener"]
        # What follows an exception in the same run is left out, and the next run is heard again.
        assert found["seen"] == [["conv: 1", *rest], ["/层/out", *rest], ["next run", *rest]]
        assert found["kept"] == ["RuntimeError: no room left", None]

    @pytest.mark.parametrize("version", parameters(lambda tested: tested.is_old))
    def test_tensorrt_8_has_neither_a_listener_nor_a_monitor(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)
        assert (found["listener"], found["monitor"]) == (None, None)


class TestMonitor:
    @pytest.mark.parametrize("version", with_monitor)
    def test_nested_phases_become_one_progress(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)["monitor"]
        assert found["told"] == [
            ["Building engine 0/2", 0, 1000],
            ["Timing 0/2", 0, 1000],
            ["Timing 1/2", 125, 1000],
            ["Timing 2/2", 250, 1000],
            ["Building engine 1/2", 500, 1000],
            ["Building engine 2/2", 1000, 1000],
            ["Building engine", 1000, 1000],  # a step of a phase that has ended
        ]
        assert found["answers"] == [True] * 4

    @pytest.mark.parametrize("version", with_monitor)
    def test_a_cancelled_or_broken_build_is_told_to_stop_and_the_error_is_kept(
        self, version: TensorRT, seen_in: Any
    ) -> None:
        found = seen_in(version)["monitor"]
        assert found["cancelled"] is False
        assert found["after an error"] == [False, False]
        assert found["kept"] == [None, "RuntimeError: the pipe is closed", None]


class TestPhases:
    def test_progress_does_not_fall_when_a_phase_ends_late_or_early(self) -> None:
        """As TensorRT-RTX does: `inner` ends after the next step of `outer`, and `outer` before its last."""
        phases = Phases()
        figures = [
            phases.begin("outer", None, 4)[1],
            phases.step("outer", 0)[1],
            phases.begin("inner", "outer", 2)[1],
            phases.step("inner", 0)[1],
            phases.step("outer", 1)[1],
            phases.step("inner", 1)[1],
            phases.finish("inner")[1],
            phases.step("outer", 0)[1],
            phases.begin("inner", "outer", 1)[1],
            phases.finish("inner")[1],
            phases.finish("outer")[1],
        ]
        assert figures == sorted(figures)
        assert (figures[0], figures[-1]) == (0, TOTAL)
        assert figures[4] == TOTAL // 2

    def test_however_many_phases_one_step_has_they_stay_within_it(self) -> None:
        phases = Phases()
        phases.begin("outer", None, 2)
        for _ in range(100):
            phases.begin("inner", "outer", 1)
            phases.step("inner", 0)
            assert phases.finish("inner")[1] <= TOTAL // 2
        assert phases.step("outer", 0) == ("outer 1/2", TOTAL // 2)

    def test_phases_side_by_side_add_up(self) -> None:
        phases = Phases()
        phases.begin("outer", None, 1)
        phases.begin("a", "outer", 2)
        phases.begin("b", "outer", 2)
        assert phases.step("b", 1)[1] == phases.step("a", 1)[1] == 3 * TOTAL // 4

    def test_another_build_begins_at_nothing_and_unknown_phases_do_no_harm(self) -> None:
        phases = Phases()
        phases.begin("build", None, 1)
        assert phases.finish("build") == ("build", TOTAL)
        assert phases.begin("build", None, 2) == ("build 0/2", 0)
        assert phases.step("never begun", 3) == ("never begun", 0)
        assert phases.finish("never begun")[1] == 0
        assert phases.begin("orphan", "never begun", 0) == ("orphan", 0)


class TestProfiler:
    @pytest.mark.parametrize("version", every_version)
    def test_each_layer_has_its_mean_time_of_a_run(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)["profiler"]
        assert found["empty"] == {}
        assert found["runs"] == 2
        assert found["layers"] == {"in": 1.5, "conv + relu": 3.0, "out": 1.5, "branch": 2.0}
        assert list(found["layers"]) == ["in", "conv + relu", "out", "branch"]


class TestLogger:
    @pytest.mark.parametrize("version", every_version)
    def test_messages_of_each_severity_come_through(self, version: TensorRT, seen_in: Any) -> None:
        found = seen_in(version)
        assert found["logger"] == {
            "errors": ["INTERNAL_ERROR of /层/Conv", "ERROR of /层/Conv"],
            "warnings": ["WARNING of /层/Conv"],
            "tail": [
                "F INTERNAL_ERROR of /层/Conv",
                "E ERROR of /层/Conv",
                "W WARNING of /层/Conv",
                "I INFO of /层/Conv",
                "V VERBOSE of /层/Conv",
                "E ERROR of /层/Conv",
                "V Layers:\nName: a",
            ],
            "layers": "Layers:\nName: a",
        }
        written = [line.split(" ", 1)[1] for line in found["log"].splitlines()]
        assert written == [line for line in found["logger"]["tail"] if not line.startswith("V ")][:6]

    def test_errors_stay_however_many_warnings_and_lines_come(self) -> None:
        keep = LogKeeper(tail=3, most=4)
        keep.take("ERROR", "the cause")
        for i in range(1000):
            keep.take("WARNING", f"warning {i}")
            keep.take("VERBOSE", f"line {i}")
        assert keep.errors == ("the cause",)
        assert keep.warnings == ("warning 0", "warning 1", "warning 998", "warning 999")
        assert keep.tail == ("V line 998", "W warning 999", "V line 999")

    def test_a_message_without_end_is_cut_but_the_layers_are_not(self) -> None:
        keep = LogKeeper()
        keep.take("ERROR", "x" * 1_000_000)
        keep.take("VERBOSE", "Layers:\n" + "y" * 1_000_000)
        assert len(keep.errors[0]) < 20_000
        assert keep.errors[0].endswith("(990000 characters more)")
        assert keep.layers is not None
        assert len(keep.layers) > 1_000_000
        assert sum(map(len, keep.tail)) < 40_000

    def test_another_build_starts_over_in_the_same_file(self, tmp_path: Path) -> None:
        keep = LogKeeper(tmp_path / "log")
        keep.take("ERROR", "first")
        keep.take("VERBOSE", "Layers: first")
        keep.forget()
        assert (keep.errors, keep.tail, keep.layers) == ((), (), None)
        keep.take("ERROR", "second")
        keep.close()
        keep.take("ERROR", "third")
        assert keep.errors == ("second", "third")
        assert [line[9:] for line in (tmp_path / "log").read_text().splitlines()] == ["E first", "E second"]

    def test_the_file_has_the_last_line_before_a_crash(self, tmp_path: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path; from precisionlab.backends.tensorrt.logger import LogKeeper\n"
            "keep = LogKeeper(Path(sys.argv[1])); keep.take('INFO', 'before'); os.abort()"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "log")]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
        assert done.returncode < 0
        assert (tmp_path / "log").read_text().endswith(" I before\n")

    def test_what_is_not_text_does_not_end_the_log(self, tmp_path: Path) -> None:
        keep = LogKeeper(tmp_path / "log")
        keep.take("INFO", "a lone \udcff")
        keep.take("INFO", "after")
        assert [line[9:] for line in (tmp_path / "log").read_text().splitlines()] == [r"I a lone \udcff", "I after"]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
    def test_a_log_that_is_no_file_costs_the_file_alone(self) -> None:
        keep = LogKeeper(Path("/dev/full"))
        keep.take("ERROR", "first")
        keep.take("ERROR", "second")
        keep.close()
        assert keep.errors == ("first", "second")
        assert keep.warnings == (
            "TensorRT's log file cannot be written: a pipe or a device, which may never end; remove it",
        )

    def test_a_file_that_cannot_be_opened_is_a_warning(self, tmp_path: Path) -> None:
        keep = LogKeeper(tmp_path / "missing" / "log")
        keep.take("INFO", "goes on")
        assert keep.tail == ("I goes on",)
        assert keep.warnings == ("TensorRT's log file cannot be written: No such file or directory",)


@needs_rtx
def test_a_real_build_tells_its_progress_and_layers_and_can_be_stopped(tmp_path: Path) -> None:
    found = drive("callbacks", ROOT / "calib_data" / "digits.onnx", tmp_path / "log")
    whole, told = found["whole"], found["told"]
    assert whole["built"]
    assert whole["errors"] == []
    assert whole["layers"].startswith("Layers:")
    assert "[ONNX Layer: " in whole["layers"]
    done = [parts for _, parts, _ in told]
    assert done == sorted(done)
    assert done[-1] == TOTAL
    assert {total for *_, total in told} == {TOTAL}
    assert len({title.rsplit(" ", 1)[0] for title, *_ in told}) > 3
    assert not found["cancelled"]["built"]
    assert found["cancelled"]["raised"] is None
    assert any("BuildCanceled" in error for error in found["cancelled"]["errors"])
    assert found["cancelled after"] < 40
    assert not found["broken"]["built"]
    assert found["broken"]["raised"] == "the pipe is closed"
    assert " E IBuilder::buildSerializedNetwork" in found["log"]
