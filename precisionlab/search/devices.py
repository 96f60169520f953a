"""The peak figures of NVIDIA devices, as NVIDIA publishes them; what the cost estimate is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from precisionlab.errors import OptionError
from precisionlab.precision import Precision

_TERA = 1e12
_GIGA = 1e9


@dataclass(frozen=True)
class DevicePeaks:
    """A device's peaks. `name` is what a user types, `title` what a report shows.

    `capability` is its CUDA compute capability, such as `sm80`. `compute` is the dense peak in operations per second
    (a multiply-add is 2) for each precision that the device computes in; a precision that it cannot compute in is not
    there. `bandwidth` is the peak of its memory in bytes per second. `source` names the document that the figures are
    from.
    """

    name: str
    title: str
    capability: str
    compute: Mapping[Precision, float]
    bandwidth: float
    source: str

    def peak(self, precision: Precision) -> float | None:
        """Operations per second in the precision, or in that which it is computed as; None where it has neither."""
        return self.compute.get(precision, self.compute.get(precision.computed_as))


def _compute(**peaks: float) -> Mapping[Precision, float]:
    """Figures in 10¹² operations per second, by precision.

    FP32 is that of the CUDA cores: a layer pinned to fp32 is built with TF32 off. The others are those of
    the tensor cores, dense: half of what a datasheet gives "with sparsity". FP16 with sums in float32 has the peak of
    FP16: tensor cores of data-centre GPUs add up in either at one rate (NVIDIA A100 architecture whitepaper: 312 for
    both), and that is taken for Orin's too. GeForce cards, of which none is here, have half the rate. INT4 is for
    weights, and has the peak of FP16, which they are multiplied in; TensorRT-RTX 1.7.1 refuses it for SM75.
    """
    return MappingProxyType({Precision(name): peak * _TERA for name, peak in peaks.items()})


DEVICES: Mapping[str, DevicePeaks] = MappingProxyType(
    {
        device.name: device
        for device in (
            DevicePeaks(
                "a100",
                "NVIDIA A100 SXM 80 GB",
                "sm80",
                _compute(fp32=19.5, fp16=312, bf16=312, int8=624, int4=312),
                2039 * _GIGA,
                "NVIDIA A100 Tensor Core GPU datasheet, column A100 80GB SXM",
            ),
            # The datasheet has 1,979 teraFLOPS and 3,958 TOPS with sparsity; the whitepaper, with one more digit, has
            # 989.4 and 1,978.9 without.
            DevicePeaks(
                "h100",
                "NVIDIA H100 SXM5 80 GB",
                "sm90",
                _compute(fp32=67, fp16=989.4, bf16=989.4, fp8=1978.9, int8=1978.9, int4=989.4),
                3350 * _GIGA,
                "NVIDIA H100 Tensor Core GPU datasheet, column H100 SXM; NVIDIA H100 architecture whitepaper",
            ),
            # The brief has 5.3 FP32 TFLOPS and 170 sparse INT8 TOPS for the GPU: 85 dense. It gives no FP16 peak.
            # FP16 and BF16 are DERIVED here: half of INT8, as on the A100 (its datasheet: 312 and 624), and as
            # the brief has half as many HMMA as IMMA to a tensor core. Its 275 TOPS count the DLAs as well.
            DevicePeaks(
                "orin",
                "NVIDIA Jetson AGX Orin 64 GB (GPU alone, MAXN)",
                "sm87",
                _compute(fp32=5.3, fp16=42.5, bf16=42.5, int8=85, int4=42.5),
                204.8 * _GIGA,
                "NVIDIA Jetson AGX Orin Series technical brief v1.2; FP16 and BF16 derived as half of dense INT8",
            ),
            # With sparsity: 242 FP16 and BF16, 485 FP8 and INT8.
            DevicePeaks(
                "l4",
                "NVIDIA L4 24 GB",
                "sm89",
                _compute(fp32=30.3, fp16=121, bf16=121, fp8=242.5, int8=242.5, int4=121),
                300 * _GIGA,
                "NVIDIA L4 Tensor Core GPU datasheet, its tensor core figures (with sparsity) halved",
            ),
            # Turing: no sparsity and no bfloat16. NVIDIA's product page has 320+ GB/s (256 bit at 10 Gbit/s).
            DevicePeaks(
                "t4",
                "NVIDIA T4 16 GB",
                "sm75",
                _compute(fp32=8.1, fp16=65, int8=130),
                300 * _GIGA,
                "NVIDIA T4 Tensor Core GPU datasheet",
            ),
        )
    }
)
"""Name → device."""


DEFAULT = "a100"
"""The device where none is named, but for precisions that it has not."""


def devices_for(precisions: Iterable[Precision]) -> tuple[DevicePeaks, ...]:
    """The devices that compute in all of these precisions; the default first, where it does."""
    wanted = tuple(precisions)
    found = [device for device in DEVICES.values() if all(device.peak(p) is not None for p in wanted)]
    return tuple(sorted(found, key=lambda device: device.name != DEFAULT))


def computes_on(precision: Precision, capability: tuple[int, int]) -> bool:
    """Whether GPUs of this compute capability have the precision: from that of the least device here that has it on."""
    return capability >= min(_version(device) for device in devices_for([precision]))


def _version(device: DevicePeaks) -> tuple[int, int]:
    """Its compute capability, such as (8, 9)."""
    digits = device.capability.removeprefix("sm")
    return int(digits[:-1]), int(digits[-1])


def find_device(name: str) -> DevicePeaks:
    """The device of this name, or of this compute capability (`sm89`), in any case.

    Raises OptionError with the choices for any other.
    """
    wanted = name.strip().lower()
    for device in DEVICES.values():
        if wanted in (device.name, device.capability):
            return device
    choices = ", ".join(f"{device.name} ({device.capability})" for device in DEVICES.values())
    raise OptionError(f"unknown device {name.strip()!r}; use one of {choices}")
