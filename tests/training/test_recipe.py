"""A recipe refuses what cannot train, resolves in one order, and gives every step its rate."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gammabeta.errors import GammabetaError
from gammabeta.training.recipe import RECIPES, Recipe, resolve


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 1, "at least 2"),
        ("lr", 0.0, "above 0"),
        ("lr", -0.1, "above 0"),
        ("lr", math.inf, "finite"),
        ("lr", math.nan, "finite"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("momentum", -0.1, r"in \[0, 1\)"),
        ("momentum", 0.0, "nesterov is True, but must be off when momentum is 0"),
        ("weight_decay", -1e-9, "0 or above"),
        ("weight_decay", math.inf, "finite"),
        ("label_smoothing", 1.0, r"in \[0, 1\)"),
        ("warmup", 1.0, r"in \[0, 1\)"),
        ("warmup", math.nan, r"in \[0, 1\)"),
        ("seed", -1, "0 or above"),
        ("seed", 2**63, "below 2\\^63"),
    ],
)
def test_a_number_out_of_range_is_refused_with_value_and_rule(field, value, rule):
    named = "nesterov is True" if "nesterov" in rule else f"{field} is {value}"
    with pytest.raises(GammabetaError, match=rule) as refusal:
        Recipe(**{field: value})
    assert str(refusal.value).startswith(named)


@pytest.mark.parametrize(
    "numbers",
    [{"epochs": 1}, {"batch_size": 2}, {"momentum": 0.0, "nesterov": False}, {"warmup": 0.0},
     {"label_smoothing": 0.999}, {"weight_decay": 0.0}, {"seed": 2**63 - 1}],
    ids=str,
)  # fmt: skip
def test_the_edge_of_each_range_is_allowed(numbers):
    assert dataclasses.asdict(Recipe(**numbers)).items() >= numbers.items()


@given(total=st.integers(1, 2_000), warmup=st.floats(0, 0.999))
def test_the_rate_rises_to_its_peak_and_falls_but_never_to_zero(total, warmup):
    recipe = Recipe(lr=0.3, warmup=warmup)
    rates = [recipe.learning_rate(step, total) for step in range(total)]
    peak = rates.index(max(rates))
    assert min(rates) > 0
    assert max(rates) <= 0.3
    assert max(rates) == pytest.approx(0.3)
    assert abs(peak + 1 - warmup * total) <= 1 + 1e-6
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] <= 0.3 / ((1 - warmup) * total) * 1.000001


def test_the_rate_at_hand_computed_steps():
    recipe = Recipe(lr=1.0, warmup=0.2)
    rates = [recipe.learning_rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_the_tutorials_rate_is_constant():
    assert {RECIPES["tutorial"].learning_rate(s, 78_200) for s in (0, 1, 40_000, 78_199)} == {0.1}


def test_the_tutorials_numbers():
    assert dataclasses.asdict(RECIPES["tutorial"]) == {
        "name": "tutorial", "epochs": 200, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "nesterov": False, "weight_decay": 5e-4, "decay_all": True, "label_smoothing": 0.0,
        "anneal": False, "warmup": 0.2, "seed": 0,
    }  # fmt: skip


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_changes_the_named_recipe_and_explicit_values_change_the_file(toml):
    config = toml('recipe = "tutorial"\nlr = 0.05\nbatch-size = 64\nseed = 3\n')
    recipe = resolve("", config, {"lr": 0.025, "seed": None})
    expected = {"lr": 0.025, "batch_size": 64, "seed": 3}
    assert recipe == dataclasses.replace(RECIPES["tutorial"], **expected)


def test_a_named_recipe_wins_over_the_files(toml):
    assert resolve("anneal", toml('recipe = "tutorial"'), {}) == RECIPES["anneal"]


@pytest.mark.parametrize("name", ["anneal", "tutorial"])
def test_a_recipe_without_changes_is_the_named_one(name):
    assert resolve(name, None, {"epochs": None}) == RECIPES[name]


def test_momentum_zero_turns_nesterov_off_unless_asked_for(toml):
    assert not resolve("", None, {"momentum": 0.0}).nesterov
    with pytest.raises(GammabetaError, match="nesterov"):
        resolve("", toml("nesterov = true"), {"momentum": 0.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnrate = 1", "my.toml: unknown key 'learnrate'; known are"),
        ("epoch = 3", "my.toml: unknown key 'epoch'; did you mean epochs"),
        ("weight-decai = 0.1", "did you mean weight_decay"),
        ("name = 'x'", "my.toml: unknown key 'name'"),
        ("epochs = 3.0", "my.toml: epochs is 3.0, but must be of type int"),
        ("epochs = true", "my.toml: epochs is True, but must be of type int"),
        ("lr = '0.1'", "my.toml: lr is '0.1', but must be of type float"),
        ("lr = false", "my.toml: lr is False, but must be of type float"),
        ("nesterov = 1", "my.toml: nesterov is 1, but must be of type bool"),
        ("lr = ", "my.toml: is not TOML"),
        ("recipe = 'annael'", "recipe is 'annael', but must be anneal or tutorial"),
        ("lr = -1.0", r"lr is -1\.0, but must be above 0"),
        ("[train]\nlr = 0.1", "my.toml: unknown key 'train'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(toml, text, message):
    with pytest.raises(GammabetaError, match=message) as refusal:
        resolve("", toml(text), {})
    assert "\n" not in str(refusal.value)


def test_a_whole_number_may_stand_for_a_real_one(toml):
    assert resolve("", toml("lr = 1"), {}).lr == 1


def test_missing_and_binary_files_are_refused_by_name(toml, tmp_path):
    with pytest.raises(GammabetaError, match=r"absent\.toml: cannot be read: No such file"):
        resolve("", tmp_path / "absent.toml", {})
    path = toml("")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GammabetaError, match=r"my\.toml: is not TOML"):
        resolve("", path, {})
