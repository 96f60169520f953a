"""Models that are quantised by nodes of their own, in the main graph, a body and a function."""

from __future__ import annotations

import numpy as np
import onnx
from models import proto
from onnx import helper

_KERNEL = np.linspace(-0.5, 0.5, 4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3)


def explicit(*, whole: bool) -> onnx.ModelProto:
    """Two Convs with float layers between; the first takes dequantised operands, and where `whole` the second too."""
    behind = "a" if not whole else "bd"
    more = "" if not whole else "[b_Q] bq = QuantizeLinear(b, s, z) [b_DQ] bd = DequantizeLinear(bq, s, z)"
    second = "v" if not whole else "vd"
    body = f"""(float[1,3,8,8] x) => (float[1,4,8,8] y) {{
        [x_Q] xq = QuantizeLinear(x, s, z) [x_DQ] xd = DequantizeLinear(xq, s, z)
        [w_DQ] wd = DequantizeLinear(wq, t, z)
        [conv0] a = Conv <pads = [1, 1, 1, 1]> (xd, wd) [act] b = HardSigmoid(a)
        {more} [v_DQ] vd = DequantizeLinear(vq, t, z)
        [conv1] c = Conv({"b" if behind == "a" else behind}, {second}) [out] y = Sigmoid(c)
    }}"""
    weights = {
        "s": np.float32(1 / 127), "t": np.float32(0.5 / 127), "z": np.int8(0),
        "wq": np.round(_KERNEL * 254).astype(np.int8),
        "vq": np.round(_KERNEL[:, :, 0, :1, None].repeat(4, 1)[:, :4] * 254).astype(np.int8),
        "v": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4, 1, 1),
    }  # fmt: skip
    return proto(body, weights)


def in_body() -> onnx.ModelProto:
    """An If whose one branch quantises, beside float layers."""
    body = """(float[1,4] x) => (float[1,4] y) {
        sum = ReduceSum <keepdims = 0> (x) [gt] c = Greater(sum, nothing) [grow] e = Exp(x)
        [iff] y = If (c) <
            then_branch = tb () => (float[1,4] t) {
                [inner] r = Relu(e) [iq] q = QuantizeLinear(r, s, z) [idq] t = DequantizeLinear(q, s, z)
            },
            else_branch = eb () => (float[1,4] f) { [other] f = Sigmoid(e) }
        >
    }"""
    return proto(body, {"nothing": np.float32(0), "s": np.float32(0.05), "z": np.int8(0)})


def in_float8() -> onnx.ModelProto:
    """A product of an FP8 activation."""
    body = """(float[1,4] x) => (float[1,4] y) {
        [x_Q] q = QuantizeLinear(x, s, z) [x_DQ] d = DequantizeLinear(q, s, z)
        [mm] m = MatMul(d, w) [out] y = Sigmoid(m)
    }"""
    weights = {"s": np.float32(0.02), "w": np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)}
    model = proto(body, weights, opset=19, ir_version=9)
    model.graph.initializer.append(helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], [0]))
    return model


def in_function(*, inlined: bool = True) -> onnx.ModelProto:
    """A call of a function that quantises; one that takes a graph, which it does not use, cannot be inlined."""
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "fq"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"], "fdq"),
    ]
    taken = [] if inlined else ["graph"]
    function = helper.make_function(
        "own", "fake", ["a", "s", "z"], ["b"], nodes, [helper.make_opsetid("", 17)], attributes=taken
    )
    model = proto("(float[1,4] x) => (float[1,4] y) { [grow] e = Exp(x) [out] y = Sigmoid(e) }")
    call = helper.make_node("fake", ["e", "s", "z"], ["d"], "call", domain="own")
    if not inlined:
        empty = helper.make_graph([], "empty", [], [])
        call.attribute.append(helper.make_attribute("graph", empty))
    model.graph.node.insert(1, call)
    model.graph.node[2].input[0] = "d"
    for name, value in (("s", np.float32(0.05)), ("z", np.int8(0))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model
