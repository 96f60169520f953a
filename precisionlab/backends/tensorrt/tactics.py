"""What the name of a kernel (the inspector's `TacticName`) says of the types that it adds up in, and in which order.

TensorRT does not say it otherwise. The names follow conventions; those that are read here, with what each rests on:

- xmma, `sm80_xmma_fprop_implicit_gemm_i8f16_i8i32_f32_…`: what it takes and gives, what it multiplies and **adds up
  in**, what it scales the sum in. In NVIDIA's example engines (tests/backends/trex.py) the first two are what the
  inspector says of the same layer's tensors, in every one of them.
- cuBLAS, cuDNN and CUTLASS, `ampere_h16816cudnn_…`, `cutlass_tensorop_f16_s16816gemm_f16_…`, `volta_scudnn_…`: the
  letter is the accumulator's type (h half, s float32, i int32), the digits are the shape of the tensor cores'
  instruction, whose last size is how many products it sums at once; without digits there are no tensor cores. CUTLASS 3
  has leave to omit both, and names the types of both operands, the accumulator, …: `gemm_f16_f16_f32_…`
  (CUTLASS's documentation of its profiler).
- `…_hmma_fprop_f16f16f32_…`, of a network's first layer: the last is the accumulator, as in NVIDIA's examples that
  kernel takes and gives half.

A name that fits none of these (`__myl_…`, `_gemm_mha_v2_…`, none at all) tells nothing, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from precisionlab.backends.tensorrt.jobs import EngineLayer
from precisionlab.backends.tensorrt.pin_report import layers_running
from precisionlab.model import Model
from precisionlab.model.contraction import products_of
from precisionlab.model.layers import is_anchor
from precisionlab.system.wording import counted

Accumulator = Literal["half", "float32", "int32"]
Order = Literal["tensor cores", "single products", "winograd", "depthwise", "fft"]

_TYPES = {
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
    "tf32": "tf32",
    "f64": "fp64",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "i8": "int8",
    "u8": "uint8",
    "i4": "int4",
    "i32": "int32",
}
_ACCUMULATORS: Mapping[str, Accumulator] = {"fp16": "half", "fp32": "float32", "int32": "int32"}
_LETTERS: Mapping[str, Accumulator] = {"h": "half", "s": "float32", "i": "int32"}
_TYPE = rf"(?:{'|'.join(sorted(_TYPES, key=len, reverse=True))})"
_PAIR = re.compile(rf"({_TYPE})({_TYPE})?")
_THREE = re.compile(rf"({_TYPE})({_TYPE})({_TYPE})")
_CASK = re.compile(
    r"([hsi])(?:(?P<shape>\d+x\d+x\d+|\d{3,6})(?:tf32|bf16)?)?(?:cudnn|gemm|gemv|fprop|dgrad|wgrad|deconv)"
)
_TENSOR = re.compile(r"tensor\d+x\d+x(?P<k>\d+)")
_SHAPES = {"884": 4, "1684": 4, "1688": 8, "16816": 16, "161616": 16, "8816": 16, "8832": 32, "16832": 32, "16864": 64}
"""The digits of an instruction's shape, M N K → K."""
_WITHOUT = frozenset({"simt", "ffma", "hfma", "hfma2", "ffma2"})
_CORES = frozenset({"hmma", "imma", "tensorop", "wmma"})


@dataclass(frozen=True)
class Tactic:
    """What a kernel's name says; None for what it does not.

    `takes` and `gives` are types as elsewhere (`fp16`, `int8`, …), `accumulator` is what it adds up in. `order` is in
    which order it sums: on tensor cores `at_once` products at a time, single products without tensor cores,
    transformed by Winograd or Fourier, or a depthwise convolution tap by tap. Sums in int32 are exact in any order.
    """

    takes: str | None = None
    gives: str | None = None
    accumulator: Accumulator | None = None
    order: Order | None = None
    at_once: int | None = None


def parse_tactic(name: str) -> Tactic:
    """What this name of a kernel says."""
    words = name.lower().split("_")
    takes, gives, accumulator = _types(words)
    at_once = _at_once(words)
    return Tactic(takes, gives, accumulator, _order(words, accumulator, at_once), at_once)


def tactic_of(layer: EngineLayer) -> Tactic:
    """What the name of a layer's kernel says; of a CudaDepthwiseConvolution, which has none, what its kind does."""
    if layer.tactic is None:
        return Tactic(order="depthwise") if layer.kind == "CudaDepthwiseConvolution" else Tactic()
    return parse_tactic(layer.tactic)


def _types(words: Sequence[str]) -> tuple[str | None, str | None, Accumulator | None]:
    """What it takes, what it gives, and what it adds up in."""
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        io, inner, scale = _PAIR.fullmatch(first), _PAIR.fullmatch(second), _PAIR.fullmatch(third)
        # Of CUTLASS's single types, which stand in rows as well, none is a pair.
        if io and io[2] and inner and scale and not scale[2]:
            return _TYPES[io[1]], _TYPES[io[2]], _ACCUMULATORS.get(_TYPES[inner[2] or inner[1]])
    for word in words:
        if cask := _CASK.fullmatch(word):
            return None, None, _LETTERS[cask[1]]
    if "hmma" in words and (three := next(filter(None, map(_THREE.fullmatch, words)), None)):
        return _TYPES[three[1]], _TYPES[three[2]], _ACCUMULATORS.get(_TYPES[three[3]])
    if "gemm" in words and words[0].startswith("cutlass3x"):
        named = [_TYPES[word] for word in words[words.index("gemm") + 1 :][:3] if word in _TYPES]
        if len(named) == 3:
            return named[0], None, _ACCUMULATORS.get(named[2])
    return None, None, None


def _at_once(words: Iterable[str]) -> int | None:
    """How many products an instruction of the tensor cores sums; None where the name has none."""
    for word in words:
        if tensor := _TENSOR.fullmatch(word):
            return int(tensor["k"])
        if (cask := _CASK.fullmatch(word)) and (shape := cask["shape"]):
            return int(shape.rpartition("x")[2]) if "x" in shape else _SHAPES.get(shape)
    return None


def _order(words: Sequence[str], accumulator: Accumulator | None, at_once: int | None) -> Order | None:
    if any("winograd" in word for word in words):
        return "winograd"
    if any(word.startswith(("depthwise", "dwconv")) for word in words):
        return "depthwise"
    if any(word.startswith("fft") for word in words):
        return "fft"
    if at_once is not None or not _CORES.isdisjoint(words):
        return "tensor cores"
    is_single = not _WITHOUT.isdisjoint(words) or any(
        (cask := _CASK.fullmatch(word)) and not cask["shape"] for word in words
    )
    return "single products" if is_single and accumulator != "int32" else None


@dataclass(frozen=True)
class LayerSum:
    """How an engine adds up the products of one layer of the model.

    `products` is how many one value is the sum of. `accumulators`, `orders` and `tactics` are of the kernels that run
    it: usually of one; empty where their names do not tell.
    """

    products: int | None
    accumulators: tuple[Accumulator, ...]
    orders: tuple[Order, ...]
    tactics: tuple[str, ...]


def sums_of(model: Model, layers: Sequence[EngineLayer]) -> dict[str, LayerSum]:
    """Layer name → how the engine adds up, for every layer that is a Conv, ConvTranspose, Gemm or MatMul.

    Nothing where the engine does not tell its layers.
    """
    if not layers:
        return {}
    summing = [layer for layer in model.layers if is_anchor(model.node[layer.nodes[0]])]
    asked = [(layer.nodes[:1], layer.outputs, layer.nodes[:1]) for layer in summing]
    return {
        layer.name: _sum(products_of(model.node[layer.nodes[0]], model.tensors), running)
        for layer, running in zip(summing, layers_running(layers, asked), strict=True)
    }


def _sum(products: int | None, running: Iterable[EngineLayer]) -> LayerSum:
    # A kernel that only gives the layer's result (an activation of its own) says nothing of sums.
    known = [(layer, tactic) for layer in running for tactic in (tactic_of(layer),) if tactic != Tactic()]
    return LayerSum(
        products,
        tuple(dict.fromkeys(tactic.accumulator for _, tactic in known if tactic.accumulator is not None)),
        tuple(dict.fromkeys(tactic.order for _, tactic in known if tactic.order is not None)),
        tuple(dict.fromkeys(layer.tactic for layer, _ in known if layer.tactic is not None)),
    )


def count_sums(sums: Mapping[str, LayerSum]) -> dict[str, int]:
    """How many layers add in half (somewhere), else in float32, else in int32, and of how many it is not known."""
    found = dict.fromkeys(("half", "float32", "int32", "not known"), 0)
    for layer in sums.values():
        found[next((kind for kind in found if kind in layer.accumulators), "not known")] += 1
    return found


def sums_text(counts: Mapping[str, int]) -> str:
    """`by their kernels' names, 20 of 21 layers that sum products add up in half, 1 in float32`; empty for none."""
    total = sum(counts.values())
    if not total:
        return ""
    return f"by their kernels’ names, of {counted(total, 'layer')} that sum products {', '.join(_parts(counts))}"


def _parts(counts: Mapping[str, int]) -> Iterator[str]:
    for kind in ("half", "float32", "int32"):
        if counts[kind]:
            yield f"{counts[kind]} {'adds' if counts[kind] == 1 else 'add'} up in {kind}"
    if counts["not known"]:
        yield f"{counts['not known']} {'does' if counts['not known'] == 1 else 'do'} not say"
