"""Finds every use of TensorRT in our source, and holds it against what a version of TensorRT really has.

A use begins at the parameter `trt`, or at something of type Any whose name is in CONVENTION. From there it is followed
through variables, fields of our own classes, loops and calls: what a method of TensorRT gives and what type a property
has are read from the bindings' own signatures (surface.py). What looks like TensorRT and could not be followed is told
as well: a name that only TensorRT has, on something that nobody knows.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Surface = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""What surface.py prints."""

CONVENTION = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "layer": "ILayer",
    "tensor": "ITensor",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "timing_cache": "ITimingCache",
    "error": "ParserError",
    "registry": "IPluginRegistry",
}
"""What a parameter, field or variable of type Any with this name is (a leading underscore does not count)."""

_LISTS = {"Sequence", "Iterable", "Iterator", "Collection", "list", "tuple", "set", "frozenset"}
_SAME_ITEMS = {"list", "tuple", "sorted", "reversed", "iter", "set", "frozenset"}


@dataclass(frozen=True)
class Use:
    """One use of TensorRT: `attribute` of `owner`, which is "" for the module itself.

    `positional` and `keywords` are of a call (None: it is not called, or with *arguments). `stored` is true where the
    attribute is set, `asked` where the code only asks whether it is there.
    """

    file: str
    line: int
    owner: str
    attribute: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()
    stored: bool = False
    asked: bool = False

    @property
    def name(self) -> str:
        """`BuilderFlag`, `BuilderFlag.FP16`, `ILayer.precision`."""
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Found:
    """All uses of TensorRT in some files; `unseen` are the lines that could not be understood."""

    uses: tuple[Use, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """What an expression is, as far as it matters here.

    `kind`: module (TensorRT), class, object, method (of TensorRT: `name` is the class, `attribute` the method),
    ours (a class of the project), list (`items`), other (surely not TensorRT's), any (declared as Any), unknown.
    """

    kind: str
    name: str = ""
    attribute: str = ""
    items: Value | None = None
    parts: tuple[Value, ...] = ()


UNKNOWN = Value("unknown")
ANY = Value("any")
OTHER = Value("other")
MODULE = Value("module")


def merged(surfaces: Iterable[Surface]) -> Surface:
    """All that any of these versions has; a method has the signatures of all."""
    found: dict[str, dict[str, Any]] = {}
    for surface in surfaces:
        for owner, members in surface.items():
            mine = found.setdefault(owner, {})
            for name, thing in members.items():
                known = mine.get(name)
                if known and known["kind"] == thing["kind"] == "method":
                    mine[name] = {**known, "signatures": [*known["signatures"], *thing["signatures"]]}
                elif known is None or known.get("type") is None:
                    mine[name] = dict(thing)
    return found


def uses(sources: Mapping[str, str], surface: Surface) -> Found:
    """Every use of TensorRT in these files (name → text). `surface` is that of all versions together."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    project = Project(trees, surface)
    for _ in range(3):  # fields may hold what other fields give
        found: list[Use] = []
        unseen: list[str] = []
        for name, tree in trees.items():
            reader = Reader(name, project, found, unseen)
            reader.body(tree.body, {})
    return Found(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(unseen)))


def missing(found: Iterable[Use], surface: Surface) -> dict[str, list[str]]:
    """Name → where it is used, of all that this version lacks; what is only asked for may be lacking."""
    lacking: dict[str, list[str]] = {}
    for use in found:
        if use.asked:
            continue
        if use.owner not in surface:
            lacking.setdefault(use.owner, []).append(use.where)
        elif use.attribute not in surface[use.owner]:
            lacking.setdefault(use.name, []).append(use.where)
    return lacking


def misused(found: Iterable[Use], surface: Surface) -> list[str]:
    """The calls that no signature of this version takes, and the properties that it does not let anyone set."""
    wrong = []
    for use in found:
        thing = surface.get(use.owner, {}).get(use.attribute)
        if use.asked or thing is None:
            continue
        if use.stored and not (thing["kind"] == "property" and thing["settable"]):
            wrong.append(f"{use.where}: {use.name} cannot be set")
        if use.positional is None:
            continue
        if thing["kind"] == "class":
            thing = surface[use.attribute].get("__init__", {"kind": "method", "signatures": []})
        if thing["kind"] != "method":
            wrong.append(f"{use.where}: {use.name} is a {thing['kind']}, not to be called")
        elif thing["signatures"] and not any(_takes(signature, use) for signature in thing["signatures"]):
            wrong.append(f"{use.where}: {use.name} takes no call of {use.positional} arguments and {use.keywords}")
    return wrong


def _takes(signature: Mapping[str, Any], use: Use) -> bool:
    parameters = [tuple(parameter) for parameter in signature["parameters"]]
    if any(name.startswith("*") for name, _ in parameters):
        return True
    assert use.positional is not None
    rest = parameters[use.positional :]
    return (
        use.positional <= len(parameters)
        and set(use.keywords) <= {name for name, _ in rest}
        and all(optional or name in use.keywords for name, optional in rest)
    )


class Project:
    """What our own files say of themselves: the fields of classes, and what functions give."""

    def __init__(self, trees: Mapping[str, ast.Module], surface: Surface) -> None:
        self.surface = surface
        self.fields: dict[str, dict[str, Value]] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.names: set[str] = set()
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.fields.setdefault(node.name, {})
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    self.names.add(node.name)
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    self.names.add(node.target.id)
        for tree in trees.values():
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.functions[node.name] = node
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._read_class(node)
        self.everywhere = {name for members in surface.values() for name in members} - self.names - _ordinary()

    def annotated(self, annotation: ast.expr | None, name: str) -> Value:
        """What something of this annotation and name is."""
        if annotation is None:
            return UNKNOWN
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self.annotated(ast.parse(annotation.value, mode="eval").body, name)
        if isinstance(annotation, ast.BinOp):  # X | None
            sides = [self.annotated(side, name) for side in (annotation.left, annotation.right)]
            return next((side for side in sides if side.kind != "other"), OTHER)
        if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
            inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            if annotation.value.id == "tuple" and not isinstance(inner[-1], ast.Constant):
                return Value("list", parts=tuple(self.annotated(part, "") for part in inner))
            if annotation.value.id in _LISTS:
                return Value("list", items=self.annotated(inner[0], name.rstrip("s")))
            return UNKNOWN
        if isinstance(annotation, ast.Name):
            if annotation.id == "Any":
                return self.by_name(name)
            return Value("ours", annotation.id) if annotation.id in self.fields else OTHER
        return OTHER

    def by_name(self, name: str) -> Value:
        """What something of type Any is, going by its name."""
        plain = name.lstrip("_")
        if plain == "trt":
            return MODULE
        return Value("object", CONVENTION[plain]) if plain in CONVENTION else ANY

    def typed(self, text: str | None) -> Value:
        """What a type of the bindings' own signatures is."""
        if text is None:
            return OTHER
        items = re.fullmatch(r"(?:list|List)\[(.+)\]", text)
        if items:
            return Value("list", items=self.typed(items[1]))
        optional = re.fullmatch(r"Optional\[(.+)\]|(.+) \| None", text)
        if optional:
            return self.typed(optional[1] or optional[2])
        return Value("object", text) if text in self.surface else OTHER

    def _read_class(self, node: ast.ClassDef) -> None:
        fields = self.fields[node.name]
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                fields[statement.target.id] = self.annotated(statement.annotation, statement.target.id)
            if isinstance(statement, ast.FunctionDef):
                decorators = {ast.unparse(decorator).rsplit(".", 1)[-1] for decorator in statement.decorator_list}
                result = self.annotated(statement.returns, statement.name)
                is_property = decorators & {"property", "cached_property"}
                fields.setdefault(statement.name, result if is_property else Value("ours method", items=result))


class Reader:
    """Follows TensorRT through one file."""

    def __init__(self, file: str, project: Project, found: list[Use], unseen: list[str]) -> None:
        self.file = file
        self.project = project
        self.found = found
        self.unseen = unseen
        self.classes: list[str] = []

    def body(self, statements: Iterable[ast.stmt], names: dict[str, Value]) -> None:
        """Statements of one scope, whose variables are `names`."""
        for statement in statements:
            self.statement(statement, names)

    def statement(self, node: ast.stmt, names: dict[str, Value]) -> None:
        match node:
            case ast.FunctionDef():
                self.function(node, names)
            case ast.ClassDef():
                for base in node.bases:
                    self.value(base, names)
                self.classes.append(node.name)
                self.body(node.body, dict(names))
                self.classes.pop()
                names[node.name] = Value("ours class", node.name)
            case ast.Assign():
                value = self.value(node.value, names)
                for target in node.targets:
                    self.bind(target, value, names)
            case ast.AnnAssign():
                value = OTHER if node.value is None else self.value(node.value, names)
                if value.kind in ("unknown", "any", "other"):
                    name = node.target.id if isinstance(node.target, ast.Name) else getattr(node.target, "attr", "")
                    value = self.project.annotated(node.annotation, name)
                self.bind(node.target, value, names)
            case ast.For():
                self.bind(node.target, self.item(self.value(node.iter, names)), names)
                self.body([*node.body, *node.orelse], names)
            case ast.With():
                for item in node.items:
                    value = self.value(item.context_expr, names)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, value, names)
                self.body(node.body, names)
            case ast.ExceptHandler():
                pass
            case _:
                for child in ast.iter_child_nodes(node):
                    self.child(child, names)

    def child(self, child: ast.AST, names: dict[str, Value]) -> None:
        """Whatever stands inside a statement."""
        if isinstance(child, ast.ExceptHandler):
            self.body(child.body, {**names, child.name: OTHER} if child.name else names)
        elif isinstance(child, ast.stmt):
            self.statement(child, names)
        elif isinstance(child, ast.expr):
            self.value(child, names)
        else:
            for grandchild in ast.iter_child_nodes(child):
                self.child(grandchild, names)

    def function(self, node: ast.FunctionDef, names: dict[str, Value]) -> None:
        inner = dict(names)
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in every:
            inner[argument.arg] = self.project.annotated(argument.annotation, argument.arg)
        for argument in filter(None, (arguments.vararg, arguments.kwarg)):
            inner[argument.arg] = OTHER
        if self.classes and every and every[0].arg == "self":
            inner["self"] = Value("ours", self.classes[-1])
        for default in [*arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.value(default, names)
        names[node.name] = Value("ours method", items=self.project.annotated(node.returns, node.name))
        classes, self.classes = self.classes, []
        self.body(node.body, inner)
        self.classes = classes

    def bind(self, target: ast.expr, value: Value, names: dict[str, Value]) -> None:
        match target:
            case ast.Name():
                names[target.id] = self.project.by_name(target.id) if value == ANY else value
            case ast.Tuple() | ast.List():
                for index, part in enumerate(target.elts):
                    self.bind(part, value.parts[index] if index < len(value.parts) else self.item(value), names)
            case ast.Starred():
                self.bind(target.value, value, names)
            case ast.Attribute():
                owner = self.value(target.value, names)
                if owner.kind == "object":
                    self.add(target, owner.name, target.attr, stored=True)
                elif owner.kind == "ours" and value.kind in ("object", "module", "class", "ours"):
                    self.project.fields.setdefault(owner.name, {})[target.attr] = value
                elif owner.kind in ("unknown", "any"):
                    self.suspect(target)
            case _:
                self.value(target, names)

    def value(self, node: ast.expr, names: dict[str, Value]) -> Value:
        """What an expression is; adds the uses in it."""
        match node:
            case ast.Name():
                if node.id in names:
                    return names[node.id]
                if node.id in self.project.functions:
                    function = self.project.functions[node.id]
                    return Value("ours method", items=self.project.annotated(function.returns, node.id))
                if node.id in self.project.fields:
                    return Value("ours class", node.id)
                return OTHER
            case ast.Attribute():
                return self.attribute(node, self.value(node.value, names))
            case ast.Call():
                return self.call(node, names)
            case ast.Subscript():
                owner = self.value(node.value, names)
                self.value(node.slice, names)
                index = node.slice.value if isinstance(node.slice, ast.Constant) else None
                if owner.parts and isinstance(index, int) and index < len(owner.parts):
                    return owner.parts[index]
                return self.item(owner)
            case ast.NamedExpr():
                value = self.value(node.value, names)
                self.bind(node.target, value, names)
                return value
            case ast.IfExp():
                self.value(node.test, names)
                return self.first([self.value(part, names) for part in (node.body, node.orelse)])
            case ast.BoolOp():
                return self.first([self.value(part, names) for part in node.values])
            case ast.Tuple() | ast.List():
                parts = tuple(self.value(part, names) for part in node.elts)
                return Value("list", items=self.first(parts), parts=parts)
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                inner = dict(names)
                for generator in node.generators:
                    self.bind(generator.target, self.item(self.value(generator.iter, inner)), inner)
                    for condition in generator.ifs:
                        self.value(condition, inner)
                if isinstance(node, ast.DictComp):
                    self.value(node.key, inner)
                    self.value(node.value, inner)
                    return OTHER
                return Value("list", items=self.value(node.elt, inner))
            case ast.Lambda():
                inner = {**names, **{argument.arg: UNKNOWN for argument in node.args.args}}
                return Value("ours method", items=self.value(node.body, inner))
            case _:
                for child in ast.iter_child_nodes(node):
                    self.child(child, names)
                return OTHER

    def attribute(self, node: ast.Attribute, owner: Value) -> Value:
        match owner.kind:
            case "module" | "class" | "object":
                self.add(node, owner.name, node.attr)
                return self.member(owner, node.attr)
            case "ours" | "ours class":
                return self.project.fields.get(owner.name, {}).get(node.attr, UNKNOWN)
            case "unknown" | "any":
                self.suspect(node)
                return UNKNOWN
            case _:
                return OTHER

    def member(self, owner: Value, attribute: str) -> Value:
        thing = self.project.surface.get(owner.name, {}).get(attribute)
        if thing is None:
            return OTHER  # told as missing in every version
        match thing["kind"]:
            case "class":
                return Value("class", f"{owner.name}.{attribute}" if owner.name else attribute)
            case "method":
                return Value("method", owner.name, attribute)
            case _:
                return self.project.typed(thing["type"])

    def call(self, node: ast.Call, names: dict[str, Value]) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr", "setattr"):
            value = self.asked(node, names)
            if value is not None:
                return value
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value, names)
            function = self.attribute(node.func, owner)
            if owner.kind in ("module", "class", "object") and function.kind not in ("class", "method"):
                self.called(node, owner.name, node.func.attr)  # a property
        else:
            function = self.value(node.func, names)
        given = [self.value(argument, names) for argument in node.args]
        for keyword in node.keywords:
            self.value(keyword.value, names)
        match function.kind:
            case "class":
                self.called(node, *function.name.rpartition(".")[::2])
                return Value("object", function.name)
            case "method":
                self.called(node, function.name, function.attribute)
                signatures = self.project.surface[function.name][function.attribute]["signatures"]
                results = [self.project.typed(signature["result"]) for signature in signatures]
                return self.first(results)
            case "ours class":
                return Value("ours", function.name)
            case "ours method":
                return function.items or UNKNOWN
            case "unknown" | "any":
                return UNKNOWN
        if isinstance(node.func, ast.Name) and given:
            first = given[0]
            if node.func.id in _SAME_ITEMS:
                return Value("list", items=self.item(first))
            if node.func.id == "enumerate":
                return Value("list", items=Value("list", parts=(OTHER, self.item(first))))
            if node.func.id == "zip":
                return Value("list", items=Value("list", parts=tuple(map(self.item, given))))
            if node.func.id == "next":
                return self.item(first)
        return OTHER

    def asked(self, node: ast.Call, names: dict[str, Value]) -> Value | None:
        """`hasattr(x, "name")` and its like, where x is TensorRT's."""
        assert isinstance(node.func, ast.Name)
        owner = self.value(node.args[0], names)
        if owner.kind not in ("module", "class", "object"):
            return None
        for argument in node.args[1:]:
            self.value(argument, names)
        attribute = node.args[1]
        if not (isinstance(attribute, ast.Constant) and isinstance(attribute.value, str)):
            self.add(node, owner.name, DYNAMIC)
            members = self.project.surface.get(owner.name, {}).values()
            return self.first([self.project.typed(thing["type"]) for thing in members if thing["kind"] == "value"])
        function = node.func.id
        careful = function == "hasattr" or (function == "getattr" and len(node.args) == 3)
        self.add(node, owner.name, attribute.value, asked=careful, stored=function == "setattr")
        return OTHER if function == "hasattr" else self.member(owner, attribute.value)

    def called(self, node: ast.Call, owner: str, attribute: str) -> None:
        """Turns the use that was added for the function into one of a call."""
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if starred or any(keyword.arg is None for keyword in node.keywords):
            return
        keywords = tuple(str(keyword.arg) for keyword in node.keywords)
        positional = len(node.args)
        if isinstance(node.func, ast.Attribute) and attribute == "__init__":
            positional -= 1  # Base.__init__(self)
        use = Use(self.file, node.func.lineno, owner, attribute)
        self.found.append(replace(use, positional=positional, keywords=keywords))

    def add(self, node: ast.expr, owner: str, attribute: str, *, stored: bool = False, asked: bool = False) -> None:
        self.found.append(Use(self.file, node.lineno, owner, attribute, stored=stored, asked=asked))

    def suspect(self, node: ast.Attribute) -> None:
        """An attribute of who knows what: is it one that only TensorRT has?"""
        if node.attr in self.project.everywhere:
            self.unseen.append(f"{self.file}:{node.lineno}: {ast.unparse(node)}")

    def item(self, value: Value) -> Value:
        """What a loop over this value gives."""
        if value.kind == "list":
            return value.items or self.first(value.parts)
        return UNKNOWN if value.kind in ("unknown", "any") else OTHER

    @staticmethod
    def first(values: Iterable[Value]) -> Value:
        """The first of several that tells anything."""
        found = list(values)
        told = [value for value in found if value.kind not in ("other", "unknown")]
        return told[0] if told else next((value for value in found if value != OTHER), OTHER)


DYNAMIC = "*"
"""Stands for an attribute whose name the code makes while it runs."""


def _ordinary() -> set[str]:
    """The names that things of Python have, too."""
    kinds = (
        str,
        bytes,
        list,
        dict,
        tuple,
        set,
        int,
        float,
        memoryview,
        Path,
        BaseException,
        io.TextIOWrapper,
        io.BytesIO,
    )
    return {name for kind in kinds for name in dir(kind)} | {
        "name",
        "value",
        "type",
        "shape",
        "dtype",
        "size",
        "nbytes",
    }
