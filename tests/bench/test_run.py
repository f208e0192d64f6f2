"""The whole bench on tiny shapes: complete rows, right ratios, and who is left out is told."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from gammabeta import GammabetaError, runtime
from gammabeta.bench import run, subjects
from gammabeta.bench.jobs import Settings, blocks_of, plan
from gammabeta.bench.measure import Samples
from gammabeta.bench.models import build
from gammabeta.bench.report import FLOORS, Report, make_rows, noise
from gammabeta.bench.subjects import EAGER_LAST, EAGER_NCHW, OURS
from training_helpers import one_thread

TINY = {"batch_size": 2, "image_size": 8, "rounds": 2}


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Copy little for the bandwidth, and give threads back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "copy_bandwidth", lambda: 2e9)
        yield
    one_thread()


def machine():
    return runtime.Runtime(1, "cpu", "fp32", "as asked", "left alone")


@pytest.fixture(scope="module")
def report():
    settings = Settings(
        **TINY, precisions=("fp32", "bf16"), compile_model=False, compile_blocks=False
    )
    return run.bench(settings, machine())


def test_every_piece_of_work_has_a_row_for_every_subject_and_the_floor(report):
    blocks = ["block (2, 64, 8, 8)", "block (2, 128, 4, 4)", "block (2, 256, 2, 2)"]
    works = [*(("block", block) for block in blocks), ("step", "training step of net")]
    expected = [
        (what, precision, subject)
        for precision in ("fp32", "bf16")
        for kind, what in works
        for subject in (EAGER_NCHW, EAGER_LAST, OURS, FLOORS[kind])
    ]
    assert [(row.what, row.precision, row.subject) for row in report.rows] == expected
    assert {row.rounds for row in report.rows} == {2}
    assert all(row.milliseconds_min <= row.milliseconds <= row.milliseconds_max
               for row in report.rows)  # fmt: skip


def test_a_row_compared_with_itself_is_one(report):
    for row in report.rows:
        if row.subject == EAGER_NCHW:
            assert row.speedup_over_eager_nchw == row.memory_of_eager_nchw == 1
        if row.subject == EAGER_LAST:
            assert row.speedup_over_eager_channels_last == row.memory_of_eager_channels_last == 1
        assert (row.times_floor == 1) == row.is_floor
        assert (row.peak_mb is None) == row.is_floor


def test_the_document_is_json_with_machine_and_settings(report):
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(document["rows"]) == len(report.rows)
    assert document["copy_gb_per_second"] == 2.0
    assert (document["model"], document["batch_size"], document["image_size"]) == ("net", 2, 8)
    assert {"cpu", "threads", "torch", "allocator", "notes"} < set(document)


def test_the_summary_says_how_a_step_of_ours_compares(report):
    lines = report.summary()
    assert [line.partition(":")[0] for line in lines] == [
        "training step of net, fp32",
        "training step of net, bf16",
    ]


def test_ratios_are_those_of_the_rounds():
    timed = {
        EAGER_NCHW: Samples((4.0, 8.0, 4.0)),
        EAGER_LAST: Samples((2.0, 6.0, 2.0)),
        OURS: Samples((1.0, 1.0, 2.0)),
        FLOORS["step"]: Samples((0.5, 0.5, 0.5)),
    }
    peaks = {EAGER_NCHW: 40_000_000, EAGER_LAST: 20_000_000, OURS: 10_000_000}
    rows = {row.subject: row for row in make_rows("step", "a step", "fp32", timed, peaks)}
    ours = rows[OURS]
    assert (ours.milliseconds, ours.milliseconds_min, ours.milliseconds_max) == (1000, 1000, 2000)
    assert ours.speedup_over_eager_nchw == 4.0  # of 4, 8 and 2
    assert ours.speedup_over_eager_channels_last == 2.0  # of 2, 6 and 1
    assert ours.times_floor == 2.0
    assert (ours.peak_mb, ours.memory_of_eager_nchw) == (10.0, 0.25)
    assert ours.memory_of_eager_channels_last == 0.5
    assert rows[FLOORS["step"]].peak_mb is None
    summary = Report([*rows.values()], [], {}).summary()
    assert summary == [
        "a step, fp32: gammabeta takes 2.00 times as many steps as eager channels-last, 4.00 "
        "times as many as eager NCHW, with 50 % of the memory"
    ]


@pytest.mark.parametrize(("slowest", "noisy"), [(1.05, False), (2.0, True)])
def test_what_varied_much_is_named(slowest, noisy):
    timed = {name: Samples((1.0, 1.0, 1.0)) for name in (EAGER_NCHW, EAGER_LAST, FLOORS["step"])}
    timed[OURS] = Samples((1.0, 1.0, slowest, slowest))
    timed = {name: Samples(s.seconds[:1] * 4) if name != OURS else s for name, s in timed.items()}
    rows = make_rows("step", "a step", "fp32", timed, dict.fromkeys(timed, 1))
    said = noise(rows)
    assert bool(said) == noisy
    assert all("a step, fp32, gammabeta varied" in note for note in said)


def test_progress_names_the_work_and_rises_to_the_end():
    told = []
    settings = Settings(**TINY, compile_model=False, compile_blocks=False)
    run.bench(settings, machine(), lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert any(what == "training step of net, fp32: preparing gammabeta" for what, _ in told)


def test_time_that_is_used_up_leaves_the_least_number_of_rounds():
    settings = Settings(batch_size=2, image_size=8, seconds=0.0, compile_model=False,
                        compile_blocks=False)  # fmt: skip
    assert {row.rounds for row in run.bench(settings, machine()).rows} == {3}


@pytest.mark.skipif(subjects.compiler() is None, reason="no C++ compiler")
def test_a_compiler_that_fails_leaves_its_subject_out_with_the_reason(monkeypatch):
    def fails(model):
        raise RuntimeError("g++: internal error\nand much more")

    monkeypatch.setattr(subjects, "inductor", fails)
    report = run.bench(Settings(**TINY), machine())
    assert "torch.compile channels-last is left out: g++: internal error" in report.notes
    assert not any("compile" in row.subject for row in report.rows)


def test_without_a_compiler_it_is_left_out_with_a_note(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    jobs, notes = plan(Settings(**TINY))
    assert not any(subject.compiled for job in jobs for subject in job.subjects)
    assert "no C++ compiler" in notes[0]


@pytest.mark.skipif(subjects.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("model", "asked", "in_step"),
    [("net", None, True), ("net", False, False), ("torchvision:resnet18", None, False),
     ("torchvision:resnet18", True, True)],
)  # fmt: skip
def test_whole_models_are_compiled_when_that_is_quick_or_asked_for(model, asked, in_step):
    pytest.importorskip("torchvision")
    settings = Settings(model, batch_size=2, image_size=32, compile_model=asked)
    jobs, notes = plan(settings)
    compiled = {job.kind: any(s.compiled for s in job.subjects) for job in jobs}
    assert compiled == {"block": True, "step": in_step}
    assert bool(notes) == (model != "net" and asked is None)


def test_the_blocks_are_the_largest_inputs_of_batch_norms():
    pytest.importorskip("torchvision")
    model = build("torchvision:resnet18", 64)
    blocks = blocks_of(model, torch.randn(2, 3, 64, 64))
    assert [block.shape for block in blocks] == [(2, 64, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    assert {block.pool for block in blocks} == {None}


def test_a_model_without_batch_norm_has_a_step_and_a_note():
    pytest.importorskip("torchvision")
    jobs, notes = plan(Settings("torchvision:squeezenet1_1", batch_size=2, image_size=32))
    assert [job.kind for job in jobs] == ["step"]
    assert any("no two-dimensional batch norm" in note for note in notes)


def test_short_memory_is_explained(monkeypatch):
    def fails(*args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB")

    monkeypatch.setattr(run, "run_job", fails)
    with pytest.raises(GammabetaError, match="no memory for net at --batch-size 2 --image-size 8"):
        run.bench(Settings(**TINY), machine())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1, but must be at least 2"),
        ({"rounds": 0}, "rounds is 0"),
        ({"image_size": -8}, "image_size is -8"),
        ({"precisions": ("fp16",)}, "precision is 'fp16'"),
    ],
)
def test_a_number_out_of_range_is_refused(given, message):
    with pytest.raises(GammabetaError, match=message):
        Settings(**given)


def test_no_two_subjects_have_the_same_name():
    pairs = itertools.combinations(subjects.SUBJECTS, 2)
    assert all(first.name != second.name for first, second in pairs)
