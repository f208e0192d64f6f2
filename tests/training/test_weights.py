"""Weights are found in whatever people save, run no code, and say how they do not fit."""

from __future__ import annotations

import argparse
import collections
import copy
import os
import pickle
import random
import re
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gammabeta import Net
from gammabeta.errors import RunError
from gammabeta.training.checkpoint import save_model, save_state
from gammabeta.training.weights import apply_weights, load_into, load_weights


@pytest.fixture(scope="module")
def net():
    return Net(10, 8)


def refusal(act, *args):
    with pytest.raises(RunError) as error:
        act(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_pickled_module_is_refused_with_what_to_do(net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    assert "state_dict" in refusal(load_weights, tmp_path / "whole.pt")


def garbage():
    """Bytes of many kinds: noise, zips, damaged pickles of the old format."""
    noise = random.Random(0)
    yield from (noise.randbytes(n) for n in (1, 2, 3, 8, 64, 1000))
    yield from (b"PK\x03\x04" + noise.randbytes(60), b"\x80\x02" + noise.randbytes(30), b"{}")
    yield from (b"\x80\x02" + bytes([code]) + b"." for code in range(256))
    good = pickle.dumps({"w": [1.5, "x", None]}, protocol=2)
    for _ in range(300):
        damaged = bytearray(good)
        damaged[noise.randrange(2, len(good))] = noise.randrange(256)
        yield bytes(damaged)


def test_any_garbage_is_refused_with_the_file_named(tmp_path):
    path = tmp_path / "weights.pth"
    for content in garbage():
        path.write_bytes(content)
        assert str(path) in refusal(load_weights, path), content


def test_a_safetensors_file_of_garbage_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    for content in (b"", b"x", b"\xff" * 16, (9).to_bytes(8, "little") + b"{broken}}"):
        path.write_bytes(content)
        assert refusal(load_weights, path).startswith(f"{path}: is ")


def test_a_cut_off_safetensors_file_is_refused(net, tmp_path):
    path = tmp_path / "m.safetensors"
    for save, says in (
        (save_model, "is damaged"),
        (save_file_of, "is not a whole safetensors file"),
    ):
        save(path, net)
        path.write_bytes(path.read_bytes()[:-4])
        assert says in refusal(load_weights, path)


def save_file_of(path, model):
    """Save as others do, without a checksum."""
    save_file(model.state_dict(), path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_a_missing_file_and_a_folder_are_refused(kind, name, tmp_path):
    if kind == "folder":
        (tmp_path / name).mkdir()
    message = refusal(load_weights, tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert ("no such file" in message) is (kind == "absent")


def plus(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def apart(weights):
    """The same names with other numbers, as an average of weights has."""
    return {key: value + 1 for key, value in weights.items()}


def loaded(path, like, **options):
    """A model of the file's weights, and the notes."""
    model = Net(10, 8)
    notes = load_into(model, path, **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, like[key].to(value.dtype)), key
    return notes


LEFT_OUT = "the prefix {!r} of its keys is left out"
ALSO = "{!r} is used; {!r} would fit as well"
ROUNDED = "float16 weights are used as float32"
WRAPPED = {
    "plain": (lambda w: w, []),
    "state_dict": (lambda w: {"epoch": 3, "state_dict": w, "optimizer": {"lr": 0.1}}, []),
    "net": (lambda w: {"net": w, "acc": 91.5, "epoch": 3}, []),
    "an average beside it": (
        lambda w: {**w, "ema": apart(w)}, [ALSO.format("the outermost", "ema")]
    ),
    "deep": (lambda w: {"checkpoint": {"weights": {"ema": w}}}, []),
    "module.": (lambda w: plus("module.", w), [LEFT_OUT.format("module.")]),
    "compiled": (lambda w: plus("_orig_mod.", w), [LEFT_OUT.format("_orig_mod.")]),
    "a name of one's own": (
        lambda w: {"model": plus("backbone.0.", w)}, [LEFT_OUT.format("backbone.0.")]
    ),
    "compiled in part": (
        lambda w: {k.replace("conv1.", "conv1._orig_mod."): v for k, v in w.items()}, []
    ),
    "Lightning": (
        lambda w: {"state_dict": {**plus("model.", w), "loss.weight": torch.ones(2)}, "epoch": 1},
        [LEFT_OUT.format("model."), "loss.weight beside them is not used"],
    ),
    "averaged": (
        lambda w: {"n_averaged": torch.tensor(3), **plus("module.", w)},
        [LEFT_OUT.format("module."), "n_averaged beside them is not used"],
    ),
    "beside an average": (
        lambda w: {"state_dict": w, "state_dict_ema": apart(w)},
        [ALSO.format("state_dict", "state_dict_ema")],
    ),
    "teacher and student": (
        lambda w: {**plus("student.", w), **plus("teacher.", apart(w))},
        [LEFT_OUT.format("student."), ALSO.format("student", "teacher")],
    ),
    "half": (lambda w: {k: v.half() for k, v in w.items()}, [ROUNDED]),
    "counters averaged": (lambda w: {k: v.float() for k, v in w.items()}, []),
    "with what people keep": (
        lambda w: {"state_dict": w, "args": argparse.Namespace(lr=0.1, names=["a"]),
                   "best": np.float64(91.5), "curve": np.ones(3), "out": Path("runs"),
                   "seen": collections.defaultdict(list, {"a": [1]})}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrap", "legacy"), [*((w, False) for w in WRAPPED), ("plain", True), ("Lightning", True)]
)
def test_weights_are_found_however_people_saved_them(wrap, legacy, net, tmp_path):
    make, notes = WRAPPED[wrap]
    weights = net.state_dict()
    torch.save(make(weights), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    like = {k: v.half() for k, v in weights.items()} if wrap == "half" else weights
    assert loaded(tmp_path / "w.pth", like) == notes


def test_an_averaged_model_of_torch_is_read(net, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(net)
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    assert "n_averaged beside them is not used" in loaded(tmp_path / "swa.pth", net.state_dict())


@pytest.mark.parametrize(("name", "save"), [("a.pth", save_file), ("a.safetensors", torch.save)])
def test_the_content_decides_and_not_the_name(name, save, net, tmp_path):
    save(net.state_dict(), tmp_path / name)
    assert loaded(tmp_path / name, net.state_dict()) == []


def test_the_state_of_a_training_is_read(net, tmp_path):
    save_state(tmp_path / "state.pt", {"model": net.state_dict(), "random": torch.get_rng_state()})
    assert loaded(tmp_path / "state.pt", net.state_dict()) == []


def test_a_file_of_another_network_is_answered_with_its_keys(net, tmp_path):
    torch.save({f"layer{i}.0.weight": torch.ones(1) for i in range(7)}, tmp_path / "w.pth")
    assert refusal(load_into, net, tmp_path / "w.pth").endswith(
        "w.pth: has no entry of Net; expected conv1.weight, conv1.bias and so on, found "
        "layer0.0.weight, layer1.0.weight, layer2.0.weight, layer3.0.weight and 3 more"
    )


def test_names_in_a_file_cannot_break_the_line_or_fill_the_screen(net, tmp_path):
    torch.save({"a\nb\x1b[31m" + 10_000 * "c": torch.ones(1)}, tmp_path / "w.pth")
    message = refusal(load_into, net, tmp_path / "w.pth")
    assert "\x1b" not in message
    assert len(message) < 400 + len(str(tmp_path))


def nested(weight):
    return torch.nested.nested_tensor([weight[0], weight[0, :3]])


ODD = {
    "sparse": (lambda w: w.to_sparse(), "is sparse, which is not read"),
    "csr": (lambda w: w.to_sparse_csr(), "is sparse, which is not read"),
    "quantised": (
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "is quantised, which is not"
    ),
    "nested": (nested, "is a nested tensor, which is not read"),
    "meta": (lambda w: w.to("meta"), "is without data (meta), which is not read"),
    "complex": (lambda w: w.to(torch.complex64), "is complex64, expected float32"),
    "int": (lambda w: w.to(torch.int32), "is int32, expected float32"),
    "bool": (lambda w: w > 0, "is bool, expected float32"),
    "huge": (
        lambda w: w[:1, :1].expand(2**30, 2**30),
        "has shape (1073741824, 1073741824), expected (10, 1024)",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_is_no_plain_array_of_floats_is_refused_by_name(kind, net, tmp_path):
    change, reason = ODD[kind]
    weights = net.state_dict()
    torch.save({**weights, "fc2.weight": change(weights["fc2.weight"])}, tmp_path / "w.pth")
    message = refusal(load_into, Net(10, 8), tmp_path / "w.pth")
    assert f"w.pth: does not fit Net: fc2.weight {reason}" in message


def test_dictionaries_that_repeat_each_other_are_looked_at_once(net, tmp_path):
    repeated = {"a": torch.ones(1)}
    for _ in range(3):
        repeated = {f"{i}": repeated for i in range(3000)}
    torch.save(repeated, tmp_path / "w.pth")  # 27,000 million ways lead to the tensor
    assert "has no entry of Net" in refusal(load_into, net, tmp_path / "w.pth")


def test_a_small_file_of_a_huge_pickle_is_refused(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as good:
        records = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in records.items():
            bomb.writestr(name, content + bytes(2**27) if "data.pkl" in name else content)
    assert (tmp_path / "bomb.pth").stat().st_size < 3 * 2**20
    message = refusal(load_into, net, tmp_path / "bomb.pth")
    assert "its pickle has more than 67,108,864 bytes" in message


def header(content, tail=b""):
    return len(content).to_bytes(8, "little") + content + tail


def test_a_huge_header_of_keys_is_refused_before_it_is_parsed(net, tmp_path):
    path = tmp_path / "keys.safetensors"
    with path.open("wb") as file:
        file.write((99 * 10**6).to_bytes(8, "little") + b"{")
        file.truncate(99 * 10**6 + 8)
    assert "keys.safetensors: has a safetensors header of 99 MB" in refusal(load_into, net, path)


@pytest.mark.parametrize(
    "content",
    [header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
     header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', b"1234"),
     header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', b"1234"),
     (2**63 + 9).to_bytes(8, "little") + b"{}"],
    ids=["no data", "huge shape", "unknown type", "huge header"],
)  # fmt: skip
def test_a_safetensors_file_that_lies_is_refused(content, net, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    assert str(tmp_path / "a.pth") in refusal(load_into, net, tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_would_block_or_never_end_is_refused(kind, net, tmp_path):
    path = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    what = "a folder" if kind == "folder" else "a pipe or a device"
    assert refusal(load_into, net, path) == f"{path}: is {what}, but a file of weights was expected"


def test_a_folder_is_answered_with_the_file_in_it(net, tmp_path):
    (tmp_path / "a.txt").touch()
    save_model(tmp_path / "model.safetensors", net)
    message = refusal(load_into, net, tmp_path)
    assert message.endswith(f"was expected, such as {tmp_path / 'model.safetensors'}")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["own class", "model", "TorchScript", "cut off", "legacy"])
def test_no_answer_tells_to_run_the_files_code(kind, net, tmp_path):
    path = tmp_path / "w.pth"
    if kind == "TorchScript":
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    else:
        content = {"model": net, "own class": {"state_dict": net.state_dict(), "x": Fraction(1, 2)}}
        torch.save(content.get(kind, {"x": Fraction(1)}), path,
                   _use_new_zipfile_serialization=kind != "legacy")  # fmt: skip
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-30])
    message = refusal(load_into, net, path)
    assert not re.search("weights_only|allowlist|safe_globals|github|File a bug", message)
    says = {"own class": "names fractions.Fraction", "model": "names gammabeta.models.Net",
            "legacy": "names fractions.Fraction", "TorchScript": "is a TorchScript program",
            "cut off": "is damaged, cut off"}  # fmt: skip
    assert says[kind] in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["conv2.weight", "bn1.running_mean", "bn4.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name(key, value, net, tmp_path):
    weights = {name: v.clone() for name, v in net.state_dict().items()}
    weights[key].view(-1)[:3] = value
    torch.save(weights, tmp_path / "w.pth")
    message = refusal(load_into, Net(10, 8), tmp_path / "w.pth")
    size = weights[key].numel()
    assert f"w.pth: {key} is NaN or infinite in 3 of {size} values" in message
    assert ("recalibrate" in message) is ("running" in key)
    if "running" in key:
        model = Net(10, 8)
        load_into(model, tmp_path / "w.pth", broken_statistics=True)
        torch.testing.assert_close(model.state_dict()[key], weights[key], equal_nan=True)


def test_a_number_that_is_too_large_for_the_model_is_not_finite(net, tmp_path):
    weights = {**net.state_dict(), "fc2.bias": torch.full((10,), 1e300, dtype=torch.float64)}
    torch.save(weights, tmp_path / "w.pth")
    assert "fc2.bias is NaN or infinite in 10 of 10" in refusal(load_into, net, tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [{}, {"a": 1}, {"state_dict": {}}, [torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}],
    ids=["empty", "no tensors", "empty state_dict", "list", "tensor", "numbered"],
)  # fmt: skip
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in refusal(load_weights, tmp_path / "w.pth")


def test_every_misfit_is_named_and_nothing_is_loaded(net):
    model = copy.deepcopy(net)
    weights = {k: v + 1 for k, v in net.state_dict().items() if k != "bn2.bias"}
    weights |= {"head.weight": torch.zeros(1), "fc2.weight": torch.zeros(7, 1024)}
    message = refusal(apply_weights, model, weights, Path("x.pth"))
    assert message == (
        "x.pth: does not fit Net: bn2.bias is missing; head.weight is unknown; "
        "fc2.weight has shape (7, 1024), expected (10, 1024)"
    )
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_long_list_of_misfits_is_cut_and_counted(net):
    strange = {f"layer{i}": torch.ones(1) for i in range(9)} | {"fc2.bias": torch.ones(3)}
    message = refusal(apply_weights, net, strange, Path("x.pth"))
    assert message.count("is missing") == message.count("is unknown") == 4
    assert "fc2.bias has shape (3,), expected (10,)" in message
    assert message.endswith(f"; and {len(net.state_dict()) - 4 - 1 + 9 + 1 - 9} more")


def test_a_checkpoint_older_than_num_batches_tracked_is_accepted(net):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    old = {k: v + 1 for k, v in model.state_dict().items() if "num_batches" not in k}
    apply_weights(model, old, Path("x.pth"))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in old.items())
