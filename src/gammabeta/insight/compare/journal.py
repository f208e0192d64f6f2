"""The file beside the page in which every finished training is kept as a line of JSON.

A line is written whole and flushed to the disk before the next training is counted. A last line
that a crash cut off is dropped when the journal is opened again, and its training is done anew. A
damaged one before it is refused: what follows it may not be thrown away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gammabeta.errors import RunError
from gammabeta.files import to_json
from gammabeta.insight.compare.job import job_of
from gammabeta.insight.compare.lines import Line
from gammabeta.insight.compare.plan import Plan
from gammabeta.schema import parse


class Journal:
    """Opens or begins a journal, locked against a second comparison that would write into it.

    Args:
        path: The file; its folder is made if need be.
        identity: What must be the same for the trainings to be comparable.
        machine: What this session computes with, for the reader.

    Raises:
        RunError: If it holds a comparison under other settings, is no journal, is in use, or
            cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            self._lock()
            lines, length = _whole_lines(path)
            if lines:
                self._refuse_other(lines[0], identity)
            self._file.truncate(length)
        except RunError:
            self._file.close()
            raise
        self.lines = lines or [{"kind": "settings", **identity}]
        if not lines:
            self._append(self.lines[0])
        self.keep_line({"kind": "session", "began": now(), **machine})

    @property
    def records(self) -> list[dict[str, Any]]:
        """Finished trainings, in the order in which they ended."""
        return of_kind(self.lines, "job")

    @property
    def done(self) -> set[str]:
        """Keys of the jobs whose records are here."""
        return {job_of(record).key for record in self.records}

    @property
    def plan(self) -> Plan | None:
        """The plan that was kept last: that of the sweep, then the settled one."""
        return plan_of(self.lines)

    def keep_plan(self, plan: Plan) -> None:
        """Keep the plan, under which later sessions go on."""
        self.keep_line({"kind": "plan", **plan.to_dict()})

    def keep_line(self, line: dict[str, Any]) -> None:
        """Keep a finished training, or anything else that has a kind."""
        self._append(line)
        self.lines.append(line)

    def end(self, by: str) -> None:
        """Note why a session ends."""
        self.keep_line({"kind": "end", "by": by, "at": now()})

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(to_json(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); the trainings in it are kept. "
                "Free some space, then run the same command again"
            ) from error

    def _refuse_other(self, first: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        if first.get("kind") != "settings":
            raise RunError(f"{self.path}: is not the journal of a comparison; choose another --out")
        other = [
            f"{name} was {first.get(name)}, is {value}"
            for name, value in identity.items()
            if first.get(name) != value
        ]
        if other:
            raise RunError(
                f"{self.path}: was begun under other settings ({'; '.join(other)}); repeat those, "
                "choose another --out, or delete the file to begin anew"
            )

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{self.path}: another comparison is writing into it; wait for it, or choose "
                "another --out"
            ) from None


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines, and where the last one begins if it was cut off, or else where all end."""
    lines: list[dict[str, Any]] = []
    length = 0
    raws = path.read_bytes().splitlines(keepends=True)
    for number, raw in enumerate(raws, 1):
        line = _known(raw)
        if line is None and number == len(raws):
            break
        if not lines and (line is None or line["kind"] != "settings"):
            break  # another file
        parse(Line, raw, f"{path}: line {number}")
        lines.append(line or {})
        length += len(raw)
    if not lines and path.stat().st_size:
        raise RunError(f"{path}: is not the journal of a comparison; choose another --out")
    return lines, length


def _known(raw: bytes) -> dict[str, Any] | None:
    """Return a line that was written to its end, or None."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and "kind" in line and raw.endswith(b"\n")
    return line if whole else None


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, without opening it for more.

    Raises:
        RunError: If it cannot be read or is no journal.
    """
    try:
        lines, _ = _whole_lines(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    if not lines or lines[0]["kind"] != "settings":
        raise RunError(f"{path}: is not the journal of a comparison")
    return lines


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the lines of a kind, in order."""
    return [line for line in lines if line["kind"] == kind]


def plan_of(lines: list[dict[str, Any]]) -> Plan | None:
    """Return the last plan among the lines."""
    plans = of_kind(lines, "plan")
    if not plans:
        return None
    fields = {k: v for k, v in plans[-1].items() if k != "kind"}
    return Plan(**fields | {name: tuple(fields[name]) for name in ("notes", "rates")})


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
