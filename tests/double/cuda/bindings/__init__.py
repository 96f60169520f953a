"""cuda-python's bindings in the double: the runtime alone."""
