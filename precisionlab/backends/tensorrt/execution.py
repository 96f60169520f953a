"""A built engine, loaded and run: what goes in, what comes out, in the engine's own types.

Not by Polygraphy's TrtRunner, though it does much of this: it imports `tensorrt` (or by a setting TensorRT-RTX) itself,
it ends in log lines where we need errors that say whose fault it is, it hands inputs of another type on as they are or
refuses them, reads no bfloat16 debug tensors, keeps an allocator on every output (a call into Python for each, in each
run that is timed), and has no stream that events could be recorded in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from precisionlab.backends.tensorrt.buffers import Buffers, HostBuffers, Memory
from precisionlab.backends.tensorrt.cuda import Cuda, Stream
from precisionlab.backends.tensorrt.jobs import NOTHING, Arrays, Shape, Watch
from precisionlab.backends.tensorrt.layouts import packed, unpacked, values_in
from precisionlab.backends.tensorrt.logger import LogKeeper
from precisionlab.backends.tensorrt.ports import Port, _described, _dims, _nbytes, check_inputs, profile_for, read_ports
from precisionlab.backends.tensorrt.tuning import make_runtime, stream_weights
from precisionlab.backends.tuning import UNTUNED, Tuning
from precisionlab.errors import DataError, EngineError


class Engine:
    """One engine on the GPU, for one run at a time; a context manager.

    `inputs` and `outputs` are what it has. `run` is what most want; who times it calls `bind` once, then `enqueue` and
    `stream.wait()` as often as needed. `cuda` and `trt` are what it runs by.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        logger: Any,
        path: Path,
        keeper: LogKeeper | None = None,
        tuning: Tuning = UNTUNED,
    ) -> None:
        """Load an engine's file, which was built with `tuning`.

        `keeper` is what `logger` writes to: with it, errors say what TensorRT has said. Raises EngineError where the
        file cannot be read, TensorRT refuses it, or the GPU has no room.
        """
        self.trt = trt
        self.cuda = cuda
        self.name = path.name
        self._keeper = keeper
        self._listener: Any | None = None
        self._current: Any | None = None
        self._engine: Any | None = None
        self._host = HostBuffers()
        try:
            serialized = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: the engine cannot be read: {error.strerror}") from None
        with ExitStack() as stack:
            self._device = stack.enter_context(Buffers(cuda))
            self.stream = stack.enter_context(Stream(cuda))
            self._allocator = make_allocator(trt, self._reserve)
            runtime = make_runtime(trt, logger, tuning)
            self._runtime = runtime
            stack.callback(self._release)
            self._forget()
            self._engine = self._runtime.deserialize_cuda_engine(serialized)
            if self._engine is None:
                raise EngineError(self._refusal(path))
            stream_weights(self._engine, tuning, self.name)
            self.inputs, self.outputs = read_ports(trt, self._engine)
            self._ports = {port.name: port for port in (*self.inputs, *self.outputs)}
            self._new_context()
            self._closing = stack.pop_all()

    def run(self, inputs: Arrays, listener: Any | None = None, watch: Watch = NOTHING) -> dict[str, NDArray[Any]]:
        """All outputs for one sample, in the engine's own types: half and bfloat16 stay what they are.

        `listener` is what `make_listener` gives; it is called for each debug tensor of the engine that is watched.
        Raises DataError where an input is missing, unknown, or not of a type and shape that the engine takes,
        EngineError where the run fails, and what the listener has raised.
        """
        self._listen(listener, watch)
        self.bind(inputs)
        try:
            self.enqueue()
            return self.fetch()
        finally:
            if listener is not None:
                # Its error is the cause of what TensorRT makes of it.
                listener.raise_kept()

    def bind(self, inputs: Arrays) -> None:
        """Copy one sample's inputs to where the engine takes them, and make room for its outputs.

        Raises DataError and EngineError as `run` does.
        """
        context = self._context
        self._forget()
        arrays = check_inputs(inputs, self.inputs)
        self._take_profile(profile_for(arrays, self.inputs))
        for port in self.inputs:
            array = arrays[port.name]
            if port.is_dynamic and not context.set_input_shape(port.name, array.shape):
                raise DataError(f"input {port.name!r}: TensorRT refuses the shape {_dims(array.shape)}{self._why()}")
            self._set_address(port, self._memory(port).upload(port.name, self._as_stored(port, array)))
        self._infer_shapes(arrays)
        for port in self.outputs:
            if port.alias is not None:
                taken = self._ports[port.alias]
                self._set_address(port, self._memory(taken).reserve(taken.name, arrays[taken.name].nbytes))
                continue
            shape = tuple(context.get_tensor_shape(port.name))
            if min(shape, default=0) >= 0:
                self._set_address(port, self._memory(port).reserve(port.name, self._nbytes(port, shape)))
            elif port.layout is not None:
                raise EngineError(f"{self.name}: only the run itself tells how large {port.name!r} is; leave it LINEAR")
            elif not context.set_output_allocator(port.name, self._allocator):
                raise EngineError(f"{self.name}: TensorRT takes no allocator for output {port.name!r}{self._why()}")

    def enqueue(self) -> None:
        """Queue one run of what is bound in `stream`. Raises EngineError where TensorRT does not begin it."""
        begun = self._context.execute_async_v3(self.stream.address)
        self._allocator.raise_kept()
        if not begun:
            raise EngineError(f"{self.name}: TensorRT could not run the engine{self._why()}")

    def fetch(self) -> dict[str, NDArray[Any]]:
        """The outputs of the last run, once it is done. Raises EngineError where it has failed."""
        self.stream.wait()
        return {port.name: self._output(port) for port in self.outputs}

    @contextmanager
    def profiled(self, profiler: Any) -> Iterator[Callable[[], bool]]:
        """Within it, runs are watched by what `make_profiler` gives.

        Bind the inputs anew, and after each run that is done call what this yields. It tells the profiler the layers'
        times, and is false where TensorRT has none.
        """
        self._new_context()
        self._context.profiler = profiler
        # Else each run ends with the report, within the call that should only begin it.
        self._context.enqueue_emits_profile = False
        try:
            yield lambda: bool(self._context.report_to_profiler())
        finally:
            # A context with a profiler is slower, and nothing says how one is taken away again.
            self._new_context()

    def close(self) -> None:
        """Give up the engine and all its memory."""
        self._closing.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The context: what one run after the other is done in

    @property
    def _context(self) -> Any:
        if self._current is None:
            raise EngineError(f"{self.name}: the engine is closed")
        return self._current

    def _new_context(self) -> None:
        """A context with nothing bound, no profiler and no listener."""
        self._current = None  # first: both might not fit into the GPU's memory
        self._listener = None
        engine = self._engine
        if engine is None:
            raise EngineError(f"{self.name}: the engine is closed")
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"{self.name}: TensorRT has no room to run the engine{self._why()}; end other programs that use the "
                "GPU, or give smaller shapes"
            )
        self._current = context

    def _release(self) -> None:
        """Let TensorRT's objects go, none before those that it made."""
        self._current = None
        self._listener = None
        self._engine = None
        self._runtime = None

    def _listen(self, listener: Any | None, watch: Watch) -> None:
        """Let this one see the debug tensors that are watched; None: nobody."""
        if listener is self._listener:
            return
        if listener is None:
            self._new_context()
            return
        context = self._context
        if not context.set_debug_listener(listener):
            raise EngineError(f"{self.name}: TensorRT takes no debug listener{self._why()}")
        self._listener = listener
        # Nothing is asked of the state of what was not marked: an engine need not have tensors of both kinds.
        if watch.marked and not context.set_all_tensors_debug_state(True):
            raise EngineError(f"{self.name}: TensorRT does not show the debug tensors that it marked{self._why()}")
        if watch.unfused:
            context.unfused_tensors_debug_state = True

    # Tensors

    def _take_profile(self, number: int) -> None:
        """Let the context run in this one of the engine's profiles; a new one is in the first."""
        context = self._context
        if context.active_optimization_profile == number:
            return
        if not context.set_optimization_profile_async(number, self.stream.address):
            raise EngineError(f"{self.name}: TensorRT does not change to profile {number}{self._why()}")
        self.stream.wait()

    def _memory(self, port: Port) -> Memory:
        return self._host if port.on_host else self._device

    def _reserve(self, name: str, nbytes: int) -> int:
        """Memory for an output whose size only the run itself tells."""
        return self._memory(self._ports[name]).reserve(name, nbytes)

    def _set_address(self, port: Port, address: int) -> None:
        if not self._context.set_tensor_address(port.name, address):
            raise EngineError(f"{self.name}: TensorRT takes no address for {port.name!r}{self._why()}")

    def _infer_shapes(self, arrays: Arrays) -> None:
        """Let TensorRT find out all shapes that the inputs tell."""
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError:
            given = ", ".join(_described(port, arrays[port.name]) for port in self.inputs)
            raise DataError(f"these inputs do not go together in the engine: {given}{self._why()}") from None
        if unknown:
            raise EngineError(f"{self.name}: TensorRT misses the shape or the values of {', '.join(unknown)}")

    def _output(self, port: Port) -> NDArray[Any]:
        if port.alias is not None:
            taken = self._ports[port.alias]
            shape = tuple(self._context.get_tensor_shape(port.name))
            return self._memory(taken).download(taken.name, port.dtype, shape)
        shape = tuple(self._context.get_tensor_shape(port.name))
        if min(shape, default=0) < 0:  # it stays unknown after the run, too: only the allocator is told
            if port.name not in self._allocator.shapes:
                raise EngineError(f"{self.name}: TensorRT has not told the shape of output {port.name!r}{self._why()}")
            shape = self._allocator.shapes[port.name]
        if port.layout is None:
            return self._memory(port).download(port.name, port.dtype, shape)
        strides = self._strides(port)
        memory = self._memory(port).download(port.name, port.dtype, (values_in(shape, strides, port.layout),))
        return unpacked(memory, shape, strides, port.layout)

    def _strides(self, port: Port) -> tuple[int, ...]:
        """Those of a tensor whose shape is known, in its elements. Raises EngineError."""
        strides = tuple(self._context.get_tensor_strides(port.name))
        if len(strides) != len(port.shape) or min(strides, default=0) < 0:
            raise EngineError(f"{self.name}: TensorRT does not tell how {port.name!r} is stored{self._why()}")
        return strides

    def _as_stored(self, port: Port, array: NDArray[Any]) -> NDArray[Any]:
        return array if port.layout is None else packed(array, self._strides(port), port.layout)

    def _nbytes(self, port: Port, shape: Shape) -> int:
        if port.layout is None:
            return _nbytes(port, shape)
        return values_in(shape, self._strides(port), port.layout) * port.dtype.itemsize

    # Words

    def _forget(self) -> None:
        if self._keeper is not None:
            self._keeper.forget()

    def _why(self) -> str:
        """What TensorRT has said last, as ` (…)`."""
        errors = () if self._keeper is None else self._keeper.errors
        return f" ({errors[-1]})" if errors else ""

    def _refusal(self, path: Path) -> str:
        return (
            f"{path}: TensorRT cannot load the engine{self._why()}. An engine loads with the TensorRT that built it, "
            "on the kind of GPU that it was built for (TensorRT-RTX: compute capability 7.5, 8.x and 12.x); here are "
            f"{self.trt.__version__} and {self.cuda.device()}. Delete the file to have it built anew"
        )


def make_allocator(trt: Any, reserve: Callable[[str, int], int]) -> Any:
    """A `trt.IOutputAllocator` for outputs whose shape depends on values: it takes memory from `reserve(name, bytes)`.

    `shapes` has each output's shape in the last run. TensorRT does not hear of an exception, so none leaves the
    allocator: the first is kept, the output gets no memory, and `raise_kept()` raises it; call that after every run.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        """TensorRT's output allocator, for all outputs of one engine."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, Shape] = {}
            self._kept: BaseException | None = None

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:
            """Called by TensorRT 8.6, within a run, with the bytes that an output needs; 0 where there are none."""
            try:
                return reserve(tensor_name, size)
            except BaseException as error:
                self._kept = self._kept or error
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any) -> int:
            """Called by later versions. The memory is ready at once, so the stream does not matter."""
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            """Called by TensorRT when an output's shape is known."""
            self.shapes[tensor_name] = tuple(shape)

        def raise_kept(self) -> None:
            """Raise what went wrong in `reserve`, if anything did."""
            kept, self._kept = self._kept, None
            if kept is not None:
                raise kept

    return Allocator()
