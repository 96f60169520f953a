"""One checked ONNX model: its tensors, its float and shape flow, and its layers."""

from precisionlab.model.graph import Layer, Model, TensorInfo
from precisionlab.model.load import load_model

__all__ = ["Layer", "Model", "TensorInfo", "load_model"]
