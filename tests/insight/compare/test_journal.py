"""The journal: nothing finished is lost, nothing else is believed."""

from __future__ import annotations

import json
import math

import pytest

from compare_helpers import fixed_plan, held, made_up, tiny_settings
from gammabeta.errors import RunError
from gammabeta.insight.compare import Comparison
from gammabeta.insight.compare.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "compare.jsonl"


def opened(path, **changes):
    return Journal(path, tiny_settings(**changes).identity(held()), {"torch": "x"})


def test_what_was_kept_is_there_again(path):
    settings = tiny_settings()
    first = opened(path)
    first.keep_plan(fixed_plan(settings))
    record = made_up().records[0]
    first.keep_line(record)
    first.close()
    again = opened(path)
    assert again.plan == fixed_plan(settings)
    assert again.records == [record]
    assert len(again.done) == 1
    again.close()


@pytest.mark.parametrize("torn", ['{"kind": "job", "sta', '{"kind": "job"}', "\x00\x00"])
def test_a_line_cut_off_by_a_crash_is_dropped(path, torn):
    opened(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    journal = opened(path)
    assert journal.records == []
    journal.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["settings", "session", "session"]


def two_trainings(path):
    first = opened(path)
    first.keep_plan(fixed_plan(tiny_settings()))
    for record in made_up().records[:2]:
        first.keep_line(record)
    first.close()
    return path.read_text().splitlines()


def test_a_damaged_line_in_the_middle_costs_nothing_that_follows_it(path):
    lines = two_trainings(path)
    lines[3] = lines[3][:50] + "\x00" + lines[3][51:]
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"compare\.jsonl: line 4: is damaged"):
        opened(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "change", "reason"),
    [
        (1, {"seeds": 1.5}, "seeds is 1.5"), (1, {"rates": [1, "x"]}, "rates.1 is 'x'"),
        (1, {"image_size": 2**30 + 1}, "image_size is"), (1, {"classes": -1}, "classes is -1"),
        (1, {"variants": [["bn"]]}, "variants.0 is"), (1, {"budget": math.nan}, "budget is nan"),
        (2, {"began": 3}, "began is 3"), (3, {"workers": 2**40}, "workers is"),
        (3, {"threads": "2"}, "threads is '2'"), (3, {"pace": math.inf}, "pace is inf"),
        (3, {"strange": 1}, "strange is unknown"), (4, {"lr": "0.1"}, "lr is '0.1'"),
        (4, {"points": [{}]}, "points.0.step is missing"), (4, {"test": 3}, "test is 3"),
        (4, {"stage": "other"}, "stage is 'other'"), (4, {"loss": [None, "x"]}, "loss.1"),
        (4, {"kind": "other"}, "tag 'other'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_line_with_other_values_than_ours_is_refused_by_number(number, change, reason, path):
    lines = two_trainings(path)
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | change)
    path.write_text("\n".join(lines) + "\n")
    for read in (opened, Comparison.read):
        with pytest.raises(
            RunError, match=rf"jsonl: line {number}: is damaged .*{reason}"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_other_settings_are_refused_with_the_difference(path):
    opened(path).close()
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"begun under other settings .seeds was 2, is 3.*another"):
        opened(path, seeds=3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["hello\n", '{"loss": 1}\n', "[1]\n", '{"kind": "job"}\n'])
def test_another_file_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(RunError, match="is not the journal of a comparison"):
        opened(path)
    with pytest.raises(RunError, match="is not the journal of a comparison"):
        Comparison.read(path)
    assert path.read_text() == content


def test_a_second_writer_is_refused(path):
    first = opened(path)
    with pytest.raises(RunError, match="another comparison is writing into it"):
        opened(path)
    first.close()
    opened(path).close()


def test_a_missing_journal_cannot_be_read(tmp_path):
    with pytest.raises(RunError, match="cannot be read: No such file"):
        Comparison.read(tmp_path / "none.jsonl")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        opened(tmp_path / "file" / "compare.jsonl")
