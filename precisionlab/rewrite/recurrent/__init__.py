"""Recurrent layers in low precision: the loop of steps that TensorRT makes of an LSTM, a GRU or an RNN."""

from precisionlab.rewrite.recurrent.sequence import batch_first, stepped

__all__ = ["batch_first", "stepped"]
