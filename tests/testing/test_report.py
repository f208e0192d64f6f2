"""The report as a table and as plain values."""

from __future__ import annotations

import json
import math

from gammabeta.testing import Report, Result

REPORT = Report(
    "my.Norm",
    [
        Result("output is right", "passed", error=1e-7),
        Result("state is kept", "failed", "y is wrong | by inf", math.inf, "(2, 1) float32"),
        Result("bias=False", "not applicable", "it takes no `bias` argument"),
    ],
)


def test_a_report_fails_if_one_behaviour_does():
    assert not REPORT.passed
    assert [result.name for result in REPORT.failures] == ["state is kept"]
    assert Report("my.Norm", [REPORT.results[0], REPORT.results[2]]).passed


def test_the_table_aligns_its_columns_and_escapes_bars():
    assert str(REPORT).splitlines() == [
        "|   | behaviour       | error | detail |",
        "| - | --------------- | ----- | ------ |",
        "| ✓ | output is right | 1e-07 |        |",
        "| ✗ | state is kept   | inf   | y is wrong \\| by inf [(2, 1) float32] |",
        "| – | bias=False      |       | it takes no `bias` argument |",
    ]


def test_the_summary_counts_each_status():
    assert REPORT.summary() == "my.Norm: 1 passed, 1 failed, 1 not applicable"


def test_the_dictionary_is_strict_json():
    document = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert document["class"] == "my.Norm"
    assert document["results"][1] == {
        "name": "state is kept",
        "status": "failed",
        "reason": "y is wrong | by inf",
        "error": None,
        "input": "(2, 1) float32",
    }
