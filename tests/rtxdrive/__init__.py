"""Scripts that the tests run in processes of their own, with TensorRT-RTX."""
