"""How long ``gammabeta --help`` takes: the median of several processes.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.harness import print_machine, print_table, save_rows

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "gammabeta --help": [sys.executable, "-m", "gammabeta", "--help"],
    "gammabeta train --help": [sys.executable, "-m", "gammabeta", "train", "--help"],
}


def seconds(command: list[str]) -> float:
    """Time one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Time each command 15 times, in turn."""
    print_machine()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    rows: list[dict[str, object]] = [
        {
            "command": name,
            "seconds (median)": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
        for name, values in times.items()
    ]
    print_table(rows)
    save_rows("startup", rows)


if __name__ == "__main__":
    main()
