"""What pins asked for against what an engine does, for engines' layers as each version of TensorRT describes them."""

from __future__ import annotations

import pytest
from models import digits

from precisionlab.backends.tensorrt.jobs import EngineLayer, EngineTensor, LayerPin, PinOutcome
from precisionlab.backends.tensorrt.pin_report import PinReport, parts_of, ran_in, reformats_of, reports_of
from precisionlab.precision import Precision

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
UNNAMED = "(Unnamed Layer* 12) [ElementWise]"


def tensors(*described: str) -> tuple[EngineTensor, ...]:
    """`name:dtype`, or a name alone where the engine does not tell the type."""
    pairs = (text.rpartition(":") if ":" in text else (text, "", "") for text in described)
    return tuple(EngineTensor(name, dtype or None, None) for name, _, dtype in pairs)


def layer(name: str, takes: str, gives: str, nodes: tuple[str, ...] = (), kind: str = "CaskConvolution") -> EngineLayer:
    return EngineLayer(name, kind, nodes, tensors(*takes.split()), tensors(*gives.split()))


def copy(number: int, to: str, takes: str, gives: str, kind: str = "Reformat", side: str = "Input") -> EngineLayer:
    return layer(f"Reformatting CopyNode for {side} Tensor {number} to {to}", takes, gives, kind=kind)


def report(
    layers: list[EngineLayer],
    *nodes: str,
    asked: Precision = FP32,
    gives: tuple[str, ...] = (),
    outcome: PinOutcome | None = None,
) -> PinReport:
    """What became of one pin of these nodes, which give the tensors `gives`."""
    pin = LayerPin(nodes[0], nodes, gives, asked)
    (found,) = reports_of([pin], [] if outcome is None else [outcome], layers)
    assert (found.layer, found.asked) == (pin.layer, asked)
    return found


def test_a_pin_that_is_run_as_asked_is_taken() -> None:
    found = report([layer("conv + relu", "x:fp32", "y:fp32", ("conv", "relu"))], "conv", "relu")
    assert (found.verdict, found.got, found.fused_with, found.advice) == ("honoured", ("fp32",), (), "")


@pytest.mark.parametrize(("takes", "gives"), [("x:fp16", "y:fp16"), ("x:fp16", "y:fp32"), ("x:fp32", "y:int8")])
def test_a_pin_whose_layer_takes_or_gives_less_is_swallowed(takes: str, gives: str) -> None:
    found = report([layer("conv", takes, gives, ("conv",))], "conv")
    assert found.verdict == "overridden"
    assert "pin the layers before and after it as well" in found.advice


def test_weights_in_half_tell_of_a_swallowed_pin_where_dynamic_shapes_hide_the_rest() -> None:
    assert report([layer("conv", "x w:fp16", "y", ("conv",))], "conv").verdict == "overridden"
    found = report([layer("conv", "x w:fp32", "y", ("conv",))], "conv")
    assert (found.verdict, found.got) == ("unknown", ("fp32",))
    assert "inspected at known input shapes" in found.advice


def test_an_engine_of_names_alone_settles_nothing() -> None:
    found = report([EngineLayer("conv + relu", "", (), (), ())], "conv")
    assert (found.verdict, found.got, found.fused_with) == ("unknown", (), ("relu",))
    assert "detailed profiling verbosity" in found.advice


@pytest.mark.parametrize(
    ("asked", "got", "verdict"),
    [
        (FP16, "fp16", "honoured"),
        (FP16, "fp32", "honoured"),
        (FP16, "bf16", "overridden"),
        (BF16, "fp16", "overridden"),
        (BF16, "bf16", "honoured"),
        (FP16, "int8", "overridden"),
        (FP16, "fp8", "overridden"),
        (INT8, "int8", "honoured"),
        (INT8, "fp16", "honoured"),
        (INT8, "int4", "overridden"),
        (FP32, "bf16", "overridden"),
    ],
)
def test_a_pin_is_held_where_nothing_asked_for_is_lost(asked: Precision, got: str, verdict: str) -> None:
    found = report([layer("conv", f"x:{got}", f"y:{got}", ("conv",))], "conv", asked=asked)
    assert (found.verdict, found.got) == (verdict, (got,))


def test_a_pin_that_got_more_than_it_asked_for_says_so() -> None:
    found = report([layer("conv", "x:fp32", "y:fp32", ("conv",))], "conv", asked=FP16)
    assert found.advice.startswith("it runs in fp32, which loses no more")


def test_indices_and_masks_are_no_precision() -> None:
    layers = [layer("where", "mask:bool index:int32 x:fp32", "y:fp32 n:int64", ("where",), "kgen")]
    assert (report(layers, "where").verdict, report(layers, "where").got) == ("honoured", ("fp32",))


# Myelin


def test_nodes_that_vanish_in_a_half_kernel_are_swallowed_with_what_they_were_fused_with() -> None:
    nodes = ("mean", "sub", "square", "variance", "div")
    kernel = layer("__myl_MeanSubMulMeanAddSqrtDiv_myl0_3", "a_myl0:fp16", "b_myl0:fp16", nodes, "kgen")
    found = report([kernel], "square")
    assert (found.verdict, found.fused_with) == ("overridden", ("mean", "sub", "variance", "div"))
    assert "mean, sub, variance, div" in found.advice
    assert "opset 17" in found.advice


@pytest.mark.parametrize("steps", ["CastMeanSub", "MeanSubCast", "MeanSubMulEtc"])
def test_a_kernel_that_converts_inside_settles_nothing(steps: str) -> None:
    found = report([layer(f"__myl_{steps}_myl0_3", "a:fp16", "b:fp16", ("mean", "sub"), "kgen")], "mean", "sub")
    assert found.verdict == "unknown"
    assert "go by the measured error" in found.advice


def test_a_kernel_with_other_nodes_that_takes_and_gives_both_types_settles_nothing() -> None:
    found = report([layer("softmax_myl0_1", "a:fp32", "b:fp16", ("softmax", "scale"), "gemm")], "softmax")
    assert (found.verdict, found.got) == ("unknown", ("fp32", "fp16"))
    assert "scale" in found.advice


def test_a_result_that_is_stored_in_half_is_lost_however_it_was_computed() -> None:
    kernel = layer("__myl_CastMulCast_myl0_3", "a:fp16", "y:fp16", ("mul",), "kgen")
    assert report([kernel], "mul", gives=("y",)).verdict == "overridden"


def test_what_lies_between_the_ends_of_a_foreign_node_is_not_found_and_the_foreign_node_named() -> None:
    foreign = layer("{ForeignNode[/c_output_0 + a.../b]}", "x:fp16", "y:fp16", kind="Myelin")
    assert report([foreign], "a").verdict == report([foreign], "/b").verdict == "overridden"
    found = report([foreign], "between")
    assert (found.verdict, found.got) == ("not found", ())
    assert "{ForeignNode[" in found.advice


def test_what_no_layer_names_may_have_been_folded() -> None:
    found = report([layer("conv", "x:fp16", "y:fp16", ("conv",))], "gone")
    assert found.verdict == "not found"
    assert "folded" in found.advice
    assert "does not tell its layers" in report([], "gone").advice


# Which layers run a node


def test_names_are_compared_whole() -> None:
    layers = [
        layer("conv10 + relu", "x:fp16", "y:fp16"),
        layer("a/conv1", "y:fp16", "conv1_output:fp16", ("a/conv1",)),
        copy(0, "conv1", "x:fp16", "Reformatted Input Tensor 0 to conv1:fp32"),
    ]
    assert report(layers, "conv1", gives=("conv1_out",)).verdict == "not found"
    assert report(layers, "conv10").verdict == "overridden"


def test_the_layer_that_gives_a_node_s_tensor_runs_it() -> None:
    assert report([layer("z", "x:fp32", "y:fp32")], "conv", gives=("y",)).verdict == "honoured"


def test_metadata_outweighs_the_layer_s_name() -> None:
    layers = [layer("fc", "x:fp16", "y:fp16", ("other",)), layer("fc_1", "y:fp32", "z:fp32", ("fc",))]
    assert report(layers, "fc").verdict == "honoured"
    assert report(layers, "other").verdict == "overridden"


def test_without_metadata_an_engine_s_layer_is_called_after_the_network_s_layers() -> None:
    layers = [layer("fc", "x:fp16", "y:fp16"), layer(f"fc_1 + {UNNAMED}", "y:fp32", "z:fp32")]
    found = report(layers, "fc", outcome=PinOutcome("fc", ("fc_1",), {}, None))
    assert (found.verdict, found.fused_with) == ("honoured", (UNNAMED,))


def test_one_node_of_several_layers_is_taken_only_where_all_are() -> None:
    layers = [layer("fc", "x:fp32", "y:fp32", ("fc",)), layer("fc_1", "y:fp16", "z:fp16", ("fc",))]
    assert report(layers, "fc").verdict == "overridden"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("conv", ("conv",)),
        ("w + quantize + conv", ("w", "quantize", "conv")),
        ("PWN(PWN(a), b)", ("a", "b")),
        ("conv + PWN(add + relu)", ("conv", "add", "relu")),
        (f"PWN({UNNAMED}, PWN(PWN(c + d, e), f))", (UNNAMED, "c", "d", "e", "f")),
        ("PWN(a", ("PWN(a",)),
        ("{ForeignNode[a + b...c]}", ("a", "b", "c")),
        ("{ForeignNode[a]}", ("a",)),
        ("{ForeignNode[a...b...c]}", ()),
    ],
)
def test_a_fused_name_has_its_parts(name: str, parts: tuple[str, ...]) -> None:
    assert parts_of(name) == parts


# Reformats, and pins that were not set


def test_reformats_are_counted_in_all_and_at_a_pin_s_borders() -> None:
    layers = [
        copy(0, "conv", "x:fp16", "x':fp32"),
        layer("conv", "x':fp32 w:fp32", "y:fp32", ("conv",)),
        copy(0, "pool", "y:fp32", "y':fp16"),
        layer("pool", "y':fp16", "z:fp16", ("pool",)),
        copy(0, "pool", "z:fp16", "z':fp16", kind="NoOp", side="Output"),  # elided: nothing is copied
        layer("out copy", "z:fp16", "out:fp32", kind="Reformat"),
        layer("cast", "z:fp16", "i:int32", ("to int",), kind="Reformat"),  # a Cast of the model
    ]
    assert reformats_of(layers) == 3
    assert [report(layers, name).reformats for name in ("conv", "pool", "to int")] == [2, 2, 0]
    names = [EngineLayer(found.name, "", (), (), ()) for found in layers[:5]]
    assert reformats_of(names) == 3
    assert report(names, "conv").reformats == 1


def test_a_pin_that_never_reached_the_network_says_why() -> None:
    outcome = PinOutcome("fold", (), {}, "its node was folded into a constant")
    found = report([layer("fold", "x:fp16", "y:fp16", ("fold",))], "fold", outcome=outcome)
    assert (found.verdict, found.got) == ("not found", ("fp16",))
    assert found.advice == "it was not pinned: its node was folded into a constant"


def test_a_pin_that_had_to_be_left_alone_says_why() -> None:
    outcome = PinOutcome("topk", (), {"topk": "its output 'i' is int32"}, None)
    found = report([layer("topk", "x:fp16", "v:fp16 i:int32", ("topk",), "TopK")], "topk", outcome=outcome)
    assert found.verdict == "overridden"
    assert found.advice.startswith("it was left alone: its output 'i' is int32")


def test_every_layer_of_a_model_is_told_what_it_ran_in() -> None:
    model, _ = digits()
    first, second, third, *rest = model.layers
    layers = [
        layer("__myl_A_myl0_0", "image:fp32", "a:fp16", (*first.nodes, second.nodes[0]), "kgen"),
        layer("t", "a:int8 w:int8", f"{third.outputs[0]}:fp32"),
    ]
    got = ran_in(model.layers, layers)
    assert list(got) == [layer.name for layer in model.layers]
    assert got[first.name] == got[second.name] == ("fp32", "fp16")
    assert got[third.name] == ("fp32", "int8")
    assert {got[layer.name] for layer in rest} == {()}
