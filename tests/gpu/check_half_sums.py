"""Holds the emulation of sums in half against the real thing; needs PyTorch with CUDA, cuda-python with NVRTC, a GPU.

    PYTHONPATH=<repository> python tests/gpu/check_half_sums.py

Real are cuBLAS with its half compute type (PyTorch's `allow_fp16_accumulation`) and cuDNN's convolutions with a half
compute type (its C interface, by ctypes). Held against them: the CPU's compiled loop and the GPU's kernels of our own.
Prints a line for each shape with the share of outputs that are the same bit for bit, and exits with 1 where one is
below 99 %.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from precisionlab.backends.sums.operands import product_of
from precisionlab.plan.arithmetic import Sums
from precisionlab.rewrite.sums import SUMS

GOAL = 0.99
_HALF, _TENSOR_OP, _NHWC, _CROSS = 2, 1, 1, 1  # cuDNN's enumerations


def main() -> int:
    """All shapes, one after the other."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    print(torch.cuda.get_device_name(0), "PyTorch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    least = 1.0
    for products in (64, 256, 1024, 4096):
        least = min(least, check_gemm(1024, products, 1024))
    shapes = [
        *((3, 64, 3, 1), (8, 64, 3, 1), (64, 64, 3, 1), (3, 64, 7, 1), (64, 128, 1, 1), (64, 64, 7, 1)),
        *((64, 64, 3, 64), (96, 96, 5, 96), (64, 64, 7, 64)),
    ]
    for channels, rows, kernel, group in shapes:
        least = min(least, check_convolution(channels, rows, kernel, group))
    print(f"the least: {least:.2%}")
    return int(least < GOAL)


def check_gemm(rows: int, products: int, columns: int) -> float:
    """cuBLAS against ours."""
    a = torch.randn(rows, products, device="cuda").half()
    b = torch.randn(products, columns, device="cuda").half()
    real = (a @ b).float().cpu().numpy()
    return told(f"GEMM {rows}×{products}×{columns}", "MatMul", {}, a, b, real)


def check_convolution(channels: int, rows: int, kernel: int, group: int) -> float:
    """cuDNN against ours, the nearest of its algorithms."""
    x = torch.randn(2, channels, 28, 28, device="cuda").half()
    w = torch.randn(rows, channels // group, kernel, kernel, device="cuda").half()
    pad = kernel // 2
    attributes = {"pads": [pad] * 4, "group": group}
    name = f"Conv {channels}→{rows}, {kernel}×{kernel}, {group} groups"
    found = 0.0
    for algorithm, tensor_op in itertools.product((1, 0), (True, False)):
        real = cudnn(x, w, pad, group, algorithm, tensor_op)
        if real is None:
            continue
        kind = f"{name}, cuDNN algorithm {algorithm}{', tensor cores' if tensor_op else ''}"
        found = max(found, told(kind, "Conv", attributes, x, w, real))
    return found


def told(
    name: str, op_type: str, attributes: dict[str, object], a: torch.Tensor, b: torch.Tensor, real: np.ndarray
) -> float:
    """The share that is the same, with the orders that there are; the larger one of tensor cores' is returned."""
    left, right = a.float().cpu().numpy(), b.float().cpu().numpy()
    node = ir.Node("", op_type, [ir.Value(name="a"), ir.Value(name="b")], ir.convenience.convert_attributes(attributes))
    shares = []
    for sums in (Sums.HALF, Sums.HALF_SINGLE):
        found = product_of(node, sums)(left, right)
        shares.append(float((found == real).mean()))
    ours = on_gpu(op_type, attributes, left, right, Sums.HALF)
    same = "not tried" if ours is None else f"{(ours == real).mean():.2%}"
    exact = product_of(node, Sums.HALF)(left, right) if ours is None else ours
    figures = [f"{sqnr(left, right, op_type, attributes, value):.1f} dB" for value in (real, exact)]
    share = f"{shares[0]:.2%}, single products {shares[1]:.2%}, our kernel on the GPU {same}"
    print(f"{name}: {share}; {figures[0]}, ours {figures[1]}")
    return max(shares)


def sqnr(left: np.ndarray, right: np.ndarray, op_type: str, attributes: dict[str, object], found: np.ndarray) -> float:
    """Of these against float64."""
    a, b = (torch.from_numpy(v).double() for v in (left, right))
    if op_type == "MatMul":
        exact = (a @ b).numpy()
    else:
        exact = torch.nn.functional.conv2d(a, b, padding=attributes["pads"][0], groups=attributes["group"]).numpy()
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def on_gpu(
    op_type: str, attributes: dict[str, object], left: np.ndarray, right: np.ndarray, sums: Sums
) -> np.ndarray | None:
    """By the kernels of our own; None without ONNX Runtime's CUDA build, whose memory they work in."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return None
    from precisionlab.backends.cuda.arrays import DeviceArray
    from precisionlab.backends.cuda.device import gpu

    given = ir.convenience.convert_attributes({**attributes, SUMS: sums.value})
    node = ir.Node("precisionlab.sums", op_type, [ir.Value(name="a"), ir.Value(name="b")], given)
    work = gpu(0)._products.of(node)
    second = right if op_type == "Conv" else DeviceArray(ort.OrtValue.ortvalue_from_numpy(right, "cuda", 0))
    return work(DeviceArray(ort.OrtValue.ortvalue_from_numpy(left, "cuda", 0)), second).host()


def cudnn(x: torch.Tensor, w: torch.Tensor, pad: int, group: int, algorithm: int, tensor_op: bool) -> np.ndarray | None:
    """cuDNN's forward convolution with a half compute type, channels last; None where it has none such."""
    library = _library()
    handle, xd, wd, yd, cd = (ctypes.c_void_p() for _ in range(5))
    _ok(library.cudnnCreate(ctypes.byref(handle)))
    for make, place in (
        *((library.cudnnCreateTensorDescriptor, xd), (library.cudnnCreateFilterDescriptor, wd)),
        *((library.cudnnCreateTensorDescriptor, yd), (library.cudnnCreateConvolutionDescriptor, cd)),
    ):
        _ok(make(ctypes.byref(place)))
    n, c, h, width = x.shape
    _ok(library.cudnnSetTensor4dDescriptor(xd, _NHWC, _HALF, n, c, h, width))
    _ok(library.cudnnSetFilter4dDescriptor(wd, _HALF, _NHWC, *w.shape))
    _ok(library.cudnnSetConvolution2dDescriptor(cd, pad, pad, 1, 1, 1, 1, _CROSS, _HALF))
    _ok(library.cudnnSetConvolutionGroupCount(cd, group))
    _ok(library.cudnnSetConvolutionMathType(cd, _TENSOR_OP if tensor_op else 3))  # 3: FMA alone
    _ok(library.cudnnSetTensor4dDescriptor(yd, _NHWC, _HALF, n, w.shape[0], h, width))
    y = torch.full((n, h, width, w.shape[0]), float("nan"), device="cuda", dtype=torch.half)
    room = torch.empty(1 << 28, device="cuda", dtype=torch.uint8)
    first, second = x.permute(0, 2, 3, 1).contiguous(), w.permute(0, 2, 3, 1).contiguous()
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    code = library.cudnnConvolutionForward(
        *(handle, ctypes.byref(one), xd, ctypes.c_void_p(first.data_ptr()), wd, ctypes.c_void_p(second.data_ptr()), cd),
        *(algorithm, ctypes.c_void_p(room.data_ptr()), ctypes.c_size_t(room.numel())),
        *(ctypes.byref(zero), yd, ctypes.c_void_p(y.data_ptr())),
    )
    torch.cuda.synchronize()
    library.cudnnDestroy(handle)
    return None if code else y.permute(0, 3, 1, 2).float().cpu().numpy()


def _library() -> ctypes.CDLL:
    places = [
        *Path(torch.__file__).parents[1].glob("nvidia/cudnn/lib/libcudnn.so.9"),
        *Path("/usr/lib").glob("*/libcudnn.so.9"),
    ]
    return ctypes.CDLL(str(places[0]) if places else "libcudnn.so.9")


def _ok(code: int) -> None:
    if code:
        raise RuntimeError(f"cuDNN said {code}")


if __name__ == "__main__":
    sys.exit(main())
