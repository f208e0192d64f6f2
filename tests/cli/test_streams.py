"""Standard output that is full, closed, cut off or of a small alphabet costs nobody a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gammabeta.cli import streams
from training_helpers import PROGRAM, call, environment, make_run, run_program, small, start

QUICK = ("train", "--data", "digits", "--image-size", "8", "--epochs", "2", "--batch-size", "64",
         "--threads", "1", "--precision", "fp32", "--out", "run")  # fmt: skip
CLOSED_PIPE = 128 + signal.SIGPIPE
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def redirected(redirection, *words, cwd, **variables):
    """Run the program under a shell's redirection; what is left of its output is captured."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM, *map(str, words)],
        cwd=cwd, env=environment(**variables), capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def cut_off(*words, cwd, stream="stdout", lines=1):
    """Run the program, read some lines of one stream, and close the reading end of its pipe."""
    other = "stderr" if stream == "stdout" else "stdout"
    program = subprocess.Popen(
        [*PROGRAM, *map(str, words)], cwd=cwd, env=environment(),
        **{stream: subprocess.PIPE, other: subprocess.PIPE},
    )  # fmt: skip
    with program:
        pipe = getattr(program, stream)
        read = [pipe.readline() for _ in range(lines)]
        pipe.close()
        rest = getattr(program, other).read()
        return program.wait(timeout=120), b"".join(read), rest


@pytest.fixture
def run(tmp_path):
    dataset = small()
    made = make_run(tmp_path / "run", dataset, epochs=1, batch_size=22)
    trainer, metrics = start(made, dataset)
    trainer.fit([metrics])
    return made


@pytest.mark.parametrize(
    ("redirection", "warned"),
    [("> /dev/full", True), ("> /dev/full 2>&1", False), ("<&- >&- 2>&-", False)],
)
def test_a_training_that_cannot_be_heard_is_done_all_the_same(redirection, warned, tmp_path):
    done = redirected(redirection, *QUICK, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    said = [s for s in done.stderr.decode().splitlines() if not s.startswith("compiled ")]
    if warned:
        (line,) = said
        assert line.startswith("gammabeta: warning: standard output cannot be written (No space ")
    else:
        assert said == []
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(r["kind"] == "epoch" for r in records) == 2
    assert (run / "curves.png").exists()
    assert run_program("evaluate", "run", cwd=tmp_path).code == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_training_whose_reader_leaves_saves_and_ends_quietly(stream, tmp_path):
    words = [*QUICK, "--epochs", "200"] + (["--json"] if stream == "stderr" else [])
    code, read, rest = cut_off(*words, cwd=tmp_path, stream=stream, lines=4)
    assert read.count(b"\n") == 4
    assert (code, rest) == (CLOSED_PIPE, b"")
    state = (tmp_path / "run" / "state.pt").stat().st_mtime_ns
    model = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    curves = (tmp_path / "run" / "curves.png").stat().st_mtime_ns
    assert state <= model <= curves
    resumed, line, _ = cut_off("train", "--resume", "run", cwd=tmp_path, lines=1)
    assert (resumed, line.startswith(b"1437 training")) == (CLOSED_PIPE, True)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["evaluate", "run", "--json"], ["conformance", "gammabeta:BatchNorm1d"]],
    ids=" ".join,
)
def test_an_answer_that_cannot_be_given_is_an_error_in_one_line(words, run, tmp_path):
    done = redirected("> /dev/full", *words, cwd=tmp_path)
    said = [s for s in done.stderr.decode().splitlines() if s.startswith("gammabeta: ")]
    (line,) = said
    assert line.startswith("gammabeta: warning: standard output cannot be written (No space left")
    assert "Traceback" not in done.stderr.decode()
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "run"]], ids=" ".join)
def test_an_answer_that_nobody_reads_ends_quietly(words, run, tmp_path):
    code, _, rest = cut_off(*words, cwd=tmp_path, lines=0)
    assert (code, rest) == (CLOSED_PIPE, b"")


SMALL_ALPHABETS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "strict ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("variables", SMALL_ALPHABETS.values(), ids=SMALL_ALPHABETS)
def test_what_an_encoding_lacks_is_written_in_other_characters(variables, tmp_path):
    done = redirected("", "conformance", "torch.nn:BatchNorm2d", cwd=tmp_path, **variables)
    assert (done.returncode, done.stderr) == (1, b"")
    assert {b"ok", b"FAILED"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", b"caf\xe9-\xce\xb3 "),
        ("ascii", b"caf\xe9-gamma "),
        ("cp1252", b"caf\xe9-gamma "),
    ],
)
def test_a_path_with_characters_that_no_encoding_has_is_printed(encoding, written, tmp_path):
    with (tmp_path / "out").open("wb", buffering=0) as raw:
        stream = streams.wrap(raw, "standard output", encoding)
        stream.write(os.fsdecode(b"caf\xe9-\xce\xb3 "))
        stream.flush()
    assert (tmp_path / "out").read_bytes() == written


def test_a_reader_that_is_slow_gets_everything(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb", buffering=0) as raw:
        stream = streams.wrap(raw, "standard output", "utf-8")
        lines = [f"γ {number}\n" for number in range(40_000)]
        got = []

        def read_late():
            time.sleep(0.2)
            while part := reader.read1(1000):
                got.append(part)

        thread = threading.Thread(target=read_late)
        thread.start()
        for line in lines:
            stream.write(line)
        stream.flush()
        raw.close()
        thread.join()
    assert b"".join(got).decode() == "".join(lines)


def test_inside_another_program_its_streams_stay_its_own(capsys):
    import sys

    before = sys.stdout, sys.stderr
    assert call(capsys, "--version").code == 0
    assert (sys.stdout, sys.stderr) == before


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_numbers(run, capsys):
    (run.path / "confusion.png").mkdir()
    answer = call(capsys, "evaluate", run.path, "--json")
    assert (answer.code, answer.document["total"]) == (0, 30 * 12)
    assert "gammabeta: warning: without the confusion matrix's picture: " in answer.err
    assert "confusion.png" in answer.err
    asked = call(capsys, "evaluate", run.path, "--confusion", run.path / "confusion.png")
    assert "confusion.png: cannot be written" in asked.error
    assert "Accuracy of" in asked.out


def test_curves_and_events_that_cannot_be_written_do_not_cost_a_training(capsys, tmp_path):
    from gammabeta.data import load

    run = make_run(tmp_path / "run", load("digits", image_size=8), epochs=1, batch_size=512)
    run.curves.mkdir()
    run.tensorboard.write_text("in the way")
    answer = call(capsys, "train", "--resume", run.path, "--tensorboard", "--json")
    assert (answer.code, answer.document["total"]) == (0, 360)
    warnings = [s for s in answer.err.splitlines() if s.startswith("gammabeta: warning: ")]
    assert [w.split(":")[2] for w in warnings] == [
        " without TensorBoard's events", " without the curves"
    ]  # fmt: skip


def test_events_that_fail_on_the_way_are_given_up_with_one_warning(capsys):
    from gammabeta.cli.console import SideListener

    seen = []

    def disk_full(event):
        seen.append(event)
        raise OSError(28, "No space left on device")

    listener = SideListener("TensorBoard's events", lambda: disk_full)
    listener(1)
    listener(2)
    assert seen == [1]
    assert capsys.readouterr().err.count("No space left on device") == 1
