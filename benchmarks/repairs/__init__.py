"""Repairs beside pins, on the real compiler and beside the peers: `python -m benchmarks.repairs [MODELS] [--peers]`.

For models that break in FP16, the same samples are given to a sweep that has pins alone (`--no-repair`) and to one that
repairs first. The original without pins, the pinned plan, and the repaired model (with the pins that it still needs)
each become a typed model, which is

* judged against the original's float32 by `benchmarks.delivered`, on the samples that chose and on samples that no tool
  has seen (every fourth),
* built by the real TensorRT-RTX for SM89 and SM120, which needs no GPU. From the builder's own list of kernels: their
  number, copies that do nothing but convert, what the kernels of the repaired sub-graph take and give, which kernels
  fuse an attention, a normalisation or a GELU, and how many run the same nodes as one of the original's.

With `--peers` also ModelOpt AutoCast and onnxconverter-common's float16 in FP16, on the original and on the repaired
model, and for minilm_l3 ModelOpt's INT8 beside ours: the nodes that each keeps high, and the dB of its file by the same
judge.

Some models are real (`benchmarks.typed_models`), others are made here, each around one pattern that breaks. The tables
are printed in Markdown. With `--json FILE` each model's rows are kept in that file.
"""
