"""A plan as a strongly typed model: what TensorRT 11 and TensorRT-RTX build as it is."""

from precisionlab.rewrite.typed.model import TypedModel, typed_model
from precisionlab.rewrite.typed.save import save_typed

__all__ = ["TypedModel", "save_typed", "typed_model"]
