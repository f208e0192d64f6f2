"""``gammabeta compare``: page, JSON and journal side by side, refusals in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from compare_helpers import finished
from training_helpers import PROGRAM, call, environment, run_program


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.getbasetemp())


def same(whole, tmp_path, monkeypatch):
    """A folder with the finished journal, and the words that ask for the same comparison."""
    from compare_helpers import digits
    from gammabeta.insight.compare import comparison

    monkeypatch.setattr(comparison, "load", lambda *_, **__: digits())  # without augmentation
    shutil.copy(whole[0], tmp_path / "page.jsonl")
    return [
        "compare", "--data", "digits", "--image-size", "8", "--seeds", "2", "--budget", "5",
        "--rates", "0.003,0.03,0.3", "--batch-size", "64", "--precision", "fp32",
        "--out", tmp_path / "page.html",
    ]  # fmt: skip


def test_page_and_json_lie_beside_the_journal(whole, tmp_path, capsys, monkeypatch):
    words = same(whole, tmp_path, monkeypatch)
    answer = call(capsys, *words, "--lang", "zh")
    assert answer.code == 0, answer
    assert '<html lang="zh-CN"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert len(document["trainings"]) == 54
    for claim in document["claims"]:
        assert claim["verdict"] in answer.out
    assert "54 trainings, all that was planned" in answer.out


def test_json_is_one_document(whole, tmp_path, capsys, monkeypatch):
    answer = call(capsys, *same(whole, tmp_path, monkeypatch), "--json")
    assert answer.document["settings"]["seeds"] == 2
    assert answer.document == json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))


def test_the_locale_chooses_the_language(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    call(capsys, *same(whole, tmp_path, monkeypatch))
    assert '<html lang="zh-CN"' in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variants", "bn,layernorm"], "variants are bn, layernorm, but must be two or more of"),
        (["--rates", "0.1,fast"], "rates is '0.1,fast', but must be numbers"),
        (["--lang", "fr"], "lang is 'fr', but must be en or zh"),
        (["--out", "page.pdf"], "out is page.pdf, but the page's name must end in .html"),
        (["--budget", "-1"], "budget is -1 minutes, but must be above 0"),
        (["--budget", "0"], "budget is 0 minutes, but must be above 0"),
        (["--budget", "nan"], "budget is nan minutes, but must be above 0"),
        (["--budget", "inf"], "budget is inf minutes, but must be above 0"),
        (["--rates", ""], "rates is '', but must be numbers"),
        (["--data", "nowhere"], "'nowhere' is no data set"),
    ],
)
def test_wrong_words_end_with_status_2_and_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = call(capsys, "compare", "--data", "digits", *words)
    assert message in answer.error
    assert list(tmp_path.iterdir()) == []


def test_other_settings_do_not_continue_a_journal(whole, tmp_path, capsys, monkeypatch):
    words = same(whole, tmp_path, monkeypatch)
    answer = call(capsys, *words, "--seed", "7")
    assert "begun under other settings (seed was 0, is 7)" in answer.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl_c", "a hang-up"])
def test_a_terminals_signal_keeps_what_is_done_and_writes_the_page(number, tmp_path):
    words = ["compare", "--data", "digits", "--image-size", "8", "--budget", "10", "--lang", "en"]
    words += ["--variants", "bn,none", "--out", "p.html"]
    program = subprocess.Popen(
        [*PROGRAM, *words], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_a_training(tmp_path / "p.jsonl", program)
        os.killpg(program.pid, number)  # as a terminal does: to the workers too
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "then it was stopped; the same command goes on" in out
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "It was stopped before everything planned was done" in page
    assert json.loads((tmp_path / "p.json").read_text())["ended_by"] == "signal"


def wait_for_a_training(journal, program):
    end = time.monotonic() + 300
    while not (journal.exists() and '"job"' in journal.read_text()):
        assert time.monotonic() < end, "no training was finished"
        assert program.poll() is None, program.communicate()
        time.sleep(0.1)


def test_help_is_complete(tmp_path):
    out = run_program("compare", "--help", cwd=tmp_path).out
    for word in ("--budget", "--seeds", "--variants", "--rates", "--lang", "--out", "--json"):
        assert word in out
