"""What the names of kernels say of their sums.

`trex.csv` has, of the convolutions of six engines that NVIDIA publishes with its Engine Explorer, each kernel's name,
how many layers it runs, the layer's type, and the types that the inspector gives its first input and its output: facts
read from github.com/NVIDIA/TensorRT at 768d994b, `tools/experimental/trt-engine-explorer` (Apache-2.0). Other names are
from CUTLASS's documentation, and from logs and traces that people have published.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from models import load, proto

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor
from precisionlab.backends.tensorrt.tactics import (
    LayerSum,
    Tactic,
    count_sums,
    parse_tactic,
    sums_of,
    sums_text,
    tactic_of,
)
from precisionlab.model.contraction import products_of

TREX = list(csv.DictReader(Path(__file__).with_name("trex.csv").open(encoding="utf-8")))


def counts_of(engine: str) -> Counter[str | None]:
    """How many of an engine's convolutions add up in which type."""
    found: Counter[str | None] = Counter()
    for row in TREX:
        if row["engine"] == engine:
            tactic = tactic_of(EngineLayer("conv", row["kind"], (), (), (), row["tactic"] or None))
            found[tactic.accumulator] += int(row["layers"])
    return found


@pytest.mark.parametrize(
    ("engine", "counts"),
    [
        ("A100 fp16", {"half": 20, "float32": 1}),
        ("RTX 3090 fp16", {"half": 53, "float32": 1}),
        ("A100 fp32", {"float32": 21}),
        ("A100 qat", {"int32": 21}),
        ("RTX 3090 fp32", {"float32": 53, None: 1}),
        ("MobileNet qat", {"int32": 35, "float32": 1, None: 17}),
    ],
)
def test_nvidias_example_engines_add_up_in(engine: str, counts: dict[str | None, int]) -> None:
    assert counts_of(engine) == counts


def test_what_a_name_takes_and_gives_is_what_the_inspector_says_of_the_layer() -> None:
    told = [(parse_tactic(row["tactic"]), row) for row in TREX if "_xmma_" in row["tactic"]]
    assert len(told) > 40
    for tactic, row in told:
        assert (tactic.takes, tactic.gives) == (row["takes"], row["gives"]), row["tactic"]


@pytest.mark.parametrize(
    ("name", "tactic"),
    [
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16",
         Tactic("fp16", "fp16", "float32", "tensor cores", 16)),
        ("sm70_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x32_stage1_g1_tensor8x8x4_t1r1s1",
         Tactic("fp16", "fp16", "half", "tensor cores", 4)),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize64x32x64_g1_tensor16x8x8_simple",
         Tactic("fp32", "fp32", "float32", "tensor cores", 8)),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc_tilesize128x64x8_stage3_g1_ffma_t1r3s3",
         Tactic("fp32", "fp32", "float32", "single products")),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
         Tactic("bf16", "bf16", "float32")),
        ("sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64_stage4_warpsize2x2x1_tensor16x8x32_bias_f32",
         Tactic("fp8", "fp8", "float32", "tensor cores", 32)),
        ("sm80_xmma_depthwise_convolution_fprop_tiling_f16f16_f32f32_f32_nhwckrsc_nhwc_tilesize1x8x8",
         Tactic("fp16", "fp16", "float32", "depthwise")),
        ("trt_ampere_h16816gemm_128x64_ldg8_nn_v1", Tactic(accumulator="half", order="tensor cores", at_once=16)),
        ("trt_turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn_v1",
         Tactic(accumulator="half", order="tensor cores", at_once=8)),
        ("ampere_fp16_s16816gemm_fp16_256x128_ldg8_f2f_gelu_nn_v1",
         Tactic(accumulator="float32", order="tensor cores", at_once=16)),
        ("turing_s1688cudnn_fp16_128x128_ldg8_relu_f2f_exp_small_nhwc_tn_v1",
         Tactic(accumulator="float32", order="tensor cores", at_once=8)),
        ("volta_h884cudnn_256x64_ldg8_relu_exp_medium_nhwc_tn_v1",
         Tactic(accumulator="half", order="tensor cores", at_once=4)),
        ("turing_int8_i8816cudnn_int8_256x64_ldg16_relu_singleBuffer_small_nt_v1",
         Tactic(accumulator="int32", order="tensor cores", at_once=16)),
        ("ampere_int8_i16832cudnn_int8_256x128_ldg16_relu_stages_64x3_small_nt_v1",
         Tactic(accumulator="int32", order="tensor cores", at_once=32)),
        ("volta_scudnn_128x64_sliced1x2_ldg4_relu_exp_small_nhwc_tn_v1",
         Tactic(accumulator="float32", order="single products")),
        ("maxwell_fp16x2_hcudnn_fp16x2_128x64_relu_small_nn_v1", Tactic(accumulator="half", order="single products")),
        ("ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1",
         Tactic(accumulator="float32", order="winograd")),
        ("maxwell_fp16_scudnn_winograd_fp16_fp32_128x128_ldg1_ldg4_tile148n_nt",
         Tactic(accumulator="float32", order="winograd")),
        ("turing_fp16x2_hcudnn_winograd_fp16x2_128x128_ldg1_ldg4_relu_tile148m_nt_v1",
         Tactic(accumulator="half", order="winograd")),
        ("trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2",
         Tactic("fp16", "fp16", "float32", "tensor cores")),
        ("cutlass_tensorop_f16_s16816fprop_optimized_f16_128x64_64x3",
         Tactic(accumulator="float32", order="tensor cores", at_once=16)),
        ("cutlass_tensorop_h1688gemm_128x64_32x2_tn_align4",
         Tactic(accumulator="half", order="tensor cores", at_once=8)),
        ("cutlass_simt_hgemm_128x32_8x2_tt_align1", Tactic(accumulator="half", order="single products")),
        ("cutlass3x_sm90_tensorop_s64x128x16gemm_f16_f16_f32_f32_128x128x64_2x1x1_0_ntn_align8",
         Tactic(accumulator="float32", order="tensor cores", at_once=16)),
        ("cutlass3x_sm90_tensorop_gemm_f16_f16_f16_f16_f16_128x128x64_1x1x1_0_tnn_align8",
         Tactic(takes="fp16", accumulator="half", order="tensor cores")),
        ("fft2d_r2c_32x32", Tactic(order="fft")),
    ],
)  # fmt: skip
def test_a_name_says(name: str, tactic: Tactic) -> None:
    assert parse_tactic(name) == tactic


@pytest.mark.parametrize(
    "name",
    [
        "__myl_MulAddMinMaxMulMove_0xe65db2791b963792b9c36017c670a7f1",
        "__myelin_CASK_STUB",
        "_gemm_mha_v2_0x1eac4b5b3bd6a2f8",
        "sm50_xmma_pooling_fw_4d_FP16FP32NHWC_Average_FastDiv_CAlign8",
        "my_shift_plugin_f16",
        "double",
        "",
    ],
)
def test_a_name_of_no_known_convention_tells_nothing(name: str) -> None:
    assert parse_tactic(name) == Tactic()


def test_cudas_depthwise_kernel_has_no_name_and_adds_tap_by_tap() -> None:
    layer = EngineLayer("dw", "CudaDepthwiseConvolution", (), (), ())
    assert tactic_of(layer) == Tactic(order="depthwise")
    assert tactic_of(EngineLayer("x", "CudaPooling", (), (), ())) == Tactic()


@pytest.mark.parametrize(
    ("node", "weight", "given", "products"),
    [
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", "float[4,8,3,3] w", "float[1,8,N,N] x", 72),
        ("Conv <group = 8> (x, w)", "float[8,1,5,5] w", "float[1,8,9,9] x", 25),
        ("ConvTranspose (x, w)", "float[8,4,3,3] w", "float[1,8,9,9] x", 72),
        ("ConvTranspose <strides = [2, 2]> (x, w)", "float[8,4,3,3] w", "float[1,8,9,9] x", 32),
        ("ConvTranspose <strides = [2, 2], dilations = [2, 2]> (x, w)", "float[8,4,3,3] w", "float[1,8,9,9] x", 72),
        ("ConvTranspose <strides = [2, 2], group = 2> (x, w)", "float[8,4,2,2] w", "float[1,8,9,9] x", 4),
        ("MatMul (x, w)", "float[64,4] w", "float[1,3,64] x", 64),
        ("MatMul (x, w)", "float[2,64,4] w", "float[2,3,K] x", 64),
        ("MatMul (x, w)", "float[64] w", "float[2,3,K] x", 64),
        ("Gemm <transA = 1> (x, w)", "float[64,4] w", "float[64,3] x", 64),
        ("Gemm <transB = 1> (x, w)", "float[4,64] w", "float[3,K] x", 64),
        ("MatMul (x, w)", "float[L,4] w", "float[3,K] x", None),
        ("Add (x, w)", "float[4] w", "float[4] x", None),
    ],
)
def test_the_products_that_one_value_is_the_sum_of(
    tmp_path: Path, node: str, weight: str, given: str, products: int | None
) -> None:
    model = load(proto(f"({given}, {weight}) => (float y) {{y = {node}}}"), tmp_path)
    (only,) = (model.node[layer.nodes[0]] for layer in model.layers)
    assert products_of(only, model.tensors) == products


def engine_layer(name: str, nodes: tuple[str, ...], gives: str, tactic: str | None) -> EngineLayer:
    return EngineLayer(name, "CaskConvolution", nodes, (), (EngineTensor(gives, "fp16", None),), tactic)


HALF = "ampere_h16816cudnn_128x128_ldg8_relu_exp_stages_64x3_large_nhwc_tn_v1"
SINGLE = "trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2"


def test_each_summing_layer_is_told_with_what_its_kernels_say(tmp_path: Path) -> None:
    body = (
        "[c1] a = Conv (x, w)\n [r1] b = Relu (a)\n [m] m = MaxPool <kernel_shape = [1, 1]> (b)\n"
        "[c2] c = Conv (m, w)\n [c3] d = Conv (c, w)\n [c4] y = Conv (d, w)"
    )
    text = f"(float[1,4,2,2] x) => (float[1,4,2,2] y) <float[4,4,1,1] w = {{{', '.join('1' * 16)}}}> {{ {body} }}"
    model = load(proto(text), tmp_path)
    layers = [
        engine_layer("c1", ("c1",), "a", HALF),
        engine_layer("r1", ("r1",), "b", None),  # its activation runs alone, and sums nothing
        engine_layer("m", ("m",), "m", "sm50_xmma_pooling_fw_4d_FP16FP32NHWC_Average_FastDiv_CAlign8"),
        engine_layer("c2", (), "c", SINGLE),  # without metadata: by its name, and the tensor that it gives
        engine_layer("c3", ("c3",), "d", "__myl_Conv_0x1"),
    ]
    found = sums_of(model, layers)
    assert found == {
        "c1": LayerSum(4, ("half",), ("tensor cores",), (HALF,)),
        "c2": LayerSum(4, ("float32",), ("tensor cores",), (SINGLE,)),
        "c3": LayerSum(4, (), (), ()),
        "c4": LayerSum(4, (), (), ()),
    }
    assert count_sums(found) == {"half": 1, "float32": 1, "int32": 0, "not known": 2}
    assert sums_text(count_sums(found)) == (
        "by their kernels’ names, of 4 layers that sum products 1 adds up in half, 1 adds up in float32, 2 do not say"
    )


def test_an_engine_that_tells_no_layers_says_nothing_of_sums(tmp_path: Path) -> None:
    model = load(proto("(float[1,4] x, float[4,4] w) => (float[1,4] y) {y = MatMul (x, w)}"), tmp_path)
    assert sums_of(model, ()) == {}
    assert sums_text(count_sums({})) == ""
