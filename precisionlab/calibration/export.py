"""A calibration table in ONNX Runtime's own formats, under the file names that its tools look for.

Sources: `onnxruntime/quantization/quant_utils.py`, `write_calibration_table`, which writes all three files;
`calibrate.py`, `save_tensors_data` and `load_tensors_data`, for the JSON; and `ReadDynamicRange` in
`onnxruntime/core/providers/tensorrt/tensorrt_execution_provider_utils.h`, which reads the flatbuffer.

- `calibration.flatbuffers` is what the TensorRT execution provider reads (`trt_int8_calibration_table_name`): pairs of
  tensor name and largest |x|, the latter as text, that `std::stof` reads.
- `calibration.json` is what `quantize_static(…, calibration_cache_path=…)` takes, instead of calibrating, to make
  a Q/DQ model. It wants `calibrate_method=MinMax`, the default, because ranges are then taken as they stand.
- `calibration.cache` is the same pairs as text, for people: no program reads it.

The execution provider also reads TensorRT's own cache (`trt_int8_use_native_calibration_table`), but
splits its lines at the first colon, not the last: tensors with a colon in their name lose their range there, and do not
in the flatbuffer. ONNX Runtime itself writes max(lowest, highest), which is too small a range for a tensor whose
largest |x| is negative; here it is |x|.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from precisionlab.calibration.cache import CacheError
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.system.disk import why_not_written, write_whole_bytes


def onnxruntime_json(table: CalibrationTable) -> str:
    """`calibration.json`; `onnxruntime.quantization.load_tensors_data` reads it back."""
    return json.dumps(
        {
            "CLS": "TensorsData",
            "data": {
                name: {"lowest": _number(-_amax(found)), "highest": _number(_amax(found)), "CLS": "TensorData"}
                for name, found in table.ranges.items()
                if not found.is_empty
            },
            "calibration_method": {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"},
            "smooth_quant": False,
        }
    )


def onnxruntime_text(table: CalibrationTable) -> str:
    """`calibration.cache`: `tensor name`, a space and the largest |x| a line, sorted by name."""
    return "".join(f"{name} {_amax(table.ranges[name])}\n" for name in sorted(table.scales))


def onnxruntime_flatbuffer(table: CalibrationTable) -> bytes:
    """`calibration.flatbuffers`: TrtTable { dict: [KeyValue] }, KeyValue { key: string; value: string; }.

    Written with the flatbuffers package, which every onnxruntime requires.
    """
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1024)
    pairs = []
    for name in sorted(table.scales):
        key, value = builder.CreateString(name), builder.CreateString(str(_amax(table.ranges[name])))
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, value, 0)
        pairs.append(builder.EndObject())
    builder.StartVector(4, len(pairs), 4)
    for pair in pairs:
        builder.PrependUOffsetTRelative(pair)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def write_onnxruntime_tables(table: CalibrationTable, folder: Path) -> tuple[Path, ...]:
    """Write the three files to a folder, which is made where it is missing; returns their paths.

    Raises CacheError where they cannot be written.
    """
    tables = onnxruntime_tables(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in tables.items():
            write_whole_bytes(folder / name, content)
    except OSError as error:
        raise CacheError(why_not_written(folder, error, "choose another folder")) from None
    return tuple(folder / name for name in tables)


def onnxruntime_tables(table: CalibrationTable) -> dict[str, bytes]:
    """The content of the three files by their names."""
    return {
        "calibration.flatbuffers": onnxruntime_flatbuffer(table),
        "calibration.json": onnxruntime_json(table).encode(),
        "calibration.cache": onnxruntime_text(table).encode("utf-8", errors="backslashreplace"),
    }


def _amax(found: Range) -> float:
    """As float32, as ONNX Runtime has it; 1 for a tensor that was zero throughout, as `Range.scale` has it."""
    return float(np.float32(found.amax or 1.0))


def _number(value: float) -> dict[str, object]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}
