"""What needs a real GPU, and a stand-in for TensorRT's runtime for machines that have no TensorRT."""
