"""Calibration data: a folder of samples and its manifest, or a Python hook, read one sample at a time."""

from precisionlab.data.dataset import Dataset, open_dataset, random_dataset
from precisionlab.data.inspect import Finding, InputLook, Look, Severity
from precisionlab.data.manifest import MANIFEST, InputSpec, Manifest, inside, read_manifest
from precisionlab.data.noise import RANDOM_SAMPLES
from precisionlab.data.picture import IMAGE_SUFFIXES
from precisionlab.data.sample import Sample, Skipped

__all__ = [
    "IMAGE_SUFFIXES",
    "MANIFEST",
    "RANDOM_SAMPLES",
    "Dataset",
    "Finding",
    "InputLook",
    "InputSpec",
    "Look",
    "Manifest",
    "Sample",
    "Severity",
    "Skipped",
    "inside",
    "open_dataset",
    "random_dataset",
    "read_manifest",
]
