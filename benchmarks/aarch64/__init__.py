"""Figures and files on x86-64 and on an emulated aarch64, the architecture of Jetsons: `python -m benchmarks.aarch64`.

Both sides have the same versions of all packages, and the same Python but for its build: Debian's for arm64, run by
QEMU's user mode as a Neoverse N1, the sibling of a Jetson Orin's Cortex-A78AE that QEMU 7.2 knows. What is slow there
says nothing; what is computed does, down to the bits.

    python -m benchmarks.aarch64 [all | setup | kernels | half | models | tests | table] [--folder DIR] [NAMES]

- `setup` fills the folder (default: benchmarks/.aarch64): Debian 12 on x86-64 with Python 3.11 is needed, and a few
  hundred megabytes;
- `kernels`: the compiled loops on the same values, by the hashes of what they give;
- `half`: small models that hold float16 of their own, swept; and what ONNX Runtime itself makes of a sum in half;
- `models`: a sweep in FP16 and INT8, a calibration cache and typed models of real models (NAMES: some of them);
- `tests`: modules of tests on aarch64 alone (NAMES: parts of their names);
- `table`: what the folder holds, in Markdown.

Every step leaves its results in the folder, and is not done again while they lie there.
"""
