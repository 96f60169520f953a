"""cuda-python's place in the double; see `tensorrt` beside it."""
