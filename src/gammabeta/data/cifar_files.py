"""The six files of CIFAR-10, in the two forms that its authors publish, as arrays.

Binary files hold records of one label byte and 3072 pixel bytes; Python files are pickled dicts of
the same numbers. Either way a pixel is stored as (channel, row, column), and one transposing copy
into the split's own array is all the memory that reading takes beside the file at hand.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gammabeta.data.dataset import Split
from gammabeta.data.unpickle import load_arrays
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Bytes = npt.NDArray[np.uint8]
PIXELS = 3 * 32 * 32
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
TRAIN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
TEST = ("test_batch",)


@dataclass(frozen=True)
class Form:
    """One of the two published forms.

    Args:
        title: What the form is called in a sentence.
        folder: The official folder's name.
        archive: The official archive's name.
        md5: The MD5 of the official archive, as published.
        suffix: What follows a batch's name in its file's name.
        read: Reads one file of so many images: pixels uint8 (N, 3072) and labels (N,).
    """

    title: str
    folder: str
    archive: str
    md5: str
    suffix: str
    read: Callable[[Path, int], tuple[Bytes, npt.NDArray[np.integer]]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the six files."""
        return tuple(name + self.suffix for name in (*TRAIN, *TEST))


def read_binary(path: Path, count: int) -> tuple[Bytes, npt.NDArray[np.integer]]:
    """Read a file of ``count`` records of 3073 bytes.

    Raises:
        DataError: If the file is longer or shorter.
    """
    expected = count * (1 + PIXELS)
    data = np.fromfile(path, np.uint8, count=expected + 1)
    if len(data) != expected:
        raise _damaged(path, f"{expected} bytes", path.stat().st_size)
    records = data.reshape(count, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def read_python(path: Path, count: int) -> tuple[Bytes, npt.NDArray[np.integer]]:
    """Read a pickled dict of ``b"data"``, uint8 (count, 3072), and ``b"labels"``, ints.

    Raises:
        DataError: If the file holds anything else, or more than data.
    """
    content = load_arrays(path)
    data, labels = content.get(b"data"), content.get(b"labels")
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise _damaged(path, "an array b'data' and a list b'labels'", f"the keys {[*content]}")
    if data.shape != (count, PIXELS) or len(labels) != count:
        expected = f"data of shape {(count, PIXELS)} and {count} labels"
        raise _damaged(path, expected, f"{data.shape} and {len(labels)}")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise _damaged(path, "integer labels from 0 to 9", "others")
    return data, np.array(labels, np.int64)


BINARY = Form(
    title="binary",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    suffix=".bin",
    read=read_binary,
)
PYTHON = Form(
    title="Python",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    suffix="",
    read=read_python,
)


def read_split(folder: Path, form: Form, batches: tuple[str, ...], count: int) -> Split:
    """Read some of the six files, one after the other, into one split.

    Args:
        folder: Where the files are.
        form: Their form.
        batches: Their names without suffix, in order.
        count: Images in each file; 10,000 in the official ones.

    Returns:
        Images (len(batches) * count, 32, 32, 3) and their labels, in the files' order.

    Raises:
        DataError: If a file is damaged; the message tells what it should hold and what it does.
        OSError: If a file cannot be read.
    """
    images = np.empty((len(batches), count, 32, 32, 3), np.uint8)
    labels = np.empty((len(batches), count), np.int64)
    for i, batch in enumerate(batches):
        path = folder / (batch + form.suffix)
        pixels, labels[i] = form.read(path, count)
        if (worst := labels[i].max()) >= len(CLASSES):
            raise _damaged(path, "labels from 0 to 9", f"{worst} at image {labels[i].argmax()}")
        images[i] = pixels.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(images.reshape(-1, 32, 32, 3), labels.reshape(-1))


def _damaged(path: Path, expected: str, found: object) -> DataError:
    return DataError(
        f"{path}: expected {expected}, found {found}; "
        "replace it by the official file, or delete its folder to get all files anew"
    )
