"""An output that joins values of different kinds is judged by its parts: the worst of them is its figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from models import Array, compared, load, proto, sample

from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import Agreement, ErrorSums, error_sums
from precisionlab.compare.judging import judging_of, part_name
from precisionlab.compare.output import OutputErrors, PartErrors
from precisionlab.compare.scales import groups_by_scale
from precisionlab.errors import OptionError
from precisionlab.jobs.sweep import sweep
from precisionlab.model.kinds import Kind, joined_from
from precisionlab.precision import Precision
from precisionlab.search.verdict import State


def save_samples(folder: Path, count: int, shape: tuple[int, ...], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        np.save(folder / f"s{i:03}.npy", rng.random(shape).astype(np.float32))
    return folder


def decibel(reference: Array, output: Array) -> float:
    """SQNR in float64, by its definition."""
    true, got = reference.astype(np.float64), output.astype(np.float64)
    return float(10 * np.log10((true**2).sum() / ((got - true) ** 2).sum()))


# Boxes of 0 to 640 beside scores of 0 to 1


def hidden_scores() -> onnx.ModelProto:
    """A head whose scores hang on small channels beside a loud one, which int8 ruins, while its boxes are right."""
    rng = np.random.default_rng(16)
    features = rng.standard_normal((16, 3, 3, 3)) * 0.2
    features[0] *= 600
    boxes, scores = rng.standard_normal((4, 16, 1, 1)) * 0.2, rng.standard_normal((3, 16, 1, 1)) * 2
    boxes[:, 0] /= 600
    scores[:, 0] = 0
    weights = {"W0": features, "Wb": boxes, "Wc": scores, "Bc": np.full(3, -3.0), "k": np.float32(640)}
    return proto(
        """(float[1,3,8,8] x) => (float[1,7,64] y) {
        f0 = Conv <pads = [1,1,1,1]> (x, W0)  f = Relu (f0)
        b0 = Conv (f, Wb)  b1 = Sigmoid (b0)  b2 = Mul (b1, k)
        c0 = Conv (f, Wc, Bc)  c1 = Sigmoid (c0)
        o = Concat <axis = 1> (b2, c1)  y = Reshape (o, shape) }""",
        {**{name: np.float32(w) for name, w in weights.items()}, "shape": np.array([1, 7, 64])},
    )


@pytest.mark.slow
def test_a_bad_part_is_not_hidden_by_a_loud_one(tmp_path: Path) -> None:
    onnx.save(hidden_scores(), tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 40, (1, 3, 8, 8))
    result = sweep(tmp_path / "m.onnx", data, precisions="int8", out=tmp_path / "out", threads=1, repair=False)
    found = result.precisions[0]
    low = found.low.comparison
    assert not found.low.met
    # In one figure the boxes are all, and the scores' 8 dB are not seen.
    whole = low.outputs["y"].errors
    assert whole is not None
    assert whole.sqnr > 20 > low.worst("sqnr")
    name, value = low.worst_of("sqnr")
    assert name == "y[:, 4:7]"
    assert low.made_from(name) == "c1"
    assert value == low.outputs["y"].parts[name].errors.sqnr
    # The Concat's own inputs are tensors of their own, and were measured beside: the parts are exactly these.
    assert value == pytest.approx(low.inherited["c1"].sqnr, abs=1e-9)
    assert low.worst("sqnr", "y[:, 0:4]") == pytest.approx(low.inherited["b2"].sqnr, abs=1e-9)
    # The pins go where the bad part comes from, and make it right on the samples held out as well.
    assert found.mixed.met
    assert found.mixed.held_out is not None
    assert found.mixed.held_out.worst("sqnr") >= 20
    assert [pin.layer for pin in found.plan.pins] == ["node_of_c0"]

    rows = pd.read_csv(tmp_path / "out" / "variants.csv").set_index(["variant", "output"])
    assert rows.loc[("int8", "y"), "worst_part"] == "y[:, 4:7]"
    assert rows.loc[("int8", "y"), "sqnr_db"] == rows.loc[("int8", "y[:, 4:7]"), "sqnr_db"] == pytest.approx(value)
    assert rows.loc[("int8", "y[:, 4:7]"), "part_of"] == "y"
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    chosen = samples[(samples.variant == "int8") & ~samples.held_out]
    each = [one.parts["y[:, 4:7]"].errors.sqnr for one in low.each["y"]]
    assert chosen.sqnr_db.to_list() == pytest.approx(each)
    certificate = json.loads((tmp_path / "out" / "plan.json").read_text())["certificate"]
    assert certificate["releases"][0]["sqnr"] == pytest.approx(value)
    assert "y[:, 4:7]" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_bounds_name_parts_ranges_and_tensors_within(tmp_path: Path) -> None:
    onnx.save(hidden_scores(), tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 8, (1, 3, 8, 8))

    def figures(*bounds: str) -> dict[str, float]:
        found = sweep(tmp_path / "m.onnx", data, precisions="int8", tolerance=bounds, out=tmp_path / "out", threads=1)
        low = found.precisions[0].low
        return {bound.figure: bound.of(low.comparison) for bound in low.tolerance}

    found = figures("sqnr[y:4-7]>=5", "sqnr[y[:, 4:7]]>=5", "sqnr[c1]>=5,sqnr[y:0-4]>=20", "max_error[f]<=1e9")
    assert found["sqnr[y:4-7]"] == found["sqnr[y[:, 4:7]]"] == pytest.approx(found["sqnr[c1]"], abs=1e-9)
    assert found["sqnr[y:0-4]"] > 20 > found["sqnr[c1]"]
    assert found["max_error[f]"] > 0
    with pytest.raises(OptionError, match=r"no such output.*outputs are y, with the parts y\[:, 0:4\], y\[:, 4:7\]"):
        figures("sqnr[scores]>=5")
    with pytest.raises(OptionError, match=r"y has 7 channels"):
        figures("sqnr[y:4-8]>=5")
    with pytest.raises(OptionError, match=r"tensors within have names such as c1"):
        figures("sqnr[c_1]>=30")


def test_a_named_output_without_the_figure_is_told_with_those_that_have_it(tmp_path: Path) -> None:
    model = proto(
        """(float[1,8] x) => (float[1,4] y, int64[1] label) {
        y = MatMul (x, w)  label = ArgMax <axis=1, keepdims=0> (y) }""",
        {"w": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)},
    )
    onnx.save(model, tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 8, (1, 8))

    def state(tolerance: str) -> State:
        out = tmp_path / tolerance.partition("[")[2][:1]
        run = sweep(tmp_path / "m.onnx", data, precisions="fp16", tolerance=tolerance, out=out, threads=1)
        return run.precisions[0].verdict.state

    with pytest.raises(OptionError, match=r"sqnr\[label\]>=30 cannot be judged: label has no sqnr.*known of y$"):
        state("sqnr[label]>=30")
    assert state("sqnr[y]>=30") is State.MET


@pytest.mark.slow
def test_a_verdict_shows_the_bound_that_it_hangs_on(tmp_path: Path) -> None:
    """y overflows in fp16 and z does not: the figure told is y's, whichever bound comes first."""
    model = proto(
        "(float[1,8] x) => (float[1,8] y, float[1,8] z) { a = Mul (x, big)  b = Mul (a, big)  "
        "y = Mul (b, small)  z = Mul (x, small) }",
        {"big": np.float32(300), "small": np.float32(1e-3)},
    )
    onnx.save(model, tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 8, (1, 8))
    run = sweep(
        tmp_path / "m.onnx", data, precisions="fp16", tolerance="sqnr[z]>=30,sqnr[y]>=30", out=tmp_path / "o", threads=1
    )
    assert run.precisions[0].verdict.state is State.MET
    assert run.precisions[0].verdict.figure.startswith("sqnr[y] −∞ → ")


# What the graph says


BODIES = {
    "transposed": ("float[1,6,7] y", "o = Concat <axis = 1> (b, c)  y = Transpose <perm = [0, 2, 1]> (o)", 2, (4, 7)),
    "cast, squeezed": (
        "float[6,7] y",
        "o = Concat <axis = 1> (b, c)  t = Transpose <perm = [0, 2, 1]> (o)  s = Squeeze (t, zero)  y = Identity (s)",
        1,
        (4, 7),
    ),
    "flattened": ("float[1,42] y", "o = Concat <axis = 1> (b, c)  y = Flatten (o)", 1, (24, 42)),
    "scaled": ("float[1,7,6] y", "o = Concat <axis = 1> (b, c)  y = Mul (o, two)", 1, (4, 7)),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_parts_are_found_through_what_only_moves_values(name: str, tmp_path: Path) -> None:
    output, body, axis, run = BODIES[name]
    model = load(
        proto(
            f"(float[1,3,6] x) => ({output}) {{ b0 = MatMul (Wb, x)  b = Exp (b0)  c0 = MatMul (Wc, x)"
            f"  c = Sigmoid (c0)  {body} }}",
            {"Wb": np.ones((4, 3), "f4"), "Wc": np.ones((3, 3), "f4"), "zero": np.array([0]), "two": np.float32(2)},
        ),
        tmp_path,
    )
    boxes, scores = joined_from(model, "y").kinds
    assert (boxes.sources, scores.sources) == (("b",), ("c",))
    assert (scores.axis, scores.runs) == (axis, (run,))
    assert scores.is_share == (name != "scaled")
    # By values: the range that is told holds the Concat's input, and nothing else.
    x = np.random.default_rng(0).standard_normal((1, 3, 6)).astype(np.float32)
    found = compared(model, [sample(x=x)], Precision.FP16)
    part = found.outputs["y"].parts[part_name("y", axis, scores.runs)].errors
    assert part.sqnr == pytest.approx(found.inherited["c"].sqnr, abs=0.5 if name == "scaled" else 1e-9)


def test_levels_that_are_made_alike_are_one_kind(tmp_path: Path) -> None:
    """Two levels of boxes and scores, joined by channels and then by places: two kinds, not four."""
    model = load(
        proto(
            """(float[1,3,8,8] x) => (float[1,20,7] y) {
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
            q = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (p)
            b0 = Conv (p, W4)  c0 = Conv (p, W3)  o0 = Concat <axis = 1> (b0, c0)  r0 = Reshape (o0, s16)
            b1 = Conv (q, W4)  c1 = Conv (q, W3)  o1 = Concat <axis = 1> (b1, c1)  r1 = Reshape (o1, s4)
            o = Concat <axis = 2> (r0, r1)  y = Transpose <perm = [0, 2, 1]> (o) }""",
            {
                "W4": np.ones((4, 3, 1, 1), "f4"),
                "W3": np.ones((3, 3, 1, 1), "f4"),
                "s16": np.array([1, 7, 16]),
                "s4": np.array([1, 7, 4]),
            },
        ),
        tmp_path,
    )
    assert joined_from(model, "y").kinds == (
        Kind(2, 7, ((0, 4),), ("b0", "b1"), False),
        Kind(2, 7, ((4, 7),), ("c0", "c1"), False),
    )


def test_a_single_vector_of_logits_is_one_part(tmp_path: Path) -> None:
    model = load(
        proto("(float[1,3] x) => (float[1,5] y) { y = MatMul (x, W) }", {"W": np.ones((3, 5), "f4")}), tmp_path
    )
    assert judging_of(model).tensors[0].parts == ()


def test_where_the_parts_are_no_range_what_is_joined_is_judged(tmp_path: Path) -> None:
    """Joined along one axis, then mixed into one line with another: no range of it is either."""
    body = """(float[1,3,4] x) => (float[12,7] y) { b0 = MatMul (Wb, x)  b = Exp (b0)  c0 = MatMul (Wc, x)
        c = Sigmoid (c0)  o = Concat <axis = 1> (b, c)  e = Concat <axis = 0> (o, o, o)
        t = Transpose <perm = [1, 0, 2]> (e)  y = Reshape (t, shape) }"""
    weights = {"Wb": np.ones((4, 3), "f4"), "Wc": np.ones((3, 3), "f4"), "shape": np.array([12, 7])}
    model = load(proto(body, weights), tmp_path)
    judging = judging_of(model)
    assert judging.names == ("y", "b", "c")
    assert [judged.role for judged in judging.tensors] == ["", "joined in y", "joined in y"]
    x = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)
    found = compared(model, [sample(x=x)], Precision.FP16)
    assert found.worst("sqnr", "c") == pytest.approx(found.inherited["c"].sqnr)
    assert found.worst("sqnr") == min(found.worst("sqnr", name) for name in judging.names)


# What the values say


def groups(*powers: float) -> list[list[tuple[int, int]]]:
    return [list(runs) for runs in groups_by_scale(np.array(powers) ** 2)]


def test_channels_of_very_different_scale_are_groups_where_a_person_would_write_a_slice() -> None:
    assert groups(300, 320, 40, 50, *[0.1] * 5) == [[(0, 4)], [(4, 9)]]
    assert groups(*[300, 310, 0.5] * 4) == [[(0, 2), (3, 5), (6, 8), (9, 11)], [(2, 3), (5, 6), (8, 9), (11, 12)]]
    assert groups(3000, 3000, 50, 50, 0.5, 0.5) == [[(0, 2)], [(2, 4)], [(4, 6)]]
    assert groups(1, 1, 500, *[1] * 20) == [[(2, 3)], [(0, 2), (3, 23)]]  # one loud channel hides all others


def test_channels_of_one_kind_are_no_groups() -> None:
    assert groups(*np.geomspace(1, 1000, 40)) == []  # every channel a little weaker than the one before
    assert groups(*[0.1] * 40, 1e-7, *[0.1] * 39) == []  # a class that never occurs
    assert groups(*[0.1] * 79, 1e-7) == []
    assert groups(1, 1, 0, 1, 1) == []  # a dead channel
    assert groups(0, 0, 0) == []
    assert groups(math.nan, 1) == []
    scattered = np.ones(64)
    scattered[np.random.default_rng(0).permutation(64)[:20]] = 1e-3
    assert groups(*scattered) == []


def raw_head(sigmoid: bool) -> onnx.ModelProto:
    """One convolution gives distances in hundreds and confidences about 1, of a feature map with one loud channel."""
    rng = np.random.default_rng(3)
    head = rng.standard_normal((6, 8, 1, 1))
    head[:4] *= 300
    head[4:, 0] /= 1000
    features = rng.standard_normal((8, 3, 1, 1))
    features[0] *= 1000
    head[:4, 0] /= 1000
    tail = "c = Conv (f, W)  y = Sigmoid (c)" if sigmoid else "y = Conv (f, W)"
    return proto(
        f"(float[1,3,8,8] x) => (float[1,6,8,8] y) {{ e = Conv (x, F)  f = Relu (e)  {tail} }}",
        {"F": np.float32(features), "W": np.float32(head)},
    )


@pytest.mark.slow
def test_groups_are_told_once_from_the_reference_and_the_worst_is_the_figure(tmp_path: Path) -> None:
    onnx.save(raw_head(sigmoid=False), tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 12, (1, 3, 8, 8))
    result = sweep(tmp_path / "m.onnx", data, precisions="int8", out=tmp_path / "out", threads=1)
    low = result.precisions[0].low.comparison
    assert list(low.figures("sqnr")) == ["y[:, 0:4]", "y[:, 4:6]"]
    assert list(result.reference.comparison.figures("sqnr")) == ["y[:, 0:4]", "y[:, 4:6]"]
    # Again from the journal, and the same.
    again = sweep(tmp_path / "m.onnx", data, precisions="int8", out=tmp_path / "out", threads=1)
    assert again.precisions[0].low.comparison.figures("sqnr") == low.figures("sqnr")
    onnx.save(raw_head(sigmoid=True), tmp_path / "s.onnx")
    shares = sweep(tmp_path / "s.onnx", data, precisions="int8", out=tmp_path / "shares", threads=1)
    assert list(shares.precisions[0].low.comparison.figures("sqnr")) == ["y"]


@pytest.mark.thorough
def test_groups_are_the_same_with_two_processes(tmp_path: Path) -> None:
    onnx.save(raw_head(sigmoid=False), tmp_path / "m.onnx")
    data = save_samples(tmp_path / "data", 12, (1, 3, 8, 8))
    one, two = (
        sweep(tmp_path / "m.onnx", data, precisions="int8", out=tmp_path / str(count), threads=1, processes=count)
        for count in (None, 2)
    )
    assert two.precisions[0].low.comparison.figures("sqnr") == one.precisions[0].low.comparison.figures("sqnr")


# Parts that nobody sees


def output(**parts: tuple[Array, Array, bool]) -> OutputErrors:
    found = {name: PartErrors(error_sums(np.float32(r), np.float32(o)), s) for name, (r, o, s) in parts.items()}
    joined = [np.concatenate([np.ravel(part[side]) for part in parts.values()]).astype(np.float32) for side in (0, 1)]
    return OutputErrors(error_sums(*joined), Agreement(), found)


BOXES = np.linspace(1, 640, 50)


def worst(errors: OutputErrors) -> float:
    return Comparison(1, {}, {}, {"y": errors}).worst("sqnr")


def test_scores_that_no_threshold_sees_fail_nothing() -> None:
    quiet = np.full(50, 1e-6)
    errors = output(boxes=(BOXES, BOXES + 0.1, False), scores=(quiet, np.zeros(50), True))
    assert worst(errors) == pytest.approx(decibel(BOXES, BOXES + 0.1), abs=0.01)
    # Its positive twin: a score that somebody sees comes out of nothing, and the part is judged on its own scale.
    loud = np.where(np.arange(50) == 3, 0.9, 0.0)
    assert worst(output(boxes=(BOXES, BOXES, False), scores=(quiet, loud, True))) < 0


def test_padding_fails_nothing_by_noise_below_all_else_but_has_no_licence() -> None:
    nothing = np.zeros(50)
    errors = output(boxes=(BOXES, BOXES, False), padding=(nothing, nothing, False))
    assert worst(errors) == math.inf
    noisy = output(boxes=(BOXES, BOXES, False), padding=(nothing, nothing + 1e-3, False))
    # Held to the scale of the quietest part that has one.
    assert worst(noisy) == pytest.approx(decibel(BOXES, BOXES + 1e-3), abs=0.01)
    assert worst(output(boxes=(BOXES, BOXES, False), padding=(nothing, nothing + 300, False))) < 10
    assert math.isnan(worst(output(boxes=(BOXES, BOXES, False), padding=(nothing, nothing + np.nan, False))))


def test_a_small_part_of_another_unit_is_judged_on_its_own_scale() -> None:
    strain = np.linspace(1e-3, 2e-3, 50)
    errors = output(pressure=(BOXES * 100, BOXES * 100, False), strain=(strain, strain * 1.1, False))
    assert worst(errors) == pytest.approx(20, abs=0.01)


def test_errors_of_parts_merge_and_are_read_back() -> None:
    first = output(boxes=(BOXES, BOXES + 1, False), scores=(BOXES / 640, BOXES / 600, True))
    total = first + first
    assert total.parts["scores"].errors.elements == 2 * first.parts["scores"].errors.elements
    assert total.figures("sqnr") == pytest.approx(first.figures("sqnr"))
    assert OutputErrors.from_list(json.loads(json.dumps(total.to_list()))) == total
    assert OutputErrors(ErrorSums(), Agreement()).figures("top1") == {}
