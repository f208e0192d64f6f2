"""Bytes in: the file scales them as the loader does, to the same bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploy_helpers import (
    about_digits,
    expected,
    near,
    normalized,
    raw_bytes,
    run_onnx,
    run_pt2,
    trained,
)
from gammabeta.data import Normalization, Split
from gammabeta.data.loader import Loader
from gammabeta.deploy import Metadata, export
from gammabeta.deploy.preprocess import Preprocess

SCALINGS = {
    "halves": Normalization(),
    "ImageNet's": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
EVERY_BYTE = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)


def loaded(normalization):
    split = Split(EVERY_BYTE.copy(), np.zeros(1, np.int64))
    return next(Loader(split, 1, normalization).epoch(0))[0]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_byte_is_scaled_to_the_loaders_bits_in_torch(scaling):
    got = Preprocess(SCALINGS[scaling])(torch.from_numpy(EVERY_BYTE))
    assert torch.equal(got, loaded(SCALINGS[scaling]))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_byte_is_scaled_to_the_loaders_bits_in_the_file(scaling, tmp_path):
    normalization = SCALINGS[scaling]
    done = export(nn.Identity(), tmp_path / "scaling.onnx", torch.from_numpy(EVERY_BYTE),
                  metadata=Metadata(normalization=normalization), with_preprocessing=True,
                  fold=False)  # fmt: skip
    got = run_onnx(done.path, torch.from_numpy(EVERY_BYTE))[0]
    assert np.array_equal(got, loaded(normalization).contiguous().numpy())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_bytes_give_what_scaled_images_give(suffix, tmp_path, tmp_path_factory):
    net = trained(tmp_path_factory.getbasetemp())
    done = export(net, tmp_path / f"net{suffix}", raw_bytes(), metadata=about_digits(),
                  with_preprocessing=True)  # fmt: skip
    run = run_pt2 if suffix == ".pt2" else lambda path, x: run_onnx(path, x)[0]
    for count in (1, 3, 7):
        near(run(done.path, raw_bytes(count)), expected(net, normalized(count)))
    assert done.checked.same == 40
    assert [entry.path for entry in done.fold.done] == ["bn1", "bn2", "bn3", "bn4"]


def test_the_file_says_that_it_takes_bytes(tmp_path, tmp_path_factory):
    net = trained(tmp_path_factory.getbasetemp())
    done = export(net, tmp_path / "net.onnx", raw_bytes(2), metadata=about_digits(),
                  with_preprocessing=True)  # fmt: skip
    proto = onnx.load(done.path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert entries["preprocessing"] == "inside"
    assert (entries["input_type"], entries["layout"]) == ("uint8", "NHWC")
    kind = proto.graph.input[0].type.tensor_type
    assert kind.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in kind.shape.dim] == ["batch", 16, 16, 3]
