"""Batches: their values, their order, and that nothing but (seed, epoch, index) decides them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torchvision import transforms

from gammabeta.data.dataset import Augmentation, Normalization, Split
from gammabeta.data.loader import Loader, one_ahead
from gammabeta.errors import DataError

SCALE = Normalization((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))


def split(count, size=8):
    """Random images whose label is their own index."""
    images = np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Split(images, np.arange(count))


def by_index(loader, epoch):
    """Return each image's pixels under its index, whatever batch it came in."""
    return {
        int(label): image
        for images, labels in loader.epoch(epoch)
        for image, label in zip(images, labels, strict=True)
    }


def test_scaling_equals_torchvisions_to_the_bit():
    data = split(7)
    to_tensor = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(SCALE.mean, SCALE.std)]
    )
    images, _ = next(Loader(data, 7, SCALE).epoch(0))
    assert torch.equal(images, torch.stack([to_tensor(image) for image in data.images]))


def test_batches_are_channels_last_float32():
    images, labels = next(Loader(split(6), 4, SCALE, Augmentation()).epoch(0))
    assert (images.shape, images.dtype) == ((4, 3, 8, 8), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)


def test_an_epoch_serves_every_image_once_in_an_order_of_its_own():
    loader = Loader(split(50), 8, SCALE, Augmentation())
    orders = [torch.cat([labels for _, labels in loader.epoch(e)]).tolist() for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1] != list(range(50))


def test_without_augmentation_images_come_as_they_are_and_in_order():
    labels = torch.cat([labels for _, labels in Loader(split(10), 4, SCALE).epoch(3)])
    assert labels.tolist() == list(range(10))


@pytest.mark.parametrize("batch_size", [2, 5, 40])
def test_an_images_pixels_depend_on_seed_epoch_and_index_alone(batch_size):
    want = by_index(Loader(split(40), 8, SCALE, Augmentation(), seed=3), 5)
    got = by_index(Loader(split(40), batch_size, SCALE, Augmentation(), seed=3), 5)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[i], got[i]) for i in want)


@pytest.mark.parametrize(("seed", "epoch"), [(4, 5), (3, 6)], ids=["other seed", "other epoch"])
def test_another_seed_or_epoch_augments_otherwise(seed, epoch):
    want = by_index(Loader(split(40), 8, SCALE, Augmentation(), seed=3), 5)
    got = by_index(Loader(split(40), 8, SCALE, Augmentation(), seed=seed), epoch)
    assert sum(torch.equal(want[i], got[i]) for i in want) < 10


def test_epochs_read_at_once_by_several_threads_are_the_same():
    loader = Loader(split(300), 16, SCALE, Augmentation())
    want = by_index(loader, 2)
    read: list[dict[int, torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: read.append(by_index(loader, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 4
    assert all(torch.equal(got[i], want[i]) for got in read for i in want)


@pytest.mark.parametrize("start", [0, 1, 6, 7])
def test_an_epoch_can_be_entered_at_any_batch(start):
    loader = Loader(split(50), 8, SCALE, Augmentation())
    whole = [images for images, _ in loader.epoch(1)]
    rest = [images for images, _ in loader.epoch(1, start)]
    assert len(whole) == len(loader) == 7
    assert len(rest) == 7 - start
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(17, [8, 9]), (16, [8, 8]), (18, [8, 8, 2]), (9, [9]), (5, [5])],
)
def test_in_training_a_single_last_image_joins_the_batch_before_it(count, sizes):
    loader = Loader(split(count), 8, SCALE, Augmentation())
    assert [len(labels) for _, labels in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)


def test_in_measuring_a_single_last_image_is_a_batch():
    assert [len(labels) for _, labels in Loader(split(17), 8, SCALE).epoch(0)] == [8, 8, 1]


def test_the_next_batch_is_made_while_this_one_is_used():
    made = [threading.Event() for _ in range(3)]

    def make(number):
        made[number].set()
        return number

    batches = one_ahead(make, range(3))
    assert next(batches) == 0
    assert made[1].wait(5)
    assert not made[2].wait(0.1), "one ahead, not more"
    batches.close()


def test_a_failure_while_making_a_batch_reaches_the_reader():
    def make(number):
        if number == 1:
            raise DataError("batch 1 is broken")
        return number

    batches = one_ahead(make, range(3))
    assert next(batches) == 0
    with pytest.raises(DataError, match="batch 1 is broken"):
        next(batches)


def test_an_abandoned_epoch_ends_its_thread():
    batches = Loader(split(50), 2, SCALE, Augmentation()).epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("gammabeta-loader")]


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [(split(4), 0, "batch size is 0"), (split(0), 4, "holds no image")],
    ids=["no batch", "no image"],
)
def test_impossible_batches_are_refused(data, batch_size, message):
    with pytest.raises(DataError, match=message):
        Loader(data, batch_size, SCALE)
