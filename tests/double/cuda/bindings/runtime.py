"""cuda-python's runtime in the double: a GPU whose memory is the host's, see `gpu/hostcuda.py`."""

from __future__ import annotations

from gpu.hostcuda import FakeCudart as _FakeCudart

_gpu = _FakeCudart(room=4 << 30)
globals().update({_name: getattr(_gpu, _name) for _name in dir(_gpu) if _name.startswith("cuda")})
