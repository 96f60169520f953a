"""The emulation on a GPU: ONNX Runtime's CUDA provider, with activations and error sums that stay in its memory."""
