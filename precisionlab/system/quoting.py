"""What another library says of a fault: quoted as the cause behind a sentence of ours, in words that a user can read.

A sentence of ours says what is wrong, where, and what to do. Another library's text is written for its makers: it has
their error codes, the paths of their build machines and C++ signatures, and often several lines.
"""

from __future__ import annotations

import re

from precisionlab.system.wording import one_line

CPP_ERRORS = (RuntimeError, ValueError, IndexError, OverflowError)
"""What pybind11 makes of C++'s exceptions. TypeError, KeyError and the like are faults of who calls."""

_LONGEST = 300  # letters

# A function as C++ compilers write it, with its parameters: `void a::b::f(const std::vector<int>&) const [with …]`.
_SIGNATURE = r"[^()\"']*?::~?[\w<>=~]+\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)(?: const)?(?: \[with [^\]]*\])?"
_POSITION = re.compile(rf"(?:\S*[/\\])?[\w.-]+\.(?:cc|cpp|cxx|h|hpp|cu|cuh):\d+:?\s+(?:{_SIGNATURE}|[\w:~]+:?)\s+")
_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"Load model from .* failed: ?"),
    re.compile(r"Exception during initialization: "),
    re.compile(r"Non-zero status code returned while running \w+ node\. Name:'.*?' Status Message: "),
    _POSITION,
    re.compile(r"^[^.]*? was false\. (?=\S)"),  # the condition, in C++
    re.compile(r"Assertion `.*?` failed: "),
    re.compile(r"==> "),
    re.compile(r"\b(?:std|onnxruntime)::[\w:]+(?:<[^<>]*>)?[&*]*"),
)


def cause(who: str, error: BaseException) -> str:
    """`ONNX Runtime says: "…"`, on one line; where nothing readable is left, what kind of error it was."""
    text = quotable(str(error))
    return f'{who} says: "{text}"' if text else f"{who} says no more than {type(error).__name__}"


def quotable(text: str) -> str:
    """The text on one line, without what only its makers can read."""
    line = " ".join(text.split())
    for noise in _NOISE:
        line = noise.sub("", line)
    return one_line(" ".join(line.split()).replace('"', "'"), _LONGEST).rstrip(".: ")
