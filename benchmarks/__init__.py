"""What things cost, always as a ratio to plain ONNX Runtime passes taken in the same run."""
