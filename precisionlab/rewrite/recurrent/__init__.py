"""Recurrent layers in low precision: the loop of steps that TensorRT makes of an LSTM, a GRU or an RNN."""

from precisionlab.rewrite.recurrent.sequence import plain, stepped

__all__ = ["plain", "stepped"]
