"""Precisions, and the plan that says which layer gets which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precisionlab.errors import OptionError, PlanError
from precisionlab.reading import LARGEST_JSON, UnreadableError, parse_json, read_inside
from precisionlab.wording import either

if TYPE_CHECKING:
    import numpy as np
    from onnx_ir import DataType

PLAN_SCHEMA = 1


@dataclass(frozen=True)
class Format:
    """A number format: what its values can be, and what is taken for granted of it. All that is known of one is here.

    `dtype` is onnx_ir's name of its element type, `tensorrt` TensorRT's of its data type (its builder flag is called as
    the precision is), `builders` the TensorRTs with flags that have it, where not all do; `computed_as` the precision
    that a GPU without arithmetic of its own for it computes in instead, where it does. Of a value: `largest` is the
    largest finite one, `normal` the smallest with all digits, `least` the smallest above 0 (subnormal), `epsilon` the
    distance from 1 to the next; of a quantized format in steps. `itemsize` is in bytes.
    `opset` is ONNX's first with a Cast to and from it. `sqnr_db` is what it is held to by default: noise of a
    thousandth of the signal's power for floats, of a hundredth for int8, as models in good health reach and task
    metrics do not notice. `rungs` are the precisions that a pin to better ones may have, the cheapest first.
    `levels` are the steps on each side of 0 of a format that needs ranges; None for floats.

    Sources: IEEE 754 binary16 and binary32; bfloat16 is binary32's first half.
    """

    dtype: str
    title: str
    tensorrt: str
    largest: float
    normal: float
    least: float
    epsilon: float
    itemsize: int
    opset: int
    sqnr_db: float
    rungs: tuple[str, ...] = ("fp32",)
    levels: int | None = None
    builders: str = ""
    computed_as: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether its values are steps of a scale: it needs ranges, and other layers are in a float format around."""
        return self.levels is not None

    def holds(self, other: Format) -> bool:
        """Whether every value of the other is one of its own, in range and in digits."""
        return self.largest >= other.largest and self.least <= other.least and self.epsilon <= other.epsilon

    @property
    def overflowing(self) -> float:
        """From this reference on, an Inf in the format is what any device may round to.

        Half of the largest value: what a value has inherited of error by then may lift it over the end, where it would
        fit if it were exact (magika: a reference of 0.9 of float16's largest, in a variant that is right).
        """
        return self.largest / 2

    @cached_property
    def element(self) -> DataType:
        """onnx_ir's element type."""
        from onnx_ir import DataType

        return DataType[self.dtype]

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's type, of ml_dtypes where NumPy has none of its own."""
        return self.element.numpy()


_FORMATS = {
    "fp32": Format(
        *("FLOAT", "FP32", "FLOAT"),
        *((2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149, 2.0**-23),
        itemsize=4,
        opset=6,
        sqnr_db=30.0,
    ),
    "fp16": Format(
        *("FLOAT16", "FP16", "HALF"),
        *(65504.0, 2.0**-14, 2.0**-24, 2.0**-10),
        itemsize=2,
        opset=6,
        sqnr_db=30.0,
        rungs=("bf16", "fp32"),
    ),
    "bf16": Format(
        *("BFLOAT16", "BF16", "BF16"),
        *((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-7),
        itemsize=2,
        opset=13,
        sqnr_db=30.0,
        rungs=("fp16", "fp32"),
        builders="TensorRT 10.0 to 10.16",
    ),
    "int8": Format(
        *("INT8", "INT8", "INT8"),
        *(127.0, 1.0, 1.0, 1.0),
        itemsize=1,
        opset=10,
        sqnr_db=20.0,
        rungs=("fp16", "bf16", "fp32"),
        levels=127,
    ),
}


class Precision(str, Enum):
    """A precision that a layer can be run in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    def __str__(self) -> str:
        return self.value

    @property
    def number_format(self) -> Format:
        """Its number format."""
        return _FORMATS[self.value]

    @property
    def is_quantized(self) -> bool:
        """Whether it needs ranges; float layers then stand around its own."""
        return self.number_format.is_quantized

    @property
    def is_low(self) -> bool:
        """Whether it is any but float32."""
        return self is not Precision.FP32

    @property
    def is_low_float(self) -> bool:
        """Whether it is a float format below float32."""
        return self.is_low and not self.is_quantized

    @property
    def rungs(self) -> tuple[Precision, ...]:
        """The precisions that a pinned layer may have in its place, the cheapest first."""
        return tuple(map(Precision, self.number_format.rungs))

    @property
    def computed_as(self) -> Precision:
        """What computes it on a GPU that has no arithmetic of its own for it; itself where nothing does."""
        return Precision(self.number_format.computed_as or self.value)

    @classmethod
    def floats(cls) -> tuple[Precision, ...]:
        """The float formats, float32 first."""
        return tuple(precision for precision in cls if not precision.is_quantized)

    @classmethod
    def of_element(cls, dtype: DataType | None) -> Precision | None:
        """The float precision whose values have this element type; None for any other type."""
        return next((precision for precision in cls.floats() if precision.number_format.element == dtype), None)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read a precision's name. Raises OptionError for anything else."""
        try:
            return cls(text.strip().lower())
        except ValueError:
            names = ", ".join(p.value for p in cls)
            raise OptionError(f"unknown precision {text.strip()!r}; use one of {names}") from None


def any_quantized(precisions: Iterable[Precision]) -> bool:
    """Whether one of them needs ranges."""
    return any(precision.is_quantized for precision in precisions)


@dataclass(frozen=True)
class Pin:
    """One layer that is given another precision than the plan's default, and why."""

    layer: str
    nodes: tuple[str, ...]
    precision: Precision
    reason: str


@dataclass(frozen=True)
class PrecisionPlan:
    """A default precision, and the layers pinned to another with the reason why.

    A pin to fp32 means that the nodes named take and give float32 values. `around` is the precision
    of the layers that int8 does not touch (every layer that is not a Conv, ConvTranspose, Gemm or
    MatMul); it only matters where the default is int8. `calibration` is the method that found the int8
    ranges; None where none were needed.
    """

    model_sha256: str
    default: Precision
    pins: tuple[Pin, ...] = ()
    around: Precision = Precision.FP32
    calibration: str | None = None

    def pinned(self) -> dict[str, Precision]:
        """Layer name → the precision that it is pinned to."""
        return {pin.layer: pin.precision for pin in self.pins}

    @cached_property
    def _by_layer(self) -> Mapping[str, Precision]:
        return self.pinned()

    def pin_of(self, layer: str) -> Precision | None:
        """The precision that the layer of this name is pinned to; None where it is not."""
        return self._by_layer.get(layer)

    @property
    def precisions(self) -> frozenset[Precision]:
        """The default and those of the pins."""
        return frozenset({self.default, *(pin.precision for pin in self.pins)})

    def with_pins(self, pins: Iterable[Pin]) -> PrecisionPlan:
        """The same plan with these pins in place of its own."""
        return replace(self, pins=tuple(pins))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of `plan.json`."""
        return {
            "schema": PLAN_SCHEMA,
            "model": {"sha256": self.model_sha256},
            "default": self.default.value,
            "around": self.around.value,
            **({} if self.calibration is None else {"calibration": self.calibration}),
            "pins": [
                {
                    "layer": pin.layer,
                    "nodes": list(pin.nodes),
                    "precision": pin.precision.value,
                    "reason": pin.reason,
                }
                for pin in self.pins
            ],
        }


def plan_files(precisions: Collection[str]) -> dict[str, str]:
    """Precision → what the file of its plan is called in the folder of a sweep over these."""
    return {name: "plan.json" if len(precisions) == 1 else f"plan.{name}.json" for name in precisions}


def plan_from_dict(data: Any, where: str = "plan") -> PrecisionPlan:
    """Read the JSON object of a plan; unknown keys are left alone.

    Raises PlanError that names the key at fault.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: a plan is a JSON object, this is a {type(data).__name__}")
    if data.get("schema") != PLAN_SCHEMA:
        raise PlanError(f"{where}: schema is {data.get('schema')!r}, this version reads {PLAN_SCHEMA}")
    try:
        sha256 = data["model"]["sha256"]
        default = Precision.parse(str(data["default"]))
        around = Precision.parse(str(data.get("around", "fp32")))
        raw_pins = data["pins"]
    except (KeyError, TypeError) as error:
        raise PlanError(f"{where}: key {error} is missing or not of the right kind") from None
    except OptionError as error:
        raise PlanError(f"{where}: {error}") from None
    if not isinstance(raw_pins, list) or not isinstance(sha256, str):
        raise PlanError(f"{where}: `pins` must be a list and `model.sha256` a string")
    if around.is_quantized:
        raise PlanError(f"{where}: `around` is the precision of the float layers: {either(Precision.floats())}")
    calibration = data.get("calibration")
    if calibration is not None and not isinstance(calibration, str):
        raise PlanError(f"{where}: `calibration` must be the name of a method")
    pins = tuple(_pin(p, i, where) for i, p in enumerate(raw_pins))
    _check_one_precision(((node, pin.precision) for pin in pins for node in pin.nodes), "node", where)
    return PrecisionPlan(sha256, default, pins, around, calibration)


def _check_one_precision(pinned: Iterable[tuple[str, Precision]], what: str, where: str) -> None:
    """Raises PlanError where one name is given two precisions: which of them is meant cannot be told."""
    found: dict[str, Precision] = {}
    for name, precision in pinned:
        if found.setdefault(name, precision) is not precision:
            raise PlanError(f"{where}: pins {what} {name!r} to {found[name]} and to {precision}; leave one of them")


def _pin(data: Any, index: int, where: str) -> Pin:
    try:
        nodes = data["nodes"]
        if not isinstance(nodes, list) or not nodes or not all(isinstance(n, str) for n in nodes):
            raise PlanError(f"{where}: pins[{index}].nodes must be a list of node names")
        return Pin(
            layer=str(data.get("layer", nodes[0])),
            nodes=tuple(nodes),
            precision=Precision.parse(str(data.get("precision", "fp32"))),
            reason=str(data.get("reason", "")),
        )
    except (KeyError, TypeError, AttributeError):
        raise PlanError(f"{where}: pins[{index}] needs `nodes` (a list of ONNX node names)") from None
    except OptionError as error:
        raise PlanError(f"{where}: pins[{index}]: {error}") from None


def read_plan_content(path: Path) -> Any:
    """The JSON of a plan's file, whatever it holds. Raises PlanError where it cannot be read."""
    try:
        return parse_json(read_inside(path.parent, path.name, LARGEST_JSON))
    except UnreadableError as error:
        raise PlanError(f"{path}: {error}") from None
    except ValueError as error:
        raise PlanError(f"{path}: not JSON: {error}") from None


def read_plan(path: Path, model_sha256: str, layers: Mapping[str, Collection[str]]) -> PrecisionPlan:
    """Read `plan.json` for a model, and match its pins to the model's layers by node name.

    `layers` maps each layer's name to its node names. Raises PlanError where the file is not a plan,
    belongs to another model, or pins a node that the model does not have.
    """
    plan = plan_from_dict(read_plan_content(path), str(path))
    if plan.model_sha256 != model_sha256:
        raise PlanError(
            f"{path}: made for another model (sha256 {plan.model_sha256[:12]}…, this one is "
            f"{model_sha256[:12]}…); sweep this model to get its own plan"
        )
    layer_of = {node: name for name, nodes in layers.items() for node in nodes}
    pins: dict[str, Pin] = {}
    known = ((layer_of[node], pin.precision) for pin in plan.pins for node in pin.nodes if node in layer_of)
    _check_one_precision(known, "layer", str(path))
    for pin in plan.pins:
        for node in pin.nodes:
            if node not in layer_of:
                raise PlanError(f"{path}: pins node {node!r}, which the model does not have")
            name = layer_of[node]
            pins[name] = Pin(name, tuple(layers[name]), pin.precision, pin.reason)
    return plan.with_pins(pins.values())
