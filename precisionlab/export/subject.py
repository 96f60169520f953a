"""What is exported, and what an export is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from precisionlab.backends.tensorrt.jobs import LayerPin, Profile
from precisionlab.backends.tensorrt.pins import enabled_in, pins_of
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.calibration.cache import write_cache
from precisionlab.calibration.table import CalibrationTable, network_scales
from precisionlab.errors import PlanError
from precisionlab.model import Model
from precisionlab.model.quantized import own_flags
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.plan.weak import check_weak
from precisionlab.precision import Precision, any_quantized, quantized_of


@dataclass(frozen=True)
class Subject:
    """A plan with all that an export may need of it.

    `table` is None where the plan has no quantized layer, `profiles` has each dynamic input,
    `more_profiles` the same once more for each further profile. `names` counts how often the
    file to be handed on gives a name to a node, in bodies too: the loaded model has a name for every node, and each
    name once in a graph. `tensorrt` is the version that calibration caches are written for. `file` is what is handed on
    in place of the model's own file, None for that one. `hold_float`: see `pins_of`. `tuning` is what is asked of
    the build beside, `plugins` are libraries of plugins, absolute. `typed` says that the file has the
    plan in its types, for a strongly typed network: this is told nothing more.
    """

    model: Model
    plan: PrecisionPlan
    table: CalibrationTable | None
    profiles: Mapping[str, Profile]
    names: Mapping[str, int]
    tensorrt: str
    file: Path | None = None
    hold_float: bool = False
    tuning: Tuning = UNTUNED
    plugins: tuple[Path, ...] = ()
    typed: bool = False
    more_profiles: tuple[Mapping[str, Profile], ...] = ()

    @property
    def path(self) -> Path:
        """The file to be handed on, absolute: what is exported runs in any folder of this machine."""
        return (self.file or self.model.path).resolve()

    @property
    def enabled(self) -> frozenset[Precision]:
        """The low precisions that kernels of a weakly typed TensorRT may have. Raises PlanError for what it has not."""
        if self.typed:
            return frozenset()
        check_weak(self.model, self.plan)
        return enabled_in(self.model, self.plan)

    @property
    def own_flags(self) -> dict[str, str]:
        """Builder flag → the first of the model's own Q/DQ nodes that needs it, where weakly typed."""
        return {} if self.typed else own_flags(self.model)

    @property
    def pins(self) -> tuple[LayerPin, ...]:
        """What a weakly typed TensorRT must be held to."""
        return () if self.typed else pins_of(self.model, self.plan, self.hold_float)

    @property
    def scales(self) -> dict[str, float]:
        """Tensor name → scale. Raises PlanError where the plan has quantized layers, and no ranges are known."""
        if self.table is None:
            kinds = " and ".join(precision.value for precision in quantized_of(self.asked))
            raise PlanError(
                f"the plan has {kinds} layers, and their ranges are not known; give the samples with --data"
            )
        return self.table.scales

    @property
    def cache(self) -> bytes:
        """TensorRT's calibration cache with these scales. Raises CacheError for names that it cannot hold."""
        _ = self.scales  # says so where there are none
        assert self.table is not None
        return write_cache(network_scales(self.table, self.model.gone), self.tensorrt)

    @property
    def asked(self) -> frozenset[Precision]:
        """All precisions that the plan gives to some layer."""
        return frozenset({self.plan.default, *(pin.precision for pin in self.plan.pins)})


def int8_note(subject: Subject) -> tuple[str, ...]:
    """What is to be known of a network with implicit INT8; nothing where all is held, or there is no int8."""
    if subject.hold_float or not any_quantized(subject.enabled):
        return ()
    return (
        "TensorRT may run any layer in INT8 that has scales on both sides, also one that the plan has in float; "
        "--hold-float holds those",
    )


def own_notes(subject: Subject) -> list[str]:
    """What is to be known of a model that is quantised by nodes of its own; nothing of others."""
    return [
        f"{flag} is enabled for the model's own Q/DQ nodes ({node!r}): TensorRT takes their scales, and no calibration "
        "cache beside them"
        for flag, node in subject.own_flags.items()
    ]


@dataclass(frozen=True)
class Export:
    """What is written: the content of the file asked for, and of files beside it, by name.

    `executable` is true for a shell script. `notes` say what the target cannot be told, or does differently.
    """

    content: str | bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    executable: bool = False
    notes: tuple[str, ...] = ()


def command_line(words: Sequence[str]) -> str:
    """The words as one line for a POSIX shell."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """The word for a POSIX shell; of an option with a value only the value stands in quotes, for people to read."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and equals and shlex.quote(option) == option:
        return f"{option}={shlex.quote(value)}" if value else word
    return shlex.quote(word)
