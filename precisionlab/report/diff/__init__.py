"""What became better and what worse between two runs, from their folders alone.

A figure of run A stands beside that of run B, matched by variant and output; layers are matched by name.
"""

from precisionlab.report.diff.compare import RunDiff, diff_runs
from precisionlab.report.diff.conditions import Condition
from precisionlab.report.diff.figures import Change
from precisionlab.report.diff.machine import diff_to_dict
from precisionlab.report.diff.page import render_diff
from precisionlab.report.diff.shipped import check_comparable

__all__ = ["Change", "Condition", "RunDiff", "check_comparable", "diff_runs", "diff_to_dict", "render_diff"]
