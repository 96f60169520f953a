"""Engines kept on disk by what went into them, so that none is built twice.

`<digest>.engine` is an engine, `<digest>.json` what is known of it (the `Built`), written after it: an engine without
its JSON is the rest of a write that was cut short.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from precisionlab.backends.tensorrt.jobs import BuildJob, Built, EngineLayer, EngineTensor, PinOutcome, Tactics
from precisionlab.errors import EngineError
from precisionlab.system.disk import write_whole_bytes
from precisionlab.system.plainfiles import is_there, open_to_read
from precisionlab.system.reading import LARGEST_JSON, UnreadableError, parse_json, read_inside
from precisionlab.system.secret import is_sealed, sealed

_SCHEMA = 4
"""Counted up when the same job gives another engine, or the JSON beside it reads otherwise."""
_CUT_SHORT = 24 * 3600.0
"""Seconds after which a file without its JSON is taken for the rest of a write, not for one going on."""
DEFAULT_LIMIT = 20 * 1024**3
"""Bytes of engines that are kept."""


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on.

    `model` is the SHA-256 of the ONNX file that is built (with its external data), `enabled` the precisions that
    kernels may have, `pins` each pinned layer with its nodes, tensors and precision. `calibration` says where INT8
    ranges come from: the digest of a calibration cache, or of the samples that TensorRT calibrates on; None without
    INT8. `module` and `version` are TensorRT's, `device` is the GPU: its name, compute capability and driver.
    `profiles` are (input, min, opt, max) for each profile, `marked_as` (tensor, precision),
    `plugins` the SHA-256 of each library of plugins. `unfused` engines show their own unfused
    tensors. `tuning` has the options that are not TensorRT's own (see `Tuning`). `typed` says that the network is
    strongly typed by choice.
    """

    model: str
    enabled: tuple[str, ...]
    pins: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...]
    obey: bool
    calibration: str | None
    profiles: tuple[tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...], ...]
    marked: tuple[str, ...]
    marked_as: tuple[tuple[str, str], ...]
    debug: tuple[str, ...]
    unfused: bool
    workspace: int | None
    compute: str | None
    strict_nans: bool
    plugins: tuple[str, ...]
    tuning: tuple[tuple[str, int | bool | str], ...]
    typed: bool
    module: str
    version: str
    device: str

    @property
    def digest(self) -> str:
        """The name of the engine's files."""
        text = json.dumps([_SCHEMA, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def key_of(
    job: BuildJob, model_sha256: str, samples: str | None, *, module: str, version: str, device: str
) -> EngineKey:
    """The key of a job's engine. `samples` is the digest of the samples where TensorRT calibrates itself."""
    return EngineKey(
        model=model_sha256,
        enabled=tuple(sorted(p.value for p in job.enabled)),
        # Pins are applied one by one, in any order to the same effect.
        pins=tuple(sorted((p.layer, p.nodes, p.tensors, p.precision.value) for p in job.pins)),
        obey=job.obey,
        calibration=samples if job.cache is None else hashlib.sha256(job.cache).hexdigest(),
        profiles=tuple(
            tuple(sorted((name, s.min, s.opt, s.max) for name, s in profiles.items()))
            for profiles in (job.profiles, *job.more_profiles)
        ),
        marked=tuple(sorted(job.marked)),
        marked_as=tuple(sorted((name, precision.value) for name, precision in job.marked_as.items())),
        debug=tuple(sorted(job.debug)),
        unfused=job.unfused,
        workspace=job.workspace,
        compute=job.compute,
        strict_nans=job.strict_nans,
        plugins=tuple(sorted(job.plugins)),
        tuning=tuple(sorted(job.tuning.key.items())),
        typed=job.typed,
        module=module,
        version=version,
        device=device,
    )


class EngineStore:
    """A folder of engines that holds at most `limit` bytes; the least recently used go first.

    Several processes may use it at once. One that is given an engine's path should load it soon: another may need room.
    An engine holds code for the GPU, and TensorRT trusts it: of a folder that a stranger may have filled, only those
    that this user has sealed are taken.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT, is_trusted: bool = False) -> None:
        """Make the folder, or open it; `is_trusted`: the user has named it. Raises EngineError where that fails."""
        self.folder = folder
        self._limit = limit
        self._is_trusted = is_trusted
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"{folder}: engines cannot be kept there ({error.strerror})") from None

    def get(self, key: EngineKey) -> Built | None:
        """The engine of this key, as it was built; None where there is none. What is corrupt is dropped."""
        engine, facts = self._paths(key)
        try:
            data = parse_json(read_inside(self.folder, facts.name, LARGEST_JSON))
            if data["schema"] != _SCHEMA or data["sha256"] != _sha256(self.folder, engine.name):
                raise ValueError
            if not self._is_trusted and not is_sealed(_text(data), data["seal"]):
                raise ValueError
            built = _built(data["built"], engine)
        except (OSError, UnreadableError, ValueError, KeyError, TypeError, AttributeError):
            if is_there(self.folder, facts.name):
                self._drop(key.digest)
            return None
        with suppress(OSError):  # a folder that can only be read still serves its engines
            os.utime(facts, follow_symlinks=False)
        return built

    def put(self, key: EngineKey, built: Built) -> Built:
        """Move an engine into the store; the answer has its new path. Raises EngineError where it cannot be written."""
        engine, facts = self._paths(key)
        try:
            _move(built.engine, engine)
            kept = replace(built, engine=engine)
            digest = _sha256(self.folder, engine.name)
            data = {"schema": _SCHEMA, "sha256": digest, "key": asdict(key), "built": _facts(kept)}
            data["seal"] = sealed(_text(data))
            write_whole_bytes(facts, json.dumps(data, indent=1).encode())
        except OSError as error:
            self._drop(key.digest)
            raise EngineError(
                f"{self.folder}: the engine cannot be kept there ({error.strerror}); "
                "make room, or choose another folder"
            ) from None
        self._make_room(key.digest)
        return kept

    def _paths(self, key: EngineKey) -> tuple[Path, Path]:
        return self.folder / f"{key.digest}.engine", self.folder / f"{key.digest}.json"

    def _drop(self, digest: str) -> None:
        for ending in ("json", "engine"):  # never an engine's facts without the engine
            with suppress(OSError):
                (self.folder / f"{digest}.{ending}").unlink()

    def _make_room(self, kept: str) -> None:
        """Drop the least recently used entries until the rest fits; never the one just put, however large."""
        entries = []
        for file in self.folder.iterdir():
            facts = file.with_suffix(".json")
            with suppress(OSError):  # another process has dropped it meanwhile
                if not _is_temporary(file) and file.suffix != ".engine":
                    continue
                if not _is_temporary(file) and facts.exists():
                    entries.append((facts.stat().st_mtime_ns, file.stat().st_size, file.stem))
                elif time.time() - file.stat().st_mtime > _CUT_SHORT:
                    file.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, digest in sorted(entries):
            if total <= self._limit:
                break
            if digest != kept:
                self._drop(digest)
                total -= size


def _is_temporary(file: Path) -> bool:
    """Whether it is the rest of a build or of a write: those are moved to their names when they are whole."""
    return file.name.startswith(".")


def _move(source: Path, target: Path) -> None:
    """Move a file so that the target is there whole or not at all, also from another file system."""
    try:
        source.replace(target)
        return
    except OSError:
        if not source.exists():
            raise
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with source.open("rb") as content, os.fdopen(handle, "wb") as stream:
            shutil.copyfileobj(content, stream, 1024 * 1024)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    source.unlink()


def _text(data: Mapping[str, Any]) -> bytes:
    """What is sealed: all that is known of an engine, its digest included."""
    return json.dumps({name: value for name, value in data.items() if name != "seal"}, sort_keys=True).encode()


def _sha256(folder: Path, name: str) -> str:
    digest = hashlib.sha256()
    with open_to_read(folder, name) as stream:
        while piece := stream.read(1024 * 1024):
            digest.update(piece)
    return digest.hexdigest()


def _facts(built: Built) -> dict[str, Any]:
    data = asdict(built)
    del data["engine"]  # where it lies is where it is found
    return data


def _built(data: Mapping[str, Any], engine: Path) -> Built:
    return Built(
        engine=engine,
        seconds=float(data["seconds"]),
        size=int(data["size"]),
        outcomes=tuple(_outcome(found) for found in data["outcomes"]),
        layers=tuple(_layer(found) for found in data["layers"]),
        warnings=tuple(data["warnings"]),
        unmarked=tuple(data["unmarked"]),
        tactics=None if data["tactics"] is None else Tactics(**data["tactics"]),
    )


def _outcome(data: Mapping[str, Any]) -> PinOutcome:
    return PinOutcome(data["layer"], tuple(data["network_layers"]), dict(data["skipped"]), data["unmatched"])


def _layer(data: Mapping[str, Any]) -> EngineLayer:
    return EngineLayer(
        name=data["name"],
        kind=data["kind"],
        nodes=tuple(data["nodes"]),
        inputs=tuple(_tensor(found) for found in data["inputs"]),
        outputs=tuple(_tensor(found) for found in data["outputs"]),
        tactic=data["tactic"],
        profile=int(data["profile"]),
    )


def _tensor(data: Mapping[str, Any]) -> EngineTensor:
    shape = data["shape"]
    return EngineTensor(data["name"], data["dtype"], None if shape is None else tuple(shape), data["is_linear"])
