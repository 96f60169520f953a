"""Calibration caches: read, written, exported, checked, and the `cache` commands."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from models import Array, load, proto

from precisionlab.calibration import cache as module
from precisionlab.calibration.cache import (
    CacheError,
    CalibrationCache,
    read_cache,
    read_cache_file,
    require_entropy2,
    version_digits,
    write_cache,
)
from precisionlab.calibration.export import (
    onnxruntime_flatbuffer,
    onnxruntime_json,
    onnxruntime_text,
    write_onnxruntime_tables,
)
from precisionlab.calibration.fingerprint import (
    Fingerprint,
    fingerprint_from_json,
    fingerprint_path,
    read_fingerprint,
)
from precisionlab.calibration.lint import Finding, Severity, lint
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.cli import cli
from precisionlab.model import Model
from precisionlab.precision import Precision

HEADER = b"TRT-8601-EntropyCalibration2\n"
SUBNORMAL = 2.0**-149  # the smallest positive float32

names = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1)
positive = st.floats(SUBNORMAL, exclude_max=True, max_value=math.inf, width=32)
versions = st.sampled_from(["7.2.3", "8.2.3", "8.6.1", "10.0.1", "10.16.1.11", "10.14.1.48.post1"])


def of_bits(bits: int) -> float:
    value: float = struct.unpack(">f", bits.to_bytes(4, "big"))[0]
    return value


# Any float32 but the signalling NaNs, whose bits Python does not keep.
any_float32 = (
    st.integers(0, 2**32 - 1)
    .map(of_bits)
    .filter(lambda x: not math.isnan(x) or struct.pack(">f", x).hex() in ("7fc00000", "ffc00000"))
)


# Reading and writing


@given(st.dictionaries(names, positive), versions)
def test_what_is_written_reads_back(scales: dict[str, float], version: str) -> None:
    content = write_cache(scales, version)
    found = read_cache(content, "cache")
    assert dict(found.scales) == scales
    assert list(found.scales) == list(scales)
    assert (found.version, found.algorithm) == (version_digits(version), "EntropyCalibration2")
    assert version.startswith(found.tensorrt)
    assert found.to_bytes() == content


@given(st.dictionaries(names, any_float32), st.sampled_from(["EntropyCalibration", "MinMaxCalibration"]))
def test_any_canonical_file_comes_back_byte_for_byte(scales: dict[str, float], algorithm: str) -> None:
    lines = [f"TRT-8510-{algorithm}\n", *(f"{n}: {struct.pack('>f', s).hex()}\n" for n, s in scales.items())]
    content = "".join(lines).encode()
    assert read_cache(content, "cache").to_bytes() == content


@given(st.dictionaries(names, positive))
def test_crlf_blank_lines_and_no_last_line_end_read_alike(scales: dict[str, float]) -> None:
    content = write_cache(scales, "8.6.1")
    wanted = read_cache(content, "cache")
    assert read_cache(content.replace(b"\n", b"\r\n"), "cache") == wanted
    assert read_cache(content + b"\n \n", "cache") == wanted
    assert read_cache(content[:-1], "cache") == wanted
    assert read_cache(content[:-1].replace(b"\n", b"\r\n"), "cache") == wanted


@given(st.binary())
def test_whatever_the_bytes_it_is_a_cache_or_a_cache_error(content: bytes) -> None:
    for attempt in (content, HEADER + content):
        try:
            found = read_cache(attempt, "cache")
        except CacheError:
            continue
        assert all(isinstance(scale, float) for scale in found.scales.values())


@given(st.dictionaries(st.from_regex(r"[a-z/ ]*[a-z]:?[a-z]", fullmatch=True), positive, min_size=1))
def test_cut_anywhere_it_is_refused_or_lacks_whole_lines_only(scales: dict[str, float]) -> None:
    content = write_cache(scales, "8.6.1")
    for end in range(len(content)):
        try:
            found = read_cache(content[:end], "cache")
        except CacheError:
            continue
        assert list(found.scales.items()) == list(scales.items())[: len(found.scales)]


@given(st.dictionaries(names, st.floats() | st.integers(-(2**300), 2**300).map(float)))
def test_no_float_that_is_written_turns_into_a_bad_scale(scales: dict[str, float]) -> None:
    try:
        content = write_cache(scales, "8.6.1")
    except CacheError:
        return
    assert all(0 < scale < math.inf for scale in read_cache(content, "cache").scales.values())


def test_names_with_colons_spaces_and_unicode_are_split_at_the_last_colon() -> None:
    content = HEADER + "(Unnamed Layer* 22) [Constant]_output: 3c010204\na: b: 3F800000\n层:0:\t40000000\n".encode()
    found = read_cache(content, "cache").scales
    assert list(found) == ["(Unnamed Layer* 22) [Constant]_output", "a: b", "层:0"]
    assert list(found.values()) == pytest.approx([1 / 127, 1.0, 2.0])


def test_digits_without_leading_zeros_as_hex_writes_them() -> None:
    assert dict(read_cache(HEADER + b"zero: 0\nx: 800000\n", "cache").scales) == {"zero": 0.0, "x": 2.0**-126}


BAD = {
    "empty": (b"", 1, "expected TRT-<version>-EntropyCalibration2"),
    "another file": (b"\x08\x07\x12\x07pytorch", 1, "expected TRT-"),
    "an image": (b"\x89PNG\r\n\x1a\n", 1, "not UTF-8"),
    "header cut": (b"TRT-8601", 1, "expected TRT-"),
    "header with more": (b"TRT-8601-EntropyCalibration2 x\n", 1, "expected TRT-"),
    "byte order mark": (b"\xef\xbb\xbf" + HEADER, 1, "byte order mark"),
    "last line cut in its digits": (HEADER + b"a: 3c010a14\nb: 3c01", 3, "the last one, is 'b: 3c01': cut short"),
    "last line cut before its digits": (HEADER + b"a: 3c010a14\nb:", 3, "cut short"),
    "last line cut in its name": (HEADER + b"a: 3c010a14\nb", 3, "cut short"),
    "no digits": (HEADER + b"a: \nb: 3c010a14\n", 2, "expected `tensor name: 8 hex digits`"),
    "bad hex": (HEADER + b"a: 3c010a14\nb: 3c010g14\nc: 3c010a14\n", 3, "'b: 3c010g14'"),
    "decimal": (HEADER + b"a: 0.0078\n", 2, "8 hex digits"),
    "too many digits": (HEADER + b"a: 3c010a140\n", 2, "8 hex digits"),
    "sign": (HEADER + b"a: -3c010a1\n", 2, "8 hex digits"),
    "no colon": (HEADER + b"a 3c010a14\n", 2, "8 hex digits"),
    "no name": (HEADER + b": 3c010a14\n", 2, "8 hex digits"),
    "named twice": (HEADER + b"a: 3c010a14\nb: 3c010a14\na: 3c010a15\n", 4, "names tensor 'a' a second time"),
    "not text": (HEADER + b"a: 3c010a14\n\xff\xfe: 3c010a14\n", 3, "not UTF-8"),
    "long line": (HEADER + b"a" * 70_000 + b": 3c010a14\n", 2, "has 70010 bytes"),
}


@pytest.mark.parametrize(("content", "line", "text"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_file_and_number(content: bytes, line: int, text: str) -> None:
    for attempt in (content, content.replace(b"\n", b"\r\n")):
        with pytest.raises(CacheError, match=rf"^dir/a\.cache: line {line}\b") as caught:
            read_cache(attempt, "dir/a.cache")
        if "bytes" not in text:
            assert text in str(caught.value)
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CacheError, match=f"cannot be read: {text}"):
            read_cache_file(path)


def test_a_file_too_large_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.cache"
    with path.open("wb") as stream:
        stream.write(HEADER)
        stream.truncate(1 << 40)  # a hole: takes no space
    with pytest.raises(CacheError, match=r"large\.cache: larger than 16 MiB"):
        read_cache_file(path)
    with pytest.raises(CacheError, match="larger than 16 MiB"):
        read_cache(bytes(module.LARGEST_FILE + 1), "x")
    if os.path.exists("/dev/zero"):  # noqa: PTH110
        with pytest.raises(CacheError, match="/dev/zero: a pipe or a device, which may never end"):
            read_cache_file(Path("/dev/zero"))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-46, 3.4028236e38])
def test_a_scale_that_is_no_positive_float32_is_not_written(scale: float) -> None:
    with pytest.raises(CacheError, match=r"tensor 'b' has scale .* needs a positive float32"):
        write_cache({"a": 1.0, "b": scale}, "8.6.1")


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\0b", "\udcff"])
def test_a_name_that_the_format_cannot_hold_is_not_written(name: str) -> None:
    with pytest.raises(CacheError, match="cannot stand in a calibration cache"):
        write_cache({name: 1.0}, "8.6.1")


@pytest.mark.parametrize(
    ("version", "digits"),
    [
        *[("8.6.1", "8601"), ("8.2.3", "8203"), ("8.6", "8600"), ("10.0.1", "100001"), ("10.16.1.11", "101601")],
        *[("10.14.1.48.post1", "101401"), ("10.7.0.post1", "100700"), ("8.6.1.post1", "8601"), ("10.0.0b6", "100000")],
        *[("8.5.2-1+cuda11.4", "8502"), ("10.3.0.30-1+cuda12.5", "100300"), ("9.0.1.post12.dev4", "9001")],
    ],
)
def test_versions(version: str, digits: str) -> None:
    assert version_digits(version) == digits


@pytest.mark.parametrize(
    "version", ["", "8", "11.0.0", "11.4.0.106", "1.7.1.116", "6.0.1", "8.-6.1", "8.6.100", "8601", "1_0.0", "８.6.1"]
)
def test_versions_that_read_no_cache(version: str) -> None:
    with pytest.raises(CacheError, match="TensorRT"):
        version_digits(version)


@pytest.mark.parametrize("algorithm", ["MinMaxCalibration", "LegacyCalibration", "EntropyCalibration", "Other"])
def test_another_algorithm_is_read_and_refused_where_entropy_2_is_needed(algorithm: str) -> None:
    found = read_cache(f"TRT-8601-{algorithm}\na: 3c010a14\n".encode(), "cache")
    assert found.algorithm == algorithm
    assert found.scales
    with pytest.raises(CacheError, match=rf"^m\.cache: line 1 says {algorithm}, .*EntropyCalibration2 cache is needed"):
        require_entropy2(found, "m.cache")
    entropy = read_cache(HEADER, "cache")
    assert require_entropy2(entropy, "m.cache") is entropy


def test_a_version_that_is_no_number_is_read() -> None:
    found = read_cache(b"TRT-8XXX-EntropyCalibration2\na: 3c010a14\n", "cache")
    assert (found.version, found.tensorrt) == ("8XXX", "8XXX")


# The fingerprint

magnitudes = st.floats(0, exclude_max=True, max_value=math.inf)
counts = st.integers(0, 2**63)
ranges = st.builds(Range, magnitudes, st.text(), magnitudes, counts, counts, counts)


def fingerprint_of(cache: bytes, table: CalibrationTable, model: str = "0" * 64, **changes: Any) -> Fingerprint:
    made = Fingerprint.of(
        cache,
        table,
        model_path="model.onnx",
        model_sha256=model,
        data={"folder": "calib_data", "sha256": "1" * 64},
        method="entropy",
        tensorrt="8.6.1",
        versions={"onnxruntime": "1.32.0"},
    )
    return replace(made, **changes)


@given(st.dictionaries(st.text(), ranges), counts, st.none() | st.text())
def test_a_fingerprint_reads_back_bit_for_bit(found: dict[str, Range], samples: int, folder: str | None) -> None:
    table = CalibrationTable(found, samples)
    made = fingerprint_of(HEADER, table, data=folder, skipped=3)
    again = fingerprint_from_json(made.to_json(), "x.json")
    assert again == made
    assert again.table == table
    assert list(again.ranges) == list(found)
    assert fingerprint_from_json(made.to_json().encode("utf-8-sig"), "x.json") == made


def test_a_fingerprint_is_readable_json() -> None:
    table = CalibrationTable({"x": Range(127.0, "entropy", 200.0, 10, 1, 2)}, 64)
    data = json.loads(fingerprint_of(HEADER, table).to_json())
    facts = {"amax": 127.0, "scale": 1.0, "largest": 200.0, "count": 10, "clipped": 1, "nonfinite": 2}
    assert data["ranges"] == {"x": facts | {"method": "entropy"}}
    assert data["cache"] == {"sha256": read_cache(HEADER, "").sha256, "tensorrt": "8.6.1"}
    assert data["data"] == {"folder": "calib_data", "sha256": "1" * 64, "samples": 64, "skipped": 0}
    assert data["model"] == {"path": "model.onnx", "sha256": "0" * 64}
    assert (data["schema"], data["method"], data["versions"]) == (1, "entropy", {"onnxruntime": "1.32.0"})


def _without(*keys: str) -> Any:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def _with(value: Any, *keys: str) -> Any:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


WRONG = [
    (_without("schema"), "schema is missing"),
    (_with(2, "schema"), "schema is 2, this version reads 1"),
    (_with(True, "schema"), "schema must be a whole number, this is a boolean"),
    (_without("model"), "model is missing"),
    (_with([], "model"), "model must be an object, this is a list"),
    (_with(None, "model", "sha256"), "model['sha256'] must be a string, this is null"),
    (_without("cache", "sha256"), "cache['sha256'] is missing"),
    (_with(-1, "data", "samples"), "data['samples'] must not be negative, this is -1"),
    (_with(1.5, "data", "samples"), "data['samples'] must be a whole number, this is a number"),
    (_with(3, "versions", "onnx"), "versions['onnx'] must be a string"),
    (_without("ranges", "x", "amax"), "ranges['x']['amax'] is missing"),
    (_with("1", "ranges", "x", "amax"), "ranges['x']['amax'] must be a finite number"),
    (_with(10**400, "ranges", "x", "amax"), "ranges['x']['amax'] must be a finite number"),
    (_with(math.nan, "ranges", "x", "amax"), "not JSON: NaN is no JSON"),
    (_with(-1.0, "ranges", "x", "largest"), "ranges['x']['largest'] must be a finite number, not negative"),
    (_with(5.0, "ranges", "x", "scale"), "ranges['x']['scale'] is not amax / 127"),
    (_with([], "ranges", "x"), "ranges['x'] must be an object, this is a list"),
]


@pytest.mark.parametrize(("change", "text"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_fingerprint_is_refused_with_its_key(change: Any, text: str) -> None:
    data = json.loads(fingerprint_of(HEADER, CalibrationTable({"x": Range(1.0)}, 64)).to_json())
    change(data)
    with pytest.raises(CacheError) as caught:
        fingerprint_from_json(json.dumps(data), "m.cache.json")
    assert str(caught.value).startswith(f"m.cache.json: {text}")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", "[]", "3", "null"])
def test_no_fingerprint_at_all(text: str | bytes) -> None:
    with pytest.raises(CacheError, match=r"^m\.cache\.json: "):
        fingerprint_from_json(text, "m.cache.json")


def test_a_range_that_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(CacheError, match="tensor 'x' has the range inf"):
        fingerprint_of(HEADER, CalibrationTable({"x": Range(math.inf)}, 64)).to_json()


def test_the_fingerprint_stands_beside_its_cache(tmp_path: Path) -> None:
    made = fingerprint_of(HEADER, CalibrationTable({}, 1))
    path = fingerprint_path(tmp_path / "model.cache")
    assert path == tmp_path / "model.cache.json"
    path.write_text(made.to_json())
    assert read_fingerprint(path) == made
    with pytest.raises(CacheError, match="cannot be read"):
        read_fingerprint(tmp_path / "none.json")


# ONNX Runtime's tables

TABLE = CalibrationTable(
    {"b: x": Range(0.1), "a 层": Range(3.0000001), "zero": Range(0.0, count=3), "big": Range(1e6)}, 64
)
AMAX = {"b: x": np.float32(0.1), "a 层": np.float32(3.0000001), "zero": np.float32(1), "big": np.float32(1e6)}


def test_the_three_files_are_those_that_onnxruntime_itself_writes(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, write_calibration_table
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    data = {n: TensorData(lowest=np.asarray(-x), highest=np.asarray(x)) for n, x in AMAX.items()}
    (tmp_path / "theirs").mkdir()
    write_calibration_table(TensorsData(CalibrationMethod.MinMax, data), str(tmp_path / "theirs"))
    paths = write_onnxruntime_tables(TABLE, tmp_path / "new" / "ours")
    assert [path.name for path in paths] == ["calibration.flatbuffers", "calibration.json", "calibration.cache"]
    for path in paths:
        theirs = (tmp_path / "theirs" / path.name).read_bytes()
        if path.suffix == ".json":
            assert json.loads(path.read_bytes()) == json.loads(theirs) | {"smooth_quant": False}
        else:
            assert path.read_bytes() == theirs


def test_their_schema_reads_our_flatbuffer() -> None:
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

    table = TrtTable.GetRootAs(onnxruntime_flatbuffer(TABLE), 0)
    pairs = [table.Dict(i) for i in range(table.DictLength())]
    assert {p.Key().decode(): np.float32(float(p.Value())) for p in pairs} == AMAX


def test_their_loader_reads_our_json(tmp_path: Path) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    if not hasattr(calibrate, "load_tensors_data"):
        pytest.skip("this onnxruntime reads no calibration.json")
    path = tmp_path / "calibration.json"
    path.write_text(onnxruntime_json(TABLE))
    found = calibrate.load_tensors_data(path)
    assert found.calibration_method is calibrate.CalibrationMethod.MinMax
    assert {name: data.range_value for name, data in found.items()} == {n: (-x, x) for n, x in AMAX.items()}


def test_quantize_static_takes_our_ranges(tmp_path: Path) -> None:
    import inspect

    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if "calibration_cache_path" not in inspect.signature(quantize_static).parameters:
        pytest.skip("this onnxruntime always calibrates itself")
    model = conv_model(tmp_path)
    cache = tmp_path / "calibration.json"
    wanted = {name: Range(amax) for name, amax in zip(TENSORS, (127.0, 254.0, 63.5, 12.7, 25.4, 5.08), strict=True)}
    cache.write_text(onnxruntime_json(CalibrationTable(wanted, 64)))
    options = {"ActivationSymmetric": True}
    quantize_static(
        model.path, tmp_path / "qdq.onnx", None, quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8,
        calibration_cache_path=cache, extra_options=options,
    )  # fmt: skip
    made = onnx.load(tmp_path / "qdq.onnx")
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in made.graph.initializer}
    scales = {n.input[0]: float(constants[n.input[1]]) for n in made.graph.node if n.op_type == "QuantizeLinear"}
    # ONNX Runtime spreads −amax … amax over 254 or 255 steps, by version; Flatten hands its input's scale on.
    for name in ("x", "pool"):
        assert scales[name] == pytest.approx(wanted[name].scale(Precision.INT8.number_format), rel=0.005)


def test_tables_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written"):
        write_onnxruntime_tables(TABLE, tmp_path / "file")


def test_the_text_is_sorted() -> None:
    assert onnxruntime_text(TABLE).splitlines()[0] == "a 层 3.0"


# Lint

TENSORS = ("x", "conv", "relu", "pool", "flat", "y")
WEIGHTS: Mapping[str, Array] = {"w": np.ones((4, 3, 3, 3), np.float32), "fc": np.ones((4, 2), np.float32)}


def conv_model(folder: Path) -> Model:
    body = """(float[1,3,8,8] x) => (float[1,2] y)
    { conv = Conv(x, w)
      relu = Relu(conv)
      pool = GlobalAveragePool(relu)
      flat = Flatten(pool)
      y = MatMul(flat, fc) }"""
    return load(proto(body, WEIGHTS), folder)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return conv_model(tmp_path)


def cache_of(version: str = "8601", algorithm: str = "EntropyCalibration2", **scales: float) -> CalibrationCache:
    """A sound cache of the model, with these scales in place of or beside its own."""
    sound = {name: 0.01 * (i + 1) for i, name in enumerate(TENSORS)}
    content = CalibrationCache(version, algorithm, sound | scales).to_bytes()
    return read_cache(content, "m.cache")


def without(cache: CalibrationCache, *gone: str) -> CalibrationCache:
    return replace(cache, scales={n: s for n, s in cache.scales.items() if n not in gone})


def only(findings: tuple[Finding, ...]) -> Finding:
    (finding,) = findings
    return finding


def kinds(findings: tuple[Finding, ...]) -> list[tuple[str, str, str | None]]:
    return [(str(f.severity), f.kind, f.tensor) for f in findings]


def sound_fingerprint(cache: CalibrationCache, model: str = "0" * 64, **changes: Range) -> Fingerprint:
    found = {name: Range(s * 127, "entropy", s * 130, 1000, 1) for name, s in cache.scales.items()} | changes
    return fingerprint_of(cache.to_bytes(), CalibrationTable(found, 64), model)


def test_a_sound_cache_has_no_findings(model: Model) -> None:
    cache = cache_of()
    assert lint(cache, model, sound_fingerprint(cache, model.sha256)) == ()
    assert lint(cache, None, None) == ()


def test_every_finding_says_why_and_what_to_do(model: Model) -> None:
    cache = without(cache_of("8XXX", x=0.0, other=1e30, pool=1e-30), "flat", "relu")
    few = replace(sound_fingerprint(cache_of(), "1" * 64), samples=1)
    found = lint(cache, model, few)
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=list(Severity).index)
    for finding in found:
        assert len(finding.text) > 60
        assert finding.text.endswith(".")


@pytest.mark.parametrize("algorithm", ["MinMaxCalibration", "LegacyCalibration", "EntropyCalibration"])
def test_another_algorithm_is_an_error(algorithm: str) -> None:
    found = lint(cache_of(algorithm=algorithm), None, None)
    assert kinds(found) == [("error", "algorithm", None)]
    assert algorithm in found[0].text


def test_a_version_that_is_no_number_is_a_warning() -> None:
    assert kinds(lint(cache_of("8XXX"), None, None)) == [("warning", "version", None)]


@pytest.mark.parametrize("scale", [0.0, -0.5, math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_positive_is_an_error(scale: float) -> None:
    assert kinds(lint(cache_of(conv=scale), None, None)) == [("error", "bad-scale", "conv")]


@pytest.mark.parametrize(("scale", "kind"), [(1e6, "large-scale"), (3e38, "large-scale"), (1e-12, "small-scale")])
def test_an_absurd_scale_is_a_warning(scale: float, kind: str) -> None:
    assert kinds(lint(cache_of(conv=scale), None, None)) == [("warning", kind, "conv")]


@pytest.mark.parametrize("scale", [1e6 / 128, 1e-9 / 126])
def test_scales_within_the_bounds_are_none(scale: float) -> None:
    assert lint(cache_of(conv=scale), None, None) == ()


def test_equal_scales_are_an_error_from_four_tensors() -> None:
    assert kinds(lint(cache_of(**dict.fromkeys(TENSORS, 0.01)), None, None)) == [("error", "all-equal", None)]
    assert lint(cache_of(**dict.fromkeys(TENSORS[1:], 0.02)), None, None) == ()
    three = without(cache_of(**dict.fromkeys(TENSORS, 0.01)), *TENSORS[3:])
    assert lint(three, None, None) == ()


@given(st.lists(st.floats(2.0**-10, 16, width=32), min_size=8, max_size=30, unique=True))
def test_bytes_the_wrong_way_round_are_told_where_they_are_most(values: list[float]) -> None:
    scales = {f"t{i}": struct.unpack("<f", struct.pack(">f", v))[0] for i, v in enumerate(values)}
    found = lint(CalibrationCache("8601", "EntropyCalibration2", scales), None, None)
    # By chance a scale can make sense both ways; then the others are reported one by one.
    assert any(f.kind == "byte-order" for f in found) or sum(1e-11 < s < 1e4 for s in scales.values()) * 2 >= len(
        scales
    )
    assert not any(
        f.kind == "byte-order" for f in lint(replace(cache_of(), scales=dict(enumerate(values))), None, None)
    )


def test_a_missing_operand_is_an_error_that_names_the_layer(model: Model) -> None:
    found = lint(without(cache_of(), "flat"), model, None)
    assert kinds(found) == [("error", "missing-operand", "flat")]
    assert "the layer node_of_y runs without INT8" in found[0].text


def test_an_operand_of_two_layers_names_both(tmp_path: Path) -> None:
    weights = {"a": np.ones((4, 4), np.float32), "b": np.ones((4, 4), np.float32)}
    model = load(
        proto("(float[1,4] x) => (float[1,4] p, float[1,4] q) { p = MatMul(x, a) q = MatMul(x, b) }", weights), tmp_path
    )
    found = lint(CalibrationCache("8601", "EntropyCalibration2", {"p": 0.1, "q": 0.2}), model, None)
    assert kinds(found) == [("error", "missing-operand", "x")]
    assert "node_of_p, node_of_q run without INT8" in found[0].text


def test_another_missing_tensor_is_a_warning(model: Model) -> None:
    found = lint(without(cache_of(), "relu", "y"), model, None)
    assert kinds(found) == [("warning", "missing", "relu"), ("warning", "missing", "y")]


def test_shapes_integers_and_constants_need_no_scale(tmp_path: Path) -> None:
    body = """(float[1,4] x, int64[1] i) => (float[1,4] y, int64[1] j)
    { j = Add(i, i)
      s = Shape(x)
      f = Cast<to = 1>(s)
      g = Mul(f, one)
      t = Cast<to = 7>(g)
      y = Reshape(x, t) }"""
    model = load(proto(body, {"one": np.ones(1, np.float32)}), tmp_path)
    found = lint(CalibrationCache("8601", "EntropyCalibration2", {"x": 0.1, "y": 0.2}), model, None)
    assert found == ()


def test_names_that_the_model_does_not_have(model: Model) -> None:
    own = {
        "(Unnamed Layer* 22) [Constant]_output": 1.0,
        "(Unnamed Layer* 9) [Matrix Multiply]_output": 1.0,
        "ONNXTRT_Broadcast_3_output": 1.0,
        "fc_output": 1.0,
    }
    found = lint(cache_of(**own, gone=1.0, gone_output=2.0), model, None)
    assert kinds(found) == [
        ("warning", "unknown", "gone"),
        ("warning", "unknown", "gone_output"),
        *(("note", "tensorrts-own", name) for name in own),
    ]


def test_names_that_a_repair_makes_are_those_of_the_repaired_model(model: Model) -> None:
    name = next(iter(model.tensors))
    found = lint(cache_of(**{f"{name}~scaled": 1.0, "gone~scaled": 1.0}), model, None)
    assert kinds(found) == [("warning", "repaired", f"{name}~scaled"), ("warning", "unknown", "gone~scaled")]
    assert "repaired-onnx" in found[0].text


def test_tensors_of_subgraphs_are_known(tmp_path: Path) -> None:
    body = """(bool c, float[4] x) => (float[4] y)
    { y = If(c)
      <then_branch = a () => (float[4] p) { p = Relu(x) },
       else_branch = b () => (float[4] q) { q = Neg(x) }> }"""
    model = load(proto(body), tmp_path)
    scales = {"x": 0.1, "y": 0.2, "p": 0.3, "q": 0.4}
    assert lint(CalibrationCache("8601", "EntropyCalibration2", scales), model, None) == ()


def test_a_cache_of_another_model_is_one_error(model: Model) -> None:
    other = CalibrationCache("8601", "EntropyCalibration2", {"a": 0.1, "b": 0.2})
    found = only(lint(other, model, None))
    assert (found.severity, found.kind) == (Severity.ERROR, "other-model")
    assert "'a'" in found.text


def test_a_cache_without_scales_is_one_error(model: Model) -> None:
    assert kinds(lint(read_cache(HEADER, "m.cache"), model, None)) == [("error", "empty", None)]


def test_a_model_with_its_own_quantisation_ignores_the_cache(tmp_path: Path) -> None:
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    model = load(
        proto("(float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", weights),
        tmp_path,
    )
    assert kinds(lint(cache_of(), model, None)) == [("error", "explicit", None)]


def test_a_fingerprint_of_another_model_is_an_error(model: Model) -> None:
    cache = cache_of()
    found = lint(cache, model, sound_fingerprint(cache, "a" * 64))
    assert kinds(found) == [("error", "stale-model", None)]
    assert "aaaaaaaaaaaa…" in found[0].text


def test_a_cache_edited_since_is_a_warning_and_its_other_ranges_still_count() -> None:
    before = cache_of()
    clipping = Range(before.scales["x"] * 127, "entropy", 9.0, 1000, 200)
    beyond = Range(before.scales["conv"] * 127, "entropy", 9.0, 1000, 200)
    found = lint(cache_of(conv=0.5), None, sound_fingerprint(before, x=clipping, conv=beyond))
    assert kinds(found) == [("warning", "stale-cache", None), ("warning", "clipping", "x")]
    assert "1 of 6 tensors differ" in found[0].text


def test_a_fingerprint_with_a_range_beyond_float32_belongs_to_another_cache() -> None:
    cache = cache_of()
    beyond = Range(1e300, "max", 1e300, 1000, 900)
    assert kinds(lint(cache, None, sound_fingerprint(cache, x=beyond))) == []
    edited = replace(cache_of(conv=0.5))
    found = lint(edited, None, sound_fingerprint(cache, x=beyond))
    assert "2 of 6 tensors differ" in only(found).text


def test_other_line_ends_are_only_a_note() -> None:
    cache = cache_of()
    crlf = read_cache(cache.to_bytes().replace(b"\n", b"\r\n"), "m.cache")
    assert kinds(lint(crlf, None, sound_fingerprint(cache))) == [("note", "stale-cache", None)]


@pytest.mark.parametrize(("samples", "kind"), [(31, ["few-samples"]), (32, [])])
def test_too_few_samples(samples: int, kind: list[str]) -> None:
    cache = cache_of()
    found = lint(cache, None, replace(sound_fingerprint(cache), samples=samples))
    assert [f.kind for f in found] == kind


def test_what_the_fingerprint_tells_of_a_tensor() -> None:
    cache = cache_of()
    amax = {name: scale * 127 for name, scale in cache.scales.items()}
    found = lint(
        cache,
        None,
        sound_fingerprint(
            cache,
            x=Range(amax["x"], "entropy", 10.0, 1000, 11),
            conv=Range(amax["conv"], "entropy", 10.0, 1000, 10),
            relu=Range(amax["relu"], "max", 0.0, 1000),
            pool=Range(amax["pool"], "max", 1.0, 1000, 0, 5),
        ),
    )
    assert kinds(found) == [
        ("warning", "clipping", "x"),
        ("warning", "all-zero", "relu"),
        ("warning", "nonfinite", "pool"),
    ]
    assert "1.1% of its values are clipped" in found[0].text
    assert "5 NaN or Inf" in found[2].text


# The commands


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["cache", *map(str, args)], catch_exceptions=False)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


LONG = "/model/layers.0/self_attn/" + "x" * 100 + "/MatMul_output_0"


def test_show(tmp_path: Path) -> None:
    file = put(tmp_path / "c", write_cache({"b": 1.0, "a: x": 0.5, LONG: 0.25, "层" * 60 + "end": 2.0}, "10.16.1"))
    result = run("show", file)
    assert result.exit_code == 0
    first, _, *table = result.stdout.splitlines()
    assert first.endswith("TensorRT 10.16.1, EntropyCalibration2, 4 tensors")
    assert [line.split()[0] for line in table] == [
        "tensor",
        "…" + table[1].split()[0][1:],
        "a:",
        "b",
        table[4].split()[0],
    ]
    assert table[2].split() == ["a:", "x", "0.5", "63.5"]
    assert "MatMul_output_0" in table[1]
    assert "end" in table[4]
    assert all(len(line) + line.count("层") <= 80 for line in table)
    assert "\x1b" not in result.stdout
    by_scale = run("show", file, "--sort", "scale").stdout.splitlines()[3:]
    assert [line.split()[-2] for line in by_scale] == ["2", "1", "0.5", "0.25"]


def test_show_as_json_has_numbers_or_text_for_what_is_none(tmp_path: Path) -> None:
    file = put(tmp_path / "c", b"TRT-8601-MinMaxCalibration\nn: 7fc00000\na: 3f800000\ni: ff800000\n")
    data = json.loads(run("show", file, "--json", "--sort", "scale").stdout)
    assert (data["tensorrt"], data["version"], data["algorithm"]) == ("8.6.1", "8601", "MinMaxCalibration")
    assert data["count"] == 3
    assert data["tensors"] == [
        {"name": "n", "scale": "nan", "amax": "nan"},
        {"name": "a", "scale": 1.0, "amax": 127.0},
        {"name": "i", "scale": "-inf", "amax": "-inf"},
    ]
    assert "nan" in run("show", file).stdout


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    file = put(tmp_path / "c", HEADER + b"\x1b[31mred\x07: 3f800000\n")
    for result in (run("show", file), run("diff", file, put(tmp_path / "d", HEADER)), run("lint", file)):
        assert "\x1b" not in result.stdout
        assert "\x07" not in result.stdout
    assert r"\x1b[31mred\x07" in run("show", file).stdout


def test_an_empty_cache_is_shown(tmp_path: Path) -> None:
    assert run("show", put(tmp_path / "c", HEADER)).stdout.splitlines()[0].endswith("0 tensors")


def test_diff_of_equal_content_is_0_whatever_the_line_ends(tmp_path: Path) -> None:
    content = write_cache({"a": 1.0}, "8.6.1") + b"n: 7fc00000\n"
    a, b = put(tmp_path / "a", content), put(tmp_path / "b", content.replace(b"\n", b"\r\n"))
    result = run("diff", a, b)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "no difference")
    assert json.loads(run("diff", a, b, "--json").stdout)["differ"] is False


def test_diff_shows_the_largest_change_first(tmp_path: Path) -> None:
    a = put(
        tmp_path / "a", write_cache({"same": 0.7, "up": 1.0, "down": 1.0, "bad": 1.0, "old": 3.0, LONG: 1.0}, "8.6.1")
    )
    b = put(
        tmp_path / "b",
        write_cache({"same": 0.7, "up": 2.0, "down": 0.25, "new": 4.0, LONG: 1.5}, "8.6.1") + b"bad: 0\n",
    )
    result = run("diff", a, b)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    start = lines.index("changed: 4")
    assert [line.split()[0] for line in lines[start + 2 : start + 5]] == ["bad", "down", "up"]
    assert lines[start + 3].split() == ["down", "1", "0.25", "0.25"]
    assert lines[start + 2].split()[-1] == "–"
    assert lines[lines.index("only in b: 1") + 2].split() == ["new", "4", "508"]
    assert lines[lines.index("only in a: 1") + 2].split() == ["old", "3", "381"]
    assert "same" not in result.stdout
    assert all(len(line) <= 80 for line in lines[start:])
    data = json.loads(run("diff", a, b, "--json").stdout)
    assert data["added"] == [{"name": "new", "scale": 4.0}]
    assert data["removed"] == [{"name": "old", "scale": 3.0}]
    assert data["changed"][0] == {"name": "bad", "a": 1.0, "b": 0.0, "ratio": None}
    assert data["changed"][1] == {"name": "down", "a": 1.0, "b": 0.25, "ratio": 0.25}


def test_a_difference_of_the_headers_alone_is_one(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a", write_cache({"a": 1.0}, "8.6.1")), put(tmp_path / "b", write_cache({"a": 1.0}, "10.0.1"))
    result = run("diff", a, b)
    assert result.exit_code == 1
    assert "the headers differ" in result.stdout
    assert run("diff", a, b, "--json").exit_code == 1


def test_lint_without_errors_is_0_and_says_what_it_could_not_check(tmp_path: Path) -> None:
    result = run("lint", put(tmp_path / "c", cache_of().to_bytes()))
    assert result.exit_code == 0
    assert "no fingerprint (c.json)" in result.stdout
    assert "no --model" in result.stdout
    assert result.stdout.splitlines()[-1] == "nothing to object to"


def test_lint_takes_model_and_fingerprint(tmp_path: Path, model: Model) -> None:
    cache = cache_of()
    file = put(tmp_path / "c", cache.to_bytes())
    fingerprint_path(file).write_text(sound_fingerprint(cache, model.sha256).to_json())
    good = run("lint", file, "--model", model.path)
    assert good.exit_code == 0
    assert len(good.stdout.splitlines()) == 3
    fingerprint_path(file).write_text(sound_fingerprint(cache, "a" * 64).to_json())
    assert run("lint", file).exit_code == 0
    bad = run("lint", file, "--model", model.path)
    assert bad.exit_code == 1
    assert "Calibrated on another model" in bad.stdout
    assert bad.stdout.splitlines()[-1] == "1 error"


def test_lint_prints_few_of_a_kind_and_json_all(tmp_path: Path) -> None:
    scales = {LONG + str(i): 0.0 for i in range(20)} | {"x": 1e-20, "y": 1.0}
    file = put(tmp_path / "c", CalibrationCache("8XXX", "EntropyCalibration2", scales).to_bytes())
    result = run("lint", file)
    assert result.exit_code == 1
    assert result.stdout.count("error …") == 5
    assert result.stdout.count("The scale is 0") == 1
    assert "… and 15 more like this (bad-scale)" in result.stdout
    assert result.stdout.splitlines()[-1] == "20 errors, 2 warnings"
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[1:])
    data = run("lint", file, "--json")
    assert data.exit_code == 1
    found = json.loads(data.stdout)
    assert found["counts"] == {"error": 20, "warning": 2, "note": 0}
    assert len(found["findings"]) == 22
    assert found["findings"][0]["tensor"] == LONG + "0"
    assert (found["model"], found["fingerprint"]) == (None, None)


@pytest.mark.parametrize("command", [["show", "F"], ["diff", "F", "G"], ["diff", "G", "F"], ["lint", "F"]])
def test_what_cannot_be_read_is_2_and_one_sentence(tmp_path: Path, command: list[str]) -> None:
    paths = {"F": put(tmp_path / "bad", HEADER + b"a: zz\n"), "G": put(tmp_path / "good", HEADER)}
    result = run(*(paths.get(word, word) for word in command))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"precisionlab: {paths['F']}: line 2 is 'a: zz'")
    assert len(result.stderr.splitlines()) == 1


def test_lint_of_a_fingerprint_or_model_that_cannot_be_read_is_2(tmp_path: Path) -> None:
    file = put(tmp_path / "c", cache_of().to_bytes())
    assert run("lint", file, "--model", tmp_path / "none.onnx").exit_code == 2
    fingerprint_path(file).write_text("{")
    result = run("lint", file)
    assert result.exit_code == 2
    assert "c.json: not JSON" in result.stderr
