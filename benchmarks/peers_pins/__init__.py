"""Peers of `benchmarks.pins`, each asked by a module that runs in an environment of the peer's own.

Called with MODEL DATA PRECISION TOLERANCE GRAPH [OPTIONS]: the model with every node named, a folder of .npz files with
the samples, `fp16` or `int8`, the SQNR in dB to reach, and where to write the graph if the tool's nodes are those of a
rewritten one. Prints its answer as one line of JSON:
{"high": [nodes], "precision": what those run in, "seconds": …, "version": …}, or {"failed": reason}.
"""
