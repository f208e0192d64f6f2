"""The example runs as it is, and each correction is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "tutorial.py"


def test_the_tutorial_learns_the_digits():
    command = [sys.executable, str(SCRIPT), "--data", "digits", "--epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Accuracy of the network on the 360 test images: (\d+) %", done.stdout)
    assert found is not None
    assert int(found[1]) >= 80


def test_every_correction_is_marked_once_and_in_order():
    marks = re.findall(r"# Corrected \((\d)\)", SCRIPT.read_text(encoding="utf-8"))
    assert marks == list("123456")
