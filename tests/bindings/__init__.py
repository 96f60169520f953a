"""TensorRT's real Python bindings, without its libraries: set up here, one version to a process."""
