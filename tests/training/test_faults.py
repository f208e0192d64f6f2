"""No damage goes unnoticed, and no kill at any file operation costs more than its epoch."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gammabeta.cli.target import open_target
from gammabeta.errors import RunError
from gammabeta.training.checkpoint import save_model
from gammabeta.training.run import Run
from gammabeta.training.trainer import Trainer
from training_helpers import environment, make_run, small, start, untimed

FLIPS = 150
STRIDE = 3
"""File operations between two kills; at 1 every one is met."""
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("finished") / "run", small(), epochs=2, batch_size=8,
                   lr=0.05)  # fmt: skip
    trainer, metrics = start(run, small())
    trainer.fit([metrics])
    return run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def flips(path, count, seed):
    """Flip a bit at random places over the whole file, one at a time."""
    noise, size = random.Random(seed), path.stat().st_size
    edges = [*range(120), *range(size - 120, size)]
    for position in edges + [noise.randrange(size) for _ in range(count)]:
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ (1 << noise.randrange(8))]))
            file.flush()
            yield position
            file.seek(position)
            file.write(bytes([byte]))


def refusal(act):
    with pytest.raises(RunError) as error:
        act()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_no_flipped_bit_of_a_state_is_resumed_or_served(run):
    for position in flips(run.state, FLIPS, seed=0):
        said = refusal(run.load_model)
        assert "state.pt: is " in said, position
    for _ in flips(run.state, 10, seed=1):
        said = refusal(lambda: Trainer(run, small(), resume=True))
        assert "state.pt: is " in said
    assert f"cp {run.previous} {run.state}" in said


def test_no_flipped_bit_of_a_model_is_served(run):
    for position in flips(run.model, FLIPS, seed=2):
        assert "model.safetensors: is " in refusal(run.load_model), position
    run.state.unlink()
    for position in flips(run.model, FLIPS, seed=3):
        assert "model.safetensors: is " in refusal(run.load_model), position


def test_no_flipped_bit_of_a_configuration_is_believed(run):
    file = run.path / "config.json"
    whole, noise = file.read_bytes(), random.Random(4)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << noise.randrange(8)
        file.write_bytes(damaged)
        said = refusal(lambda: Run.open(run.path))
        assert said.startswith(f"{file}: is damaged"), position


def test_explain_refuses_a_damaged_or_an_older_model_as_the_others_do(run):
    for path in (run.state, run.model):
        whole = path.read_bytes()
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        assert f"{path.name}: is " in refusal(lambda: open_target(str(run.path)))
        path.write_bytes(whole)
    save_model(run.model, run.build_model(), step=6)
    assert "is of step 6, but state.pt of step 12" in refusal(lambda: open_target(str(run.path)))


def test_a_zeroed_page_is_never_used(run):
    for path in (run.state, run.model):
        whole, noise = path.read_bytes(), random.Random(5)
        for _ in range(20):
            begin = noise.randrange(len(whole) - 4096)
            path.write_bytes(whole[:begin] + bytes(4096) + whole[begin + 4096 :])
            refusal(run.load_model)
        path.write_bytes(whole)
    run.load_model()


def test_a_damaged_state_goes_back_to_the_checkpoint_before_it_as_the_message_says(run, finished):
    with run.state.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    said = refusal(lambda: Trainer(run, small(), resume=True))
    command = said.split("`")[1]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert "--resume" in refusal(run.load_model), "its model is of the epoch after it"
    trainer, metrics = start(run, small(), resume=True)
    assert trainer.position.epoch == 1
    trainer.fit([metrics])
    assert run.model.read_bytes() == finished.model.read_bytes()
    assert untimed(run.metrics) == untimed(finished.metrics)


def test_a_damaged_model_is_written_anew_from_the_state(run, finished):
    run.model.write_bytes(run.model.read_bytes()[:-100] + bytes(100))
    assert f"--resume {run.path}` writes it anew" in refusal(run.load_model)
    start(run, small(), resume=True)
    assert run.model.read_bytes() == finished.model.read_bytes()


def test_a_model_of_an_earlier_epoch_is_never_served(run, finished, tmp_path):
    shutil.copytree(run.path, tmp_path / "early")
    early = Run.open(tmp_path / "early")
    shutil.copyfile(early.previous, early.state)
    early.model.unlink()
    start(early, small(), resume=True)
    shutil.copyfile(early.model, run.model)
    assert "is of step 6, but state.pt of step 12" in refusal(run.load_model)
    run.metrics.unlink()
    trainer, _ = start(run, small(), resume=True)
    assert trainer.complete
    assert run.model.read_bytes() == finished.model.read_bytes()
    assert untimed(run.metrics) == untimed(finished.metrics)
    run.load_model()


def test_a_configuration_changed_by_hand_says_how_it_would_stand(run):
    file = run.path / "config.json"
    config = json.loads(file.read_text())
    config["threads"] = 2
    file.write_text(json.dumps(config, indent=2))
    assert 'the field "sha256" is taken out' in refusal(lambda: Run.open(run.path))
    del config["sha256"]
    file.write_text(json.dumps(config, indent=2))
    assert Run.open(run.path).config.threads == 2


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """What happened at every point of a training at which it was killed."""
    folder = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, TESTS / "kill_driver.py", folder, str(STRIDE)], capture_output=True,
        text=True, env=environment(PYTHONWARNINGS="default"), timeout=300, check=True,
    )  # fmt: skip
    return folder, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_training_killed_before_any_file_operation_goes_on_to_the_same_bits(kills):
    folder, points, errors = kills
    whole = Run.open(folder / "whole")
    assert len(points) > 40 // STRIDE, errors
    for at in points:
        run = Run(folder / str(at["point"]), whole.config)
        assert (at["killed"], at["code"]) == (-signal.SIGKILL, 0), (at, errors)
        assert at["leftovers"] == [], at
        assert at["files"] == ["config.json", "curves.png", "metrics.jsonl", "model.safetensors",
                               "previous.pt", "state.pt"], at  # fmt: skip
        assert run.model.read_bytes() == whole.model.read_bytes(), at
        assert untimed(run.metrics) == untimed(whole.metrics), at


def test_a_killed_training_serves_its_last_checkpoint_or_says_what_to_do(kills):
    _, points, _ = kills
    served = {at["served"] for at in points}
    assert "older" not in served
    assert {"no run", "last"} < served
    rest = served - {"no run", "last"}
    assert rest, "some point lies between the state and the model"
    assert all("gammabeta train --resume" in said for said in rest), rest
