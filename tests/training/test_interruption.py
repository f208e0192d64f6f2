"""Real processes that are stopped, killed or run out of disk: nothing is lost, nothing twice."""

from __future__ import annotations

import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from training_helpers import PROGRAM, environment, leftovers, run_program, untimed

TRAIN = ("train", "--data", "digits", "--image-size", "8", "--epochs", "5", "--batch-size", "64",
         "--threads", "1", "--precision", "fp32")  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    done = run_program(*TRAIN, "--out", "run", cwd=folder)
    assert (done.code, done.err) == (0, "")
    return folder / "run"


def assert_same(run, unbroken):
    for name in ("model.safetensors", "config.json"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()
    assert untimed(run / "metrics.jsonl") == untimed(unbroken / "metrics.jsonl")
    assert leftovers(run) == []


class Training:
    """A training in its own process; its lines are read as they come."""

    def __init__(self, cwd, out):
        self.process = subprocess.Popen(
            [*PROGRAM, *TRAIN, "--out", out], cwd=cwd, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.out = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def until(self, words):
        for line in self.process.stdout:
            self.out += line
            if words in line:
                return
        pytest.fail(f"no {words!r} in: {self.out}\n{self.process.stderr.read()}")

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Return the exit status, all of stdout and all of stderr."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, self.out + out, err


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "SIGTERM", "a terminal that closes"],
)
def test_a_stopped_training_prints_the_command_that_continues_it(
    number, status, unbroken, tmp_path
):
    out = "my [run] of $HOME"  # the printed command must survive a shell and the console's markup
    with Training(tmp_path, out) as training:
        training.until("epoch 2/5")
        training.signal(number)
        code, said, errors = training.end()
    assert (code, errors) == (status, "")
    last = said.splitlines()[-1]
    assert re.match(r"stopped after step \d+ of 115, saved; continue with: ", last)
    command = last.split("continue with: ")[1]
    done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environment(), text=True,
                          capture_output=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, (command, done.stderr)
    assert_same(tmp_path / out, unbroken)


@pytest.mark.parametrize("moment", ["training", "after an epoch"])
def test_a_killed_training_goes_on_from_its_last_checkpoint(moment, unbroken, tmp_path):
    with Training(tmp_path, "run") as training:
        training.until("epoch 3/5")
        time.sleep(0.12 if moment == "training" else 0)
        training.process.kill()
        assert training.end()[0] == -signal.SIGKILL
    done = run_program("train", "--resume", "run", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for temporary in (tmp_path / "run").glob(
        ".*"
    ):  # a kill may leave one, SIGKILL cannot be caught
        temporary.unlink()
    assert_same(tmp_path / "run", unbroken)


def test_a_hang_up_that_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for its child
    try:
        training = Training(tmp_path, "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    with training:
        training.until("epoch 2/5")
        training.signal(signal.SIGHUP)
        code, said, errors = training.end()
    assert (code, errors) == (0, "")
    assert "epoch 5/5" in said


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with Training(tmp_path, "run") as training:
        training.until("epoch 2/5")
        training.signal(signal.SIGINT)
        time.sleep(0.005)  # long enough to be writing the checkpoint by now
        training.signal(signal.SIGINT)
        began = time.monotonic()
        code, _, errors = training.end()
    assert (code, "cannot be written" in errors) == (130, False), errors
    assert time.monotonic() - began < 5
    assert "Traceback" not in errors
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]["step"] >= 23


def test_ctrl_c_on_a_terminal_stops_and_the_bar_shows_the_numbers(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        variables = environment(TERM="xterm", COLUMNS="150", LINES="40")
        os.execve(sys.executable, [*PROGRAM, *TRAIN, "--out", "run"], variables)  # noqa: S606
    seen, status = b"", None
    watchdog = threading.Timer(90, os.kill, (pid, signal.SIGKILL))
    watchdog.start()
    try:
        while part := read(terminal):
            seen += part
            if status is None and b"epoch 3/5" in seen:
                os.write(terminal, b"\x03")
                status = "asked"
        _, ended = os.waitpid(pid, 0)
    finally:
        watchdog.cancel()
        os.close(terminal)
    text = seen.decode()
    assert os.waitstatus_to_exitcode(ended) == 130, text
    assert re.search(r"loss \d\.\d{3}  acc \d+\.\d %  lr 0\.\d{4}  [\d,]+ images/s", text)
    assert "continue with: " in text
    assert "Traceback" not in text
    done = run_program("train", "--resume", "run", cwd=tmp_path)
    assert done.code == 0


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side has closed
        return b""


def assert_last_checkpoint_is_whole(done, run):
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    assert line.startswith(f"gammabeta: error: {run.name}/state.pt: cannot be written (")
    state = torch.load(run / "state.pt", weights_only=True)
    assert state["position"]["step"] == 0
    assert leftovers(run) == []
    return line


def test_a_checkpoint_that_cannot_be_written_keeps_the_one_before(tmp_path):
    # The first state has no momentum (2.6 MB); that after an epoch has (5.2 MB).
    limit = 4_000_000
    done = run_program(
        *TRAIN, "--out", "run", cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    line = assert_last_checkpoint_is_whole(done, tmp_path / "run")
    assert "(File too large)" in line
    assert run_program("train", "--resume", "run", cwd=tmp_path).code == 0


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    copy = "cp -r run ../kept"
    script = f"mount -t tmpfs -o size=8m disk {disk} && cd {disk} && " + shlex.join(
        [*PROGRAM, *TRAIN, "--out", "run"]
    )
    done = subprocess.run(
        ["/usr/bin/env", "unshare", "-rm", "sh", "-c", f"{script}; code=$?; {copy}; exit $code"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if not (tmp_path / "kept").exists():
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert "(No space left on device)" in done.stderr
    (tmp_path / "kept").rename(tmp_path / "run")
    assert_last_checkpoint_is_whole(
        type("Done", (), {"code": done.returncode, "err": done.stderr}), tmp_path / "run"
    )
