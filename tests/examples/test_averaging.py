"""The example runs as it is, and shows what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "averaging.py"


def test_averaged_weights_do_better_with_statistics_of_their_own():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    _, stale, own = (float(share) for share in re.findall(r"([\d.]+) %\n", done.stdout)[:3])
    assert own > stale
    assert own > 90
