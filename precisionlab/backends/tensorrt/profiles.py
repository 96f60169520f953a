"""The shapes that an engine is built for: found in the data or given, checked, and handed to TensorRT.

TensorRT accepts a profile with a wrong name, rank or fixed dimension, and fails only in the build, after the parser's
work and in words of its own. So everything is checked before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from precisionlab.backends.tensorrt.jobs import Arrays, Profile, Shape
from precisionlab.errors import BuildError, DataError, OptionError

if TYPE_CHECKING:
    from precisionlab.data import Sample
    from precisionlab.model import Model
    from precisionlab.model.graph import TensorInfo

_SHOWN = 16
_WRITE = "write NAME:MIN,OPT,MAX as in --shapes image:1x3x224x224,4x3x224x224,8x3x224x224"


def dynamic_inputs(model: Model) -> tuple[TensorInfo, ...]:
    """The inputs that need a profile: those with a dimension that is not fixed, and those that carry a shape."""
    carriers = shape_inputs(model)
    return tuple(info for info in model.inputs if info.name in carriers or not _fixed(info))


def shape_inputs(model: Model) -> frozenset[str]:
    """The integer inputs whose values say a shape, a size or an axis. TensorRT's profile has their values."""
    # Here, as TensorRT's process has no model: half of its start went into these.
    import onnx_ir as ir

    from precisionlab.model.flow import is_shape_input, shape_flow

    flow = shape_flow(model.onnx.graph)
    found = set()
    for value in model.onnx.graph.inputs:
        integers = value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
        uses = value.uses()
        # Shape asks how large a tensor is, and not for its values.
        asked = [use for use in uses if use.node.op_type not in ("Shape", "Size")]
        if integers and any(
            is_shape_input(use.node, use.idx) or any(output in flow for output in use.node.outputs) for use in asked
        ):
            found.add(str(value.name))
    return frozenset(found)


def sizes_of(model: Model, inputs: Arrays) -> dict[str, Shape]:
    """What one sample says to a profile: the shape of each dynamic input, or the values of one that carries a shape."""
    carriers = shape_inputs(model)
    return {
        info.name: tuple(int(x) for x in inputs[info.name].reshape(-1))
        if info.name in carriers
        else inputs[info.name].shape
        for info in dynamic_inputs(model)
        if info.name in inputs
    }


def profiles_of(model: Model, seen: Iterable[Mapping[str, Shape]]) -> dict[str, Profile]:
    """The profile of each dynamic input, from what `sizes_of` says of each sample.

    The smallest and largest of every dimension, and as OPT the most frequent shapes of all inputs together: inputs
    that share a dimension, such as a batch, agree on it there. Of equally frequent ones the larger.
    Raises DataError where a sample does not fit the model, or there is none.
    """
    infos = dynamic_inputs(model)
    if not infos:
        return {}
    carriers = shape_inputs(model)
    counts: Counter[tuple[Shape, ...]] = Counter()
    for sizes in seen:
        for info in infos:
            _check_seen(info, sizes.get(info.name), info.name in carriers)
        counts[tuple(sizes[info.name] for info in infos)] += 1
    if not counts:
        raise DataError(f"no sample says how large {infos[0].name!r} is; give its shapes: {_WRITE}")
    usual = max(counts, key=lambda sizes: (counts[sizes], sum(map(math.prod, sizes)), sizes))
    profiles = {}
    for index, info in enumerate(infos):
        shapes = [sizes[index] for sizes in counts]
        low, high = (tuple(pick(dims) for dims in zip(*shapes, strict=True)) for pick in (min, max))
        profiles[info.name] = Profile(low, usual[index], high)
    return profiles


def parse_shapes(text: str) -> tuple[str, Profile]:
    """Read `NAME:MIN,OPT,MAX`, or `NAME:SHAPE` for one shape alone; a shape is `1x3x224x224`. Raises OptionError."""
    name, colon, shapes = text.rpartition(":")  # names contain colons
    parts = shapes.split(",")
    if not colon or not name or len(parts) not in (1, 3):
        raise OptionError(f"--shapes {text!r}: {_WRITE}")
    low, opt, high = (_shape(part, text) for part in (parts if len(parts) == 3 else parts * 3))
    return name, Profile(low, opt, high)


def profiles_for(
    model: Model, texts: Iterable[str], samples: Callable[[str], Iterable[Sample]]
) -> tuple[dict[str, Profile], ...]:
    """The profiles of each dynamic input: as the texts of `--shapes` give them, and else as the samples have them.

    An input that is given several times has so many profiles; what is given once, or not at all, is the same in all.
    `samples` is called with the name of the first input that is not given, and only where there is one.
    Raises OptionError for shapes that do not fit the model, DataError for such samples.
    """
    given: dict[str, list[Profile]] = {}
    for name, shapes in map(parse_shapes, texts):
        given.setdefault(name, []).append(shapes)
    missing = [info.name for info in dynamic_inputs(model) if info.name not in given]
    found = profiles_of(model, (sizes_of(model, s.inputs) for s in samples(missing[0]))) if missing else {}
    count = max(map(len, given.values()), default=1)
    for name, several in given.items():
        if len(several) not in (1, count):
            raise OptionError(
                f"--shapes {name}: given {len(several)} times, and another input {count} times; each profile has "
                "shapes for all: give an input once, or once for each profile"
            )
    sets = tuple(
        {
            **{name: found[name] for name in missing},
            **{name: several[index % len(several)] for name, several in given.items()},
        }
        for index in range(count)
    )
    for profiles in sets:
        check_profiles(model, profiles)
    return sets


def check_profiles(model: Model, profiles: Mapping[str, Profile]) -> None:
    """Check that TensorRT will accept these profiles for the model. Raises OptionError that says which is wrong."""
    inputs = {info.name: info for info in model.inputs}
    carriers = shape_inputs(model)
    for name, shapes in profiles.items():
        if name not in inputs:
            raise OptionError(f"--shapes {name}: the model has no such input; its inputs are {', '.join(inputs)}")
        _check(inputs[name], shapes, name in carriers)
    for info in dynamic_inputs(model):
        if info.name not in profiles:
            raise OptionError(f"input {info.name!r} has {_declared(info)}, and no shapes are given for it: {_WRITE}")
    _check_shared(model, profiles)


def add_profiles(
    trt: Any,
    builder: Any,
    network: Any,
    config: Any,
    sets: Sequence[Mapping[str, Profile]],
    calibrates: bool = False,
) -> None:
    """Give the build one optimization profile for each of these sets of shapes; none where no input needs one.

    `calibrates` sets the first as the profile of INT8 calibration too, which goes by its OPT shapes alone.
    Raises BuildError where an input of the network needs shapes that are not there, or TensorRT refuses them.
    """
    for index, profiles in enumerate(sets):
        profile = _filled(builder.create_optimization_profile(), network, profiles)
        if profile is None:
            return
        if config.add_optimization_profile(profile) < 0:
            given = "; ".join(f"{name}: {_text(shapes)}" for name, shapes in profiles.items())
            raise BuildError(f"TensorRT refuses the optimization profile ({given})")
        has_own = calibrates and index == 0 and hasattr(config, "set_calibration_profile")
        if has_own and not config.set_calibration_profile(profile):
            raise BuildError("TensorRT refuses the optimization profile for INT8 calibration")


def _filled(profile: Any, network: Any, profiles: Mapping[str, Profile]) -> Any | None:
    """A profile with these shapes; None where no input of the network needs any. Raises BuildError."""
    needed = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        dynamic = tensor.is_shape_tensor or any(dim < 0 for dim in tensor.shape)
        if not dynamic:
            continue
        needed = True
        if tensor.name not in profiles:
            raise BuildError(_missing(tensor.name, tensor.is_shape_tensor))
        shapes = profiles[tensor.name]
        set_shapes = profile.set_shape_input if tensor.is_shape_tensor else profile.set_shape
        try:
            set_shapes(tensor.name, shapes.min, shapes.opt, shapes.max)
        except (ValueError, TypeError, RuntimeError) as error:
            raise BuildError(
                f"TensorRT refuses the shapes of input {tensor.name!r}, {_text(shapes)}: {error}"
            ) from None
    return profile if needed else None


def _fixed(info: TensorInfo) -> bool:
    return info.shape is not None and all(isinstance(dim, int) for dim in info.shape)


def _check_seen(info: TensorInfo, shape: Shape | None, carries: bool) -> None:
    if shape is None:
        raise DataError(f"a sample has no input {info.name!r}, whose size differs from sample to sample")
    if carries and len(shape) != (count := _values(info, len(shape))):
        raise DataError(f"a sample has {len(shape)} values for input {info.name!r}; the model takes {count}")
    if not carries and not _fits(info, shape):
        raise DataError(f"a sample has input {info.name!r} as {_dims(shape)}; the model takes {_declared(info)}")


def _check(info: TensorInfo, shapes: Profile, carries: bool) -> None:
    name = info.name
    three = {"min": shapes.min, "opt": shapes.opt, "max": shapes.max}
    for word, shape in three.items():
        if not carries and not _fits(info, shape):
            raise OptionError(f"--shapes {name}: {word} is {_dims(shape)}; the model takes {_declared(info)}")
        if carries and len(shape) != (count := _values(info, len(shapes.opt))):
            raise OptionError(
                f"--shapes {name}: {word} has {len(shape)} values; this input carries a shape, so all of its "
                f"{count} values are wanted"
            )
    if not all(low <= opt <= high for low, opt, high in zip(shapes.min, shapes.opt, shapes.max, strict=True)):
        raise OptionError(f"--shapes {name}: {_text(shapes)} is not min ≤ opt ≤ max in every dimension")


def _values(info: TensorInfo, otherwise: int) -> int:
    """How many values an input has that carries a shape."""
    return otherwise if info.elements is None else info.elements


def _check_shared(model: Model, profiles: Mapping[str, Profile]) -> None:
    """A dimension of the same name in two inputs has one size; TensorRT checks it at the OPT shapes, in the build."""
    known: dict[str, tuple[str, int]] = {}
    carriers = shape_inputs(model)
    for info in model.inputs:
        if info.name not in profiles or info.name in carriers or info.shape is None:
            continue
        for dim, size in zip(info.shape, profiles[info.name].opt, strict=True):
            if not isinstance(dim, str):
                continue
            other, other_size = known.setdefault(dim, (info.name, size))
            if size != other_size:
                raise OptionError(
                    f"--shapes {info.name}: its dimension {dim!r} is {size} in opt, in input {other!r} it is "
                    f"{other_size}; dimensions of one name are equal"
                )


def _fits(info: TensorInfo, shape: Shape) -> bool:
    """Whether an input can have this shape: the rank, and each fixed dimension."""
    if info.shape is None:
        return True
    return len(shape) == len(info.shape) and all(
        size == dim if isinstance(dim, int) else True for size, dim in zip(shape, info.shape, strict=True)
    )


def _shape(part: str, text: str) -> Shape:
    try:
        shape = tuple(int(dim) for dim in part.strip().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 0:
        raise OptionError(f"--shapes {text!r}: {part.strip()!r} is not a shape; {_WRITE}")
    return shape


def _missing(name: str, carries: bool) -> str:
    if carries:
        return (
            f"input {name!r} carries a shape, and its values are not known: give the smallest, usual and largest ones, "
            f"as --shapes {name}:1x16,4x16,8x16 gives two values each"
        )
    return f"input {name!r} has a dimension that is not fixed, and no shapes are given for it: {_WRITE}"


def _declared(info: TensorInfo) -> str:
    if info.shape is None:
        return "a shape of unknown rank"
    return "x".join("?" if dim is None else str(dim) for dim in info.shape) or "a scalar"


def _dims(shape: Shape) -> str:
    shown = "x".join(map(str, shape[:_SHOWN]))
    return f"{shown}x… ({len(shape)} values)" if len(shape) > _SHOWN else shown or "a scalar"


def _text(shapes: Profile) -> str:
    return ", ".join(_dims(shape) for shape in (shapes.min, shapes.opt, shapes.max))
