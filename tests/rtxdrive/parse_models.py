"""Parses each model: its network's layers, or the error's text: `parse_models.py MODEL…`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import tensorrt_rtx as trt

from precisionlab.backends.tensorrt.api import features_of
from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger
from precisionlab.backends.tensorrt.network import describe, parse
from precisionlab.errors import BuildError

log = LogKeeper()
logger = make_logger(trt, log)
builder = trt.Builder(logger)
answers = []
for path in map(Path, sys.argv[1:]):
    try:
        with parse(trt, logger, builder, path, features_of(trt), log) as parsed:
            answers.append({"layers": [asdict(layer) for layer in describe(parsed.network)]})
    except BuildError as error:
        answers.append({"error": str(error)})
print(json.dumps(answers))
