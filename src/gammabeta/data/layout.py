"""Decide which image of a folder goes to which split, before any is decoded.

A folder that holds ``train/`` and ``test/`` has decided itself; any other folder of classes is
split here, by a seed, so that every class is on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gammabeta.data.dataset import Split
from gammabeta.data.image import FORMAT_NAMES, printable
from gammabeta.data.tree import images_by_class, subfolders
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

TRAIN_NAME = "train"
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Plan:
    """The files in decoding order, ``train_count`` training files first, with labels alike."""

    root: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: npt.NDArray[np.int64]
    train_count: int
    notes: tuple[str, ...]

    def split(self, kept: npt.NDArray[np.bool_], images: npt.NDArray[np.uint8]) -> list[Split]:
        """Cut the kept images into training and test split, without copying them."""
        border = int(kept[: self.train_count].sum())
        labels = self.labels[kept]
        return [Split(images[:border], labels[:border]), Split(images[border:], labels[border:])]


def stratified_split(
    labels: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw one index in five of every class for testing, and at least one.

    Args:
        labels: int64, (N,); every class needs at least two entries.
        seed: Seed of a private generator.

    Returns:
        The training and the test indices, sorted; together each of ``range(N)`` once.

    Example:
        >>> train, test = stratified_split(np.repeat([0, 1], [5, 10]), seed=0)
        >>> len(train), len(test)
        (12, 3)
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[rng.permutation(members)[: max(1, round(len(members) / 5))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def plan_splits(root: Path, seed: int) -> Plan:
    """Choose the layout by the names of the subfolders.

    Args:
        root: The folder of pictures.
        seed: Seed of the split, where the folder does not make one itself.

    Raises:
        DataError: If the folder is not laid out as a data set; see ``load_folder``.
    """
    folders = {name.lower(): name for name in subfolders(root)}
    tests = [name for name in TEST_NAMES if name in folders]
    if set(folders) == {TRAIN_NAME}:
        raise DataError(
            f"{printable(root)} has train/ but no test/ beside it; add one, or give the train "
            f"folder itself to have it split"
        )
    if TRAIN_NAME not in folders or not tests:
        return _plan_one_tree(root, seed)
    train, test = folders.pop(TRAIN_NAME), folders.pop(tests[0])
    return _plan_two_trees(root, (train, test), list(folders.values()))


def _plan_one_tree(root: Path, seed: int) -> Plan:
    """Split one tree of classes."""
    classes, ignored = images_by_class(root)
    single = [printable(name) for name, files in classes.items() if len(files) == 1]
    if single:
        raise DataError(
            f"a single image in class {', '.join(single)} of {printable(root)} cannot be split; "
            f"add images, or make train/ and test/ folders"
        )
    files, labels = _flatten(classes)
    train, test = stratified_split(labels, seed)
    order = np.concatenate([train, test])
    note = (
        f"the folder has no test split, so {len(test)} of {len(files)} images were drawn for it, "
        f"class by class with seed {seed}, and {len(train)} are left for training"
    )
    in_order = [files[index] for index in order]
    notes = (note, *_ignored_note(ignored))
    return Plan(root, tuple(classes), in_order, labels[order], len(train), notes)


def _plan_two_trees(root: Path, names: tuple[str, str], unused: list[str]) -> Plan:
    """Take the folder's own split, whose sides must have the same classes."""
    (train, train_ignored), (test, test_ignored) = (images_by_class(root / side) for side in names)
    _check_same_classes(root, names, set(train), set(test))
    (train_files, train_labels), (test_files, test_labels) = _flatten(train), _flatten(test)
    notes = [f"{names[1]}/ is used as the test split"] if names[1].lower() != "test" else []
    notes += [f"{', '.join(map(printable, unused))} beside the splits not used"] if unused else []
    return Plan(
        root,
        tuple(train),
        train_files + test_files,
        np.concatenate([train_labels, test_labels]),
        len(train_files),
        (*notes, *_ignored_note(train_ignored + test_ignored)),
    )


def _check_same_classes(
    root: Path, names: tuple[str, str], train: set[str], test: set[str]
) -> None:
    missing = [f"{names[0]}/{printable(name)}" for name in sorted(test - train)]
    missing += [f"{names[1]}/{printable(name)}" for name in sorted(train - test)]
    if missing:
        raise DataError(
            f"the splits of {printable(root)} differ in their classes: {', '.join(missing)} "
            f"missing; add these folders or remove the other side's"
        )


def _flatten(classes: dict[str, list[Path]]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """List all files, class by class, with the index of their class."""
    counts = [len(files) for files in classes.values()]
    files = [path for of_class in classes.values() for path in of_class]
    return files, np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _ignored_note(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (f"{count} files ignored: not {FORMAT_NAMES}, or outside the class folders",)
