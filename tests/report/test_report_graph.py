"""The graph of the report: what feeds what, what repeats, and where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from browser import Opened, chromium, needs_browser
from models import load, proto
from test_report import HOSTILE, Page, errors, layer, report

from precisionlab.data import Dataset
from precisionlab.model import Layer, Model
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.cells import records_of
from precisionlab.report.folds import Fold, Inputs, find_folds
from precisionlab.report.graph import draw_graph, read_inputs
from precisionlab.report.html import render, render_fragment
from precisionlab.report.layer_rows import layer_inputs
from precisionlab.report.layout import lay_out
from precisionlab.report.network import (
    LayerFacts,
    Network,
    NodeFacts,
    TensorFacts,
    network_of,
    network_text,
    read_network,
)

NAN, INF = float("nan"), float("inf")

# A residual block that takes from the one before, and from a mask that all blocks share (layer 1).
BLOCK = [("MatMul", ["h"]), ("Add", [1, 0]), ("Softmax", [1]), ("MatMul", [2]), ("Add", ["h", 3]), ("Norm", [4])]


def transformer(blocks: int) -> tuple[list[str], list[list[int]]]:
    """An embedding, a mask, blocks, and a head: kinds and inputs."""
    kinds, inputs = ["Gather", "Cast"], [[], []]
    before = 0
    for _ in range(blocks):
        first = len(kinds)
        kinds += [kind for kind, _ in BLOCK]
        inputs += [[before], [1, first], [first + 1], [first + 2], [before, first + 3], [first + 4]]
        before = len(kinds) - 1
    return [*kinds, "Gemm"], [*inputs, [before]]


def chain(count: int) -> list[list[int]]:
    return [[i - 1] if i else [] for i in range(count)]


def rows_of(kinds: list[str], inputs: Inputs, **changes: Any) -> list[dict[str, Any]]:
    """Rows of layers.csv."""
    return [
        layer(i, f"l{i}", kind=kind, inputs=" ".join(map(str, taken)), **changes)
        for i, (kind, taken) in enumerate(zip(kinds, inputs, strict=True))
    ]


def page_of(kinds: list[str], inputs: Inputs, **changes: Any) -> str:
    run, variants, _, _ = report()
    table = pd.DataFrame(rows_of(kinds, inputs, **changes))
    return render(run, variants, table, {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)})


def data_of(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="graph-data">(.*?)</script>', html, re.S)
    assert len(found) == 1
    content: dict[str, Any] = json.loads(found[0])
    return content


# Links


def made(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Layer:
    return Layer(name, (name,), ("Op",), inputs, outputs, (), None, False, None, 0)


def test_a_layer_takes_from_those_that_make_its_inputs() -> None:
    layers = [
        made("a", ("image",), ("a1", "a2")),
        made("b", ("a1",), ("b1",)),
        made("c", ("b1", "a2", "a1", "other"), ("c1",)),
    ]
    assert layer_inputs(layers) == [[], [0], [0, 1]]


def test_what_is_no_other_layer_of_the_table_is_left_out() -> None:
    rows = [{"inputs": ""}, {"inputs": "0 1 7 -3 x 0"}, {"inputs": NAN}]
    assert read_inputs(rows) == [[], [0], []]


def test_older_runs_have_no_graph() -> None:
    run, variants, layers, plans = report()
    assert "inputs" not in layers
    assert draw_graph(records_of(layers), ["fp16"]) is None
    html = render(run, variants, layers, plans)
    assert 'id="graph"' not in html
    assert 'href="#graph"' not in html


# Folding


def test_blocks_that_repeat_are_one_fold() -> None:
    assert find_folds(*transformer(4)) == [Fold(2, 6, 4)]


def test_the_first_block_belongs_to_the_fold_though_it_takes_from_elsewhere() -> None:
    kinds, inputs = transformer(5)
    (fold,) = find_folds(kinds, inputs)
    assert inputs[fold.start] == [0]
    assert fold.end == len(kinds) - 1


def test_what_repeats_twice_is_not_folded() -> None:
    assert find_folds(*transformer(2)) == []


def test_small_repeats_are_not_folded() -> None:
    assert find_folds(["Conv"] * 5, chain(5)) == []
    assert find_folds(["Conv"] * 40, chain(40)) == [Fold(1, 1, 39)]


def test_alike_kinds_that_are_wired_otherwise_are_not_folded() -> None:
    kinds, inputs = transformer(4)
    inputs[14] = [3]  # a layer of the third block takes from the first one
    assert find_folds(kinds, inputs) == []


def test_the_shortest_block_is_chosen() -> None:
    assert [fold.size for fold in find_folds(*transformer(12))] == [6]


def test_folds_do_not_overlap() -> None:
    kinds, inputs = transformer(6)
    last = len(kinds) - 1
    kinds += ["Conv", "Relu"] * 10
    inputs += [[last + i] for i in range(20)]
    folds = find_folds(kinds, inputs)
    assert [(fold.size, fold.times) for fold in folds] == [(6, 6), (2, 10)]
    assert all(a.end <= b.start for a, b in pairwise(folds))


def test_what_lies_outside_a_larger_part_is_folded_too() -> None:
    kinds = ["Cast", *["Pool", *["Conv", "Add", "Relu"] * 2] * 3, *["Conv", "Add", "Relu"] * 4]
    assert find_folds(kinds, chain(len(kinds))) == [Fold(1, 7, 3), Fold(22, 3, 4)]


@pytest.mark.parametrize("kinds", [[], ["a"], ["a", "b"], ["a", "a", "a"]])
def test_nothing_much_has_no_folds(kinds: list[str]) -> None:
    inputs = chain(len(kinds))
    assert find_folds(kinds, inputs) == []
    assert len(lay_out(inputs).ranks) == len(kinds)


# Layout


def scattered(count: int, reach: int) -> list[list[int]]:
    """Links that look random and are the same each time."""
    return [sorted({max(0, i - 1 - (i * 7919 + k * 104729) % reach) for k in range(2)} - {i}) for i in range(count)]


@pytest.mark.parametrize("inputs", [chain(50), transformer(6)[1], scattered(300, 40), scattered(300, 300)])
def test_links_lead_downwards(inputs: Inputs) -> None:
    ranks = lay_out(inputs).ranks
    assert min(ranks) == 0
    assert all(ranks[source] < ranks[target] for target, taken in enumerate(inputs) for source in taken)


@pytest.mark.parametrize("inputs", [transformer(6)[1], scattered(300, 40), scattered(300, 300)])
def test_no_two_layers_overlap(inputs: Inputs) -> None:
    layout = lay_out(inputs)
    by_rank: dict[int, list[float]] = {}
    for rank, column in zip(layout.ranks, layout.columns, strict=True):
        by_rank.setdefault(rank, []).append(column)
    assert all(b - a > 0.999 for columns in by_rank.values() for a, b in pairwise(sorted(columns)))


def test_a_fold_and_its_blocks_depend_on_nothing_in_their_ranks() -> None:
    kinds, inputs = transformer(4)
    inputs[8] = [7]  # a block's own layer
    (fold,) = find_folds(*transformer(4))
    ranks = lay_out(inputs, [fold]).ranks
    blocks = [range(at, at + fold.size) for at in range(fold.start, fold.end, fold.size)]
    for part in [range(fold.start, fold.end), *blocks]:
        top, bottom = min(ranks[i] for i in part), max(ranks[i] for i in part)
        outside = {j for i in part for j in inputs[i]} - set(part)
        assert all(ranks[j] < top for j in outside)
        assert all(ranks[i] > bottom for i in range(part.stop, len(kinds)) if set(inputs[i]) & set(part))


def test_a_chain_is_straight_and_long_networks_do_not_drift() -> None:
    assert set(lay_out(chain(100)).columns) == {0.0}
    assert max(map(abs, lay_out(transformer(200)[1]).columns)) < 3


def test_a_link_that_passes_ranks_has_a_lane() -> None:
    layout = lay_out([[], [0], [1], [2], [0, 3]])
    assert set(layout.lanes) == {0}
    assert len(layout.lanes[0]) == 3
    assert all(abs(lane - layout.columns[1]) > 0.5 for lane in layout.lanes[0])


def test_a_source_stands_near_what_it_feeds() -> None:
    assert lay_out([[], [0], [1], [], [2, 3]]).ranks == (0, 1, 2, 2, 3)


def test_a_crossing_is_undone() -> None:
    # Two chains whose second layers come in the other order.
    columns = lay_out([[], [0], [0], [2], [1], [3, 4]]).columns
    assert (columns[1] - columns[2]) * (columns[4] - columns[3]) > 0


def test_a_link_to_a_later_layer_is_kept_and_moves_nothing() -> None:
    kinds, inputs = ["A", "B", "C"], [[2], [0], [1]]
    drawn = draw_graph(rows_of(kinds, inputs), ["fp16"])
    assert drawn is not None
    assert drawn.links == 3
    assert json.loads(drawn.data)["ranks"] == [0, 1, 2]


SHAPES = ("chain", "transformer", "near", "far", "wide", "dense")


def shaped(shape: str, count: int) -> tuple[list[str], list[list[int]]]:
    """Kinds and inputs of a graph of about so many layers."""
    if shape == "transformer":
        return transformer(count // 6)
    inputs = {
        "chain": lambda: chain(count),
        "near": lambda: scattered(count, 30),
        "far": lambda: scattered(count, count),
        "wide": lambda: [[0] if i else [] for i in range(count)],
        "dense": lambda: [list(range(max(0, i - 20), i)) for i in range(count)],
    }[shape]()
    return ["Conv"] * count, inputs


@pytest.mark.parametrize("shape", SHAPES)
def test_five_thousand_layers_take_little_room(shape: str) -> None:
    kinds, inputs = shaped(shape, 5000)
    layout = lay_out(inputs, find_folds(kinds, inputs))
    assert sum(map(len, layout.lanes.values())) <= 4 * len(inputs)


def test_it_is_the_same_each_time() -> None:
    kinds, inputs = transformer(8)
    rows = rows_of(kinds, inputs)
    first, second = draw_graph(rows, ["fp16"]), draw_graph(rows, ["fp16"])
    assert first is not None
    assert first == second


# The page


def test_the_page_holds_links_figures_and_folds() -> None:
    kinds, inputs = transformer(3)
    run, variants, _, _ = report()
    rows = rows_of(kinds, inputs)
    rows[3] |= {"pinned": True, "pinned_to": "fp32", **errors("introduced", NAN, NAN, nan=3)}
    rows[4] |= errors("introduced", -INF)
    rows[5] |= errors("introduced", None)
    html = render(run, variants, pd.DataFrame(rows), {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)})
    data = data_of(html)
    assert data["inputs"] == inputs
    assert data["folds"] == [[2, 6, 3]]
    (figures,) = data["precisions"]
    assert figures["introduced"][2:6] == [70.2, "NaN", "−∞", None]
    assert figures["pinned"] == [3]
    assert figures["runs"][2:4] == ["FP16", "FP32"]
    assert f"{len(kinds)} layers from top to bottom" in Page(html).text


def test_the_graphs_script_is_in_the_pages_one_script() -> None:
    html = page_of(*transformer(3))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == 1
    assert "prepareGraph" in scripts[0]


def test_a_notebook_gets_no_graph() -> None:
    run, variants, _, plans = report()
    assert "graph-data" not in render_fragment(run, variants, pd.DataFrame(rows_of(*transformer(3))), plans)


@pytest.mark.parametrize("name", HOSTILE)
def test_strangers_names_end_no_script(name: str) -> None:
    plain, hostile = Page(page_of(["A", "B"], [[], [0]])), Page(page_of([name, name], [[], [0]], runs_in=name))
    assert sum(tag == "script" for tag, _ in hostile.tags) == sum(tag == "script" for tag, _ in plain.tags)
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in plain.tags}
    data = data_of(page_of([name, name], [[], [0]], runs_in=name))
    assert data["precisions"][0]["runs"] == [name.upper()] * 2


def test_three_thousand_layers_add_little() -> None:
    kinds, inputs = transformer(500)
    rows = rows_of(kinds, inputs)
    both = rows + [{**row, "precision": "int8"} for row in rows]
    drawn = draw_graph(both, ["fp16", "int8"])
    assert drawn is not None
    assert drawn.layers == 3003
    assert len(drawn.data) < 200_000


# In a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def file_of(path: Path, html: str) -> Path:
    (path / "report.html").write_text(html, encoding="utf-8")
    return path / "report.html"


def status(page: Any) -> str:
    return str(page.locator("[data-of=count]").inner_text())


def title(page: Any) -> str:
    return str(page.locator("[data-of=details] h3").inner_text())


@needs_browser
def test_blocks_open_on_click_and_fold_again(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, file_of(tmp_path, page_of(*transformer(4)))) as opened:
        page = opened.page
        assert status(page) == "4 nodes shown for 27 layers."
        page.locator("[data-do=fit]").click()
        # The fold stands in the second of three rows, in the middle.
        page.locator("[data-graph] canvas").click()
        assert status(page) == "7 nodes shown for 27 layers."
        assert title(page) == "block 1 of 4"
        page.locator("[data-of=details] button", has_text="Open").click()
        assert status(page) == "12 nodes shown for 27 layers."
        assert title(page) == "l2"
        page.locator("[data-of=details] button", has_text="Fold again").click()
        assert status(page) == "7 nodes shown for 27 layers."
        page.locator("[data-do=unfold]").click()
        assert status(page) == "All 27 layers shown."
        page.locator("[data-do=fold]").click()
        assert status(page) == "4 nodes shown for 27 layers."
        opened.check_quiet()


@needs_browser
def test_search_opens_the_block_that_holds_the_layer(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, file_of(tmp_path, page_of(*transformer(4)))) as opened:
        page = opened.page
        page.locator("[data-graph] input").fill("softmax")
        assert page.locator("[data-of=found]").inner_text() == "4 of 27 layers"
        page.locator("[data-of=list] button").nth(1).click()
        assert title(page) == "l10"
        assert status(page) == "12 nodes shown for 27 layers."
        page.locator("[data-of=details] .links button", has_text="l9").click()
        assert title(page) == "l9"
        page.locator("[data-of=details] a").click()
        row = page.locator("#layers-1 tr.shown")
        assert row.get_attribute("data-i") == "9"
        assert row.is_visible()
        opened.check_quiet()


@needs_browser
def test_the_graph_is_walked_by_keyboard(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, file_of(tmp_path, page_of(["A", "B", "C", "D"], [[], [0], [0], [1, 2]]))) as opened:
        page = opened.page
        page.locator("[data-graph] canvas").focus()
        for key, there in (("Home", "l0"), ("ArrowDown", "l1"), ("ArrowRight", "l2"), ("ArrowDown", "l3")):
            page.keyboard.press(key)
            assert title(page) == there
        page.keyboard.press("ArrowUp")
        assert title(page) in ("l1", "l2")
        opened.check_quiet()


@needs_browser
def test_colours_follow_the_choice(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, file_of(tmp_path, page_of(["A", "B"], [[], [0]]))) as opened:
        page, legend = opened.page, opened.page.locator("[data-of=legend]")
        assert legend.inner_text() == "60 dB or more, or no error"
        page.locator("[data-of=colour]").select_option("runs")
        assert legend.inner_text() == "FP16"
        page.locator("[data-of=colour]").select_option("pinned")
        assert legend.inner_text() == "not pinned"


@needs_browser
def test_names_of_strangers_are_text_in_the_graph(browser: Any, tmp_path: Path) -> None:
    run, variants, _, _ = report()
    rows = [
        row | {"layer": name, "kind": name}
        for row, name in zip(rows_of(["x"] * len(HOSTILE), chain(len(HOSTILE))), HOSTILE, strict=True)
    ]
    plans = {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)}
    with Opened(browser, file_of(tmp_path, render(run, variants, pd.DataFrame(rows), plans)), 390) as opened:
        page = opened.page
        for place in range(len(HOSTILE)):
            page.locator("[data-of=list] button").nth(place).click()
        assert page.locator("[data-graph] :is(img, svg)").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        opened.check_quiet()


# Tensors, the model's ends, and saving


def test_the_network_is_read_back_as_it_was_written(bundled: tuple[Model, Dataset]) -> None:
    model = bundled[0]
    found = read_network(network_text(model))
    assert found == network_of(model)
    assert [found.tensors[place].name for place in (*found.inputs, *found.outputs)] == ["image", "logits"]
    assert [len(layer.gives) for layer in found.layers] == [len(layer.outputs) for layer in model.layers]
    first, stem = found.layers[0], next(layer for layer in found.layers if layer.nodes[0].operator == "Conv")
    assert first.takes == found.inputs
    assert stem.nodes[0].attributes["kernel_shape"] == "(3, 3)"
    assert found.tensors[stem.gives[0]].kind == "float"
    weight = found.tensors[stem.weights[0]]
    assert (weight.shape.split("×")[2:], weight.kind) == (["3", "3"], "float")


def test_a_network_of_an_older_version_has_no_weights_and_is_read(bundled: tuple[Model, Dataset]) -> None:
    content = json.loads(network_text(bundled[0]))
    for one in content["layers"]:
        del one["weights"]
    found = read_network(json.dumps(content))
    assert {layer.weights for layer in found.layers} == {()}
    assert [layer.nodes for layer in found.layers] == [layer.nodes for layer in network_of(bundled[0]).layers]


def test_a_weight_of_one_number_is_shown_with_it(tmp_path: Path) -> None:
    body = '(float[1,8] x) => (float[1,8] y) { ["clip"] y = Clip(x, low, high) }'
    model = load(proto(body, {"low": np.float32(0), "high": np.float32(6.5)}), tmp_path)
    (layer,) = network_of(model).layers
    shapes = [network_of(model).tensors[place].shape for place in layer.weights]
    assert shapes == ["scalar = 0", "scalar = 6.5"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"tensors": [], "inputs": [0], "outputs": [], "layers": []}', '{"layers": [3]}'], ids=str
)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_network(text)


def network(names: list[str]) -> Network:
    """Two layers, one after the other, of a model with an input and an output of these names."""
    start, middle, end = (TensorFacts(name, "1×8", "float") for name in names)
    node = NodeFacts("Conv", {"strides": "(2, 2)"})
    return Network((start, middle, end), (0,), (2,), (LayerFacts((1,), (0,), (node,)), LayerFacts((2,), (1,), (node,))))


def chain_of_two(found: Network, **changes: Any) -> str:
    run, variants, _, _ = report()
    rows = [row | changes for row in rows_of(["Conv", "Conv"], [[], [0]])]
    plans = {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)}
    return render(run, variants, pd.DataFrame(rows), plans, network=found)


def test_a_network_of_other_layers_is_left_out() -> None:
    assert data_of(chain_of_two(network(["x", "h", "y"])))["network"]["inputs"] == [0]
    assert data_of(chain_of_two(Network((), (), (), ())))["network"] is None


@pytest.mark.parametrize("name", HOSTILE)
def test_strangers_names_of_tensors_end_no_script(name: str) -> None:
    plain, hostile = Page(chain_of_two(network(["x", "h", "y"]))), Page(chain_of_two(network([name, name, name])))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]


@pytest.mark.thorough
@needs_browser
def test_the_models_inputs_and_outputs_its_tensors_and_attributes_are_shown(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, file_of(tmp_path, chain_of_two(network(["x", "h", "y"])))) as opened:
        page = opened.page
        assert status(page) == "All 2 layers shown. Besides: what the model takes and gives (2)."
        assert {"x", "h", "1×8 float", "strides", "(2, 2)"} <= set(
            page.locator("[data-of=details] :is(dd bdi, dd, dt)").all_inner_texts()
        ) | {text.split(" ", 1)[-1] for text in page.locator("[data-of=details] dd").all_inner_texts()}
        page.locator("canvas").focus()
        page.keyboard.press("Home")
        assert title(page) == "x"
        assert "Model input" in page.locator("[data-of=details]").inner_text()
        page.keyboard.press("End")
        assert title(page) == "y"
        page.locator(".layers .open").first.click()
        assert {"Takes", "Gives", "strides"} <= set(page.locator(".panel dt").all_inner_texts())
        opened.check_quiet()


@pytest.mark.thorough
@needs_browser
@pytest.mark.parametrize("name", ["plain", HOSTILE[1]])
def test_the_graph_is_saved_as_svg_and_png(browser: Any, tmp_path: Path, name: str) -> None:
    from PIL import Image

    html = chain_of_two(network([name, name, name]), layer=name, pinned=True, pinned_to="fp32")
    with Opened(browser, file_of(tmp_path, html)) as opened:
        saved = {}
        for kind in ("svg", "png"):
            with opened.page.expect_download() as download:
                opened.page.locator(f"[data-do={kind}]").click()
            assert download.value.suggested_filename == f"graph.fp16.{kind}"
            saved[kind] = tmp_path / kind
            download.value.save_as(saved[kind])
        assert opened.complaints == []
    tree = ElementTree.parse(saved["svg"])  # our own page wrote it
    tags = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert set(tags) == {"svg", "rect", "path", "g", "title", "text", "circle"}
    assert tags.count("circle") == 2, "a dot for each pin"
    assert "1×8" in [element.text for element in tree.iter() if element.tag.endswith("text")]
    with Image.open(saved["png"]) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert picture.width > 300
        assert colours is not None
        assert len(colours) > 5


@pytest.mark.thorough
@needs_browser
def test_pins_are_seen_from_afar_and_are_no_shapes(browser: Any, tmp_path: Path) -> None:
    """A pin in a network so long that a layer is a pixel high has a dot that is larger, in a colour of its own."""
    kinds = ["Relu"] * 600
    run, variants, _, _ = report()
    rows = rows_of(kinds, [[i - 1] if i else [] for i in range(600)])
    for number, row in enumerate(rows):
        row["kind"] = f"Relu{number}"  # nothing repeats, so that nothing folds
    rows[300] |= {"pinned": True, "pinned_to": "fp32"}
    rows[301] |= {"fixed": "shape flow", "runs_in": "fp32"}
    html = render(run, variants, pd.DataFrame(rows), {"fp16": PrecisionPlan("ab" * 32, Precision.FP16)})
    with Opened(browser, file_of(tmp_path, html)) as opened:
        page = opened.page
        page.locator("[data-of=colour]").select_option("runs")
        page.locator("[data-do=fit]").click()
        page.wait_for_timeout(100)
        purple = "getComputedStyle(document.querySelector('[data-graph]')).getPropertyValue('--g-pinned').trim()"
        count = page.evaluate(
            """colour => {
              const [r, g, b] = [1, 3, 5].map(n => parseInt(colour.slice(n, n + 2), 16));
              const canvas = document.querySelector("canvas");
              const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              let found = 0;
              for (let i = 0; i < data.length; i += 4) found += data[i] === r && data[i + 1] === g && data[i + 2] === b;
              return found;
            }""",
            page.evaluate(purple),
        )
        assert count >= 20
        legend = page.locator("[data-of=legend]").inner_text()
        assert "no float arithmetic" in legend
        assert "FP32" in legend
