"""What a user asks of a build beside precisions, in the words of trtexec and Polygraphy.

trtexec (`samples/common/sampleOptions.cpp`, `samples/trtexec/trtexec.cpp`): `--staticPlugins` opens a library, which
then registers its plugins; `--dynamicPlugins` has TensorRT's registry ask it for them, and only such a one can be
carried in an engine (`--setPluginsToSerialize`). Polygraphy's `--plugins` opens libraries, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from precisionlab.backends.tuning import Tuning, check_formats
from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.model.graph import TensorInfo
from precisionlab.precision import Precision

_REGISTERS = b"getPluginRegistry"
"""What a library calls that registers its plugins by itself; so its name stands in the file."""


def trtexec_tuning(tuning: Tuning, plugins: Sequence[Path], model: Model) -> list[str]:
    """The words for trtexec. Raises OptionError for a format of what the model has not."""
    words = ["--allowWeightStreaming"] * (tuning.weight_streaming is not None)
    if tuning.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={tuning.optimization_level}")
    if tuning.avg_timing is not None:
        words.append(f"--avgTiming={tuning.avg_timing}")
    if tuning.dla is not None:
        words += [f"--useDLACore={tuning.dla}", "--allowGPUFallback"]
    words += _formats(tuning, model)
    words += ["--versionCompatible"] * tuning.version_compatible + ["--refit"] * tuning.refit
    for library in plugins:
        if registers_itself(library):
            words.append(f"--staticPlugins={library}")
        else:
            words.append(f"--dynamicPlugins={library}")
            words += [f"--setPluginsToSerialize={library}"] * tuning.version_compatible
    return words


def _formats(tuning: Tuning, model: Model) -> list[str]:
    """How inputs and outputs are stored: trtexec wants type and format of all, in their order, or of none."""
    check_formats(tuning.formats, [info.name for info in (*model.inputs, *model.outputs)])
    asked = dict(tuning.formats)
    words = []
    for option, ends in (("--inputIOFormats", model.inputs), ("--outputIOFormats", model.outputs)):
        if any(info.name in asked for info in ends):
            each = (f"{_type(info)}:{asked.get(info.name, 'LINEAR').lower()}" for info in ends)
            words.append(f"{option}={','.join(each)}".replace("linear", "chw"))
    return words


def _type(info: TensorInfo) -> str:
    """trtexec's name of a tensor's type."""
    precision = Precision.of_element(info.dtype)
    return precision.value if precision is not None else "" if info.dtype is None else info.dtype.name.lower()


def polygraphy_tuning(tuning: Tuning, plugins: Sequence[Path]) -> list[str]:
    """The words for Polygraphy. Raises OptionError for what it cannot be asked."""
    if tuning.avg_timing is not None:
        raise OptionError("--avg-timing: Polygraphy has no such option; leave it out, or use --format trtexec")
    if tuning.formats:
        raise OptionError("--io-format: Polygraphy has no such option; leave it out, or use --format trtexec")
    if tuning.dla:
        raise OptionError(f"--dla {tuning.dla}: Polygraphy takes core 0 alone; use --format trtexec")
    if waiting := [library for library in plugins if not registers_itself(library)]:
        raise OptionError(
            f"--plugins {waiting[0]}: waits to be asked for its plugins, and Polygraphy asks nobody; "
            "use --format trtexec"
        )
    words = ["--weight-streaming"] * (tuning.weight_streaming is not None)
    if tuning.optimization_level is not None:
        words += ["--builder-optimization-level", str(tuning.optimization_level)]
    words += ["--use-dla", "--allow-gpu-fallback"] if tuning.dla is not None else []
    words += ["--version-compatible"] * tuning.version_compatible + ["--refittable"] * tuning.refit
    return [*words, "--plugins", *map(str, plugins)] if plugins else words


def registers_itself(library: Path) -> bool:
    """Whether a library registers its plugins when it is opened; else TensorRT's registry has to ask it."""
    try:
        return _REGISTERS in library.read_bytes()
    except OSError as error:
        raise OptionError(
            f"--plugins {library}: cannot be read ({error.strerror}); name a library of plugins"
        ) from None


def check_weakly(tuning: Tuning) -> None:
    """Raises OptionError for what a weakly typed build cannot be asked."""
    if tuning.weight_streaming is not None:
        raise OptionError("--weight-streaming: weakly typed builds stream no weights; leave it out, or add --typed")
