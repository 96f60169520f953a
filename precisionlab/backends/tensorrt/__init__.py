"""Real TensorRT engines: built, looked into and run in a process of their own.

`jobs` says what is asked of that process, and what it answers; `process` keeps it, `worker` is what runs in it. The
rest is one subject a file, and takes the TensorRT module as an argument: the same code serves TensorRT 8.6 to 10.x,
TensorRT 11 and TensorRT-RTX, and chooses by what the module has, never by its version.
"""
