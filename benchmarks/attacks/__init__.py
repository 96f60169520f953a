"""Attempts to break precisionlab from its command line: `python -m benchmarks.attacks`.

Not part of the checks: it takes minutes. A module a family; each gives kinds, and each kind its attempts, of which some
are drawn by seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "jobs"))  # whose builders of hostile files are used here
