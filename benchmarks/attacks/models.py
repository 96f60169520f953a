"""Models that somebody made to do harm: files, structure, names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from models import proto
from onnx import TensorProto, helper
from test_hostile import MODELS

from benchmarks.attacks.attempt import ANY, MODEL, REFUSED, RUNS, Attempt, Kind, Make, Words
from tests.fuzz.mutate import mutated_model

OPTIONS = ("--random", "--precisions", "fp16,int8", "--max-evaluations", "2", "--threads", "1", "--out", "run")
NAMES: dict[str, str] = {
    "an element": '"><pwned onload=pwned()>',
    "a script's end": "</script><pwned>",
    "an attribute": "' onmouseover='pwned()' x='",
    "an image": "<img src=x onerror=pwned()>",
    "a formula": "=pwned()",
    "a formula with a plus": "+pwned()",
    "a formula with an at": "@pwned()",
    "a formula behind a tab": "\t=pwned()",
    "a link in Markdown": "[x](javascript:pwned())",
    "an image in Markdown": "![x](http://pwned.example/x.png)",
    "cells of a table": "a | b |\n| pwned",
    "code in Markdown": "```\n<pwned>\n```",
    "control characters": "\x1b[2J\x07pwned\r",
    "another direction": "\u202epwned\u202d",
    "a template": "{{ pwned }}{% pwned %}",
    "a path": "../../../pwned",
    "an absolute path": "/tmp/pwned",
    "an option": "--pwned",
    "very long": "pwned" * 2000,
    "nothing but blanks": " ",
    "NUL": "a\0pwned",
    "quotes": "\"'`$(pwned)`",
    "markup of a terminal's library": "[bold red]pwned[/bold red][link=x]",
}


def sweep(found: onnx.ModelProto | bytes) -> Words:
    """A sweep of this model."""
    Path("m.onnx").write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    return ["sweep", "m.onnx", *OPTIONS]


def small() -> onnx.ModelProto:
    """A product, an addition and an activation."""
    body = "(float[1,4] x) => (float[1,3] y) { a = MatMul(x, w) b = Add(a, c) y = Relu(b) }"
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    return proto(body, {"w": weights, "c": np.float32([1e5, 2, 3])})


def called(name: str) -> Make:
    """All its names are hostile ones."""

    def make() -> Words:
        found = small()
        for node in found.graph.node:
            node.name = f"{name}{node.op_type}"
            node.input[:] = [f"{name}{one}" for one in node.input]
            node.output[:] = [f"{name}{one}" for one in node.output]
        for value in (*found.graph.input, *found.graph.output, *found.graph.initializer):
            value.name = f"{name}{value.name}"
        found.graph.name = found.graph.doc_string = found.producer_name = name
        found.metadata_props.add(key=name, value=name)
        return sweep(found)

    return make


def exported(name: str, target: str) -> Make:
    """The plan of such a model, for another tool."""

    def make() -> Words:
        from click.testing import CliRunner

        from precisionlab.cli import cli

        done = CliRunner().invoke(cli, list(called(name)()))
        assert done.exit_code in (0, 1), done.output
        return ["export", "run/plan.fp16.json", "--format", target, "--out", "run/exported", "--threads", "1"]

    return make


def odd(change: Callable[[onnx.ModelProto], object]) -> Make:
    """A small model after a change."""

    def make() -> Words:
        found = small()
        change(found)
        return sweep(found)

    return make


def cut(share: float) -> Make:
    """A part of a file."""
    return lambda: sweep(MODEL.read_bytes()[: int(MODEL.stat().st_size * share)])


def inputs(*dims: int | str) -> Callable[[onnx.ModelProto], object]:
    """The input has this shape."""

    def change(found: onnx.ModelProto) -> None:
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
        found.graph.input[0].CopyFrom(value)

    return change


ODD: dict[str, Callable[[onnx.ModelProto], object]] = {
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no outputs": lambda m: m.graph.ClearField("output"),
    "no inputs": lambda m: m.graph.ClearField("input"),
    "no graph": lambda m: m.ClearField("graph"),
    "no opset": lambda m: m.ClearField("opset_import"),
    "an opset of the future": lambda m: setattr(m.opset_import[0], "version", 9999),
    "an opset below nothing": lambda m: setattr(m.opset_import[0], "version", -1),
    "a form of the future": lambda m: setattr(m, "ir_version", 9999),
    "an operator of nobody": lambda m: setattr(m.graph.node[2], "op_type", "Pwned"),
    "a domain of nobody": lambda m: setattr(m.graph.node[2], "domain", "pwned"),
    "an attribute of nobody": lambda m: m.graph.node[2].attribute.append(helper.make_attribute("pwned", 1)),
    "an output twice": lambda m: m.graph.output.append(m.graph.output[0]),
    "an input twice": lambda m: m.graph.input.append(m.graph.input[0]),
    "an initialiser twice": lambda m: m.graph.initializer.append(m.graph.initializer[0]),
    "a node that takes its own output": lambda m: m.graph.node[1].input.__setitem__(0, "b"),
    "an input of a billion by a billion": inputs(10**9, 10**9),
    "an input of 2^62": inputs(2**62, 4),
    "an input of no rows": inputs(0, 4),
    "an input below nothing": inputs(-5, 4),
    "an input of unknown size": inputs("n", 4),
    "an input of many axes": inputs(*[1] * 200, 4),
    "an output of another shape": lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [7, 7])),
    "an output of another type": lambda m: m.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 6, [1, 3])),
    "an output of nobody": lambda m: setattr(m.graph.output[0], "name", "pwned"),
    "weights of NaN": lambda m: setattr(m.graph.initializer[0], "raw_data", b"\xff" * 48),
    "weights of Inf": lambda m: setattr(m.graph.initializer[0], "raw_data", b"\x00\x00\x80\x7f" * 12),
}


def mutated(seed: str) -> Make:
    """A small model with some fields changed, copied, moved or removed."""

    def make() -> Words:
        dice = random.Random(seed)
        content = small().SerializeToString()
        return sweep(mutated_model(content, 1 << 20, dice, lambda found, most: flipped(found, most, dice)))

    return make


def flipped(content: bytes, most: int, dice: random.Random) -> bytes:
    """Some bytes are others, or gone."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        if found:
            found[dice.randrange(len(found))] = dice.randrange(256)
    if found and dice.random() < 0.3:
        del found[dice.randrange(len(found)) :]
    return bytes(found[:most])


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    yield Kind(
        "models that lie",
        "external data led out of the folder, sizes that lie, circles, devices, pipes, nesting, names twice",
        "refused by name",
        [Attempt(name, make, REFUSED, told) for name, (make, told) in MODELS.items()],
    )
    yield Kind(
        "models that are odd",
        "parts missing, versions of the future, unknown operators, sizes of 2^62, halves of files, NaN weights",
        "figures, or refused",
        list(odd_ones()),
    )
    yield Kind(
        "names that are markup",
        "nodes, tensors and graph called as HTML, formulas, Markdown, templates, terminal codes, paths; their exports",
        "a report without markup of theirs; an export, or refused",
        list(names()),
    )
    yield Kind(
        "models with fields drawn",
        "one to three fields of a model changed, copied, moved or removed, or bytes flipped",
        "figures, or refused",
        [Attempt(seed, mutated(seed), ANY) for seed in (f"{dice.random()}" for _ in range(20))],
    )


def odd_ones() -> Iterator[Attempt]:
    """Odd models, and a sound one."""
    yield Attempt("twin of a small model", lambda: sweep(small()), RUNS, twin=True)
    for name, change in ODD.items():
        yield Attempt(name, odd(change), ANY)
    for share in (0.0, 0.01, 0.5, 0.99):
        yield Attempt(f"{share:.0%} of a file", cut(share), REFUSED, "m.onnx")


def names() -> Iterator[Attempt]:
    """Models with hostile names."""
    for what, name in NAMES.items():
        yield Attempt(what, called(name), RUNS if what != "NUL" else ANY)
    for target in ("trtexec", "polygraphy", "modelopt", "json", "typed-onnx"):
        for what in ("quotes", "an option", "cells of a table"):
            yield Attempt(f"{target}: {what}", exported(NAMES[what], target), ANY)
    yield Attempt("twin of an export", exported("n", "json"), RUNS, twin=True)
