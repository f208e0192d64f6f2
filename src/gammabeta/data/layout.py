"""Decide which image of a folder goes to which split, before any is decoded.

A folder that holds ``train/`` and ``test/`` has decided itself. Any other folder of classes is
split here, each image by a hash of its own name: whatever files come, go or are renamed, no other
image changes sides. A run keeps the names that it was trained and measured on, and gets them back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gammabeta.data.dataset import MEASURES, Files, Split
from gammabeta.data.image import FORMAT_NAMES, printable
from gammabeta.data.splits import NAMED, Sides, choose_sides, has_sides
from gammabeta.data.tree import holds_images, images_by_class, relative_name, subfolders
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

HELD_OUT_SHARE = 5
"""One image in so many is kept for testing."""
LISTED = 20
_SPLITS = (*MEASURES[1:], *NAMED)


@dataclass(frozen=True, eq=False)
class Plan:
    """The files in decoding order, ``train_count`` training files first, with labels alike.

    ``drawn`` tells that the split was made here and not by the folder.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[Path]
    labels: npt.NDArray[np.int64]
    train_count: int
    notes: tuple[str, ...]
    drawn: bool = False

    def split(self, kept: npt.NDArray[np.bool_], images: npt.NDArray[np.uint8]) -> list[Split]:
        """Cut the kept images into training and test split, without copying them."""
        border = int(kept[: self.train_count].sum())
        labels = self.labels[kept]
        return [Split(images[:border], labels[:border]), Split(images[border:], labels[border:])]

    def kept_files(self, kept: npt.NDArray[np.bool_]) -> Files:
        """Name the kept images of each split."""
        names = [relative_name(path, self.root) for path in self.files]
        chosen = [name for name, keep in zip(names, kept, strict=True) if keep]
        border = int(kept[: self.train_count].sum())
        return Files(tuple(chosen[:border]), tuple(chosen[border:]), drawn=self.drawn)


def held_out(names: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """Tell which images of one class are kept for testing, each by its own name.

    An image's side follows from the SHA-256 of seed and name. Only where that would leave the
    class without a test or without a training image is the nearest one moved.

    Args:
        names: Names of the class's images; at least two.
        seed: Another seed is another split.

    Example:
        >>> int(held_out([f"cat/{i}.png" for i in range(1000)], seed=0).sum())
        195
    """
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in names]
    position = np.array([int.from_bytes(digest) for digest in digests], np.uint64)
    held = position < np.uint64(2**64 // HELD_OUT_SHARE)
    if not held.any():
        held[position.argmin()] = True
    if held.all():
        held[position.argmax()] = False
    return held


def plan_splits(
    root: Path, seed: int, files: Files | None = None, measure: str | None = None
) -> Plan:
    """Choose the layout by the names of the subfolders.

    Args:
        root: The folder of pictures.
        seed: Seed of the split, where the folder does not make one itself.
        files: The images that a run began with, to be used again in their order.
        measure: Plan only what is to be measured, as the test split; see ``load_folder``.

    Raises:
        DataError: If the folder is not laid out as a data set; see ``load_folder``.
    """
    root, notes = _unwrapped(root)
    if measure not in (None, *MEASURES, *NAMED):
        raise DataError(f"split is {measure!r}, but must be one of {', '.join(_SPLITS)}")
    sides = choose_sides(root, measure)
    if sides is None and measure in NAMED:
        raise DataError(f"{printable(root)} has no split {measure!r}, nor any other of its own")
    if sides is None and files is None and measure in ("own", "all"):
        plan = _plan_whole(root)
    else:
        plan = _plan_one_tree(root, seed) if sides is None else _plan_two_trees(root, sides)
        plan = plan if files is None else _as_before(plan, files)
        plan = plan if measure is None else _only(plan, measure)
    return replace(plan, notes=(*notes, *plan.notes))


def _plan_whole(root: Path) -> Plan:
    """Take all images of a tree of classes for the test split."""
    classes, ignored = images_by_class(root)
    files, labels = _flatten(classes)
    note = (
        f"the folder has no split of its own, so all of its {len(files)} images are measured; if "
        "the model was trained on it, --split test keeps to those that training left out"
    )
    return Plan(root, tuple(classes), files, labels, 0, (note, *_ignored_note(ignored)))


def _only(plan: Plan, measure: str) -> Plan:
    """Leave the images to be measured, on the test side."""
    border = plan.train_count
    part = {"train": slice(border), "all": slice(None)}.get(measure, slice(border, None))
    return replace(plan, files=plan.files[part], labels=plan.labels[part], train_count=0)


def known_images(root: Path, files: Files) -> tuple[int, bool]:
    """Return how many of a run's training images a folder has by name, and whether it has all.

    All are found in the run's own folder that was moved; some in one that shares images with it.

    Raises:
        DataError: If the folder is not laid out as a data set.
    """
    plan = plan_splits(root, 0, measure="all")
    names = {relative_name(path, plan.root) for path in plan.files}
    return len(names.intersection(files.train)), names.issuperset((*files.train, *files.test))


def _unwrapped(root: Path) -> tuple[Path, tuple[str, ...]]:
    """Step into ``photos/photos/``, or into the only folder if that one holds the splits."""
    inside = subfolders(root)
    if len(inside) != 1 or holds_images(root) or has_sides(root):
        return root, ()
    (name, only) = next(iter(inside.items()))
    same = name.casefold() == root.resolve().name.casefold() and len(subfolders(only)) > 1
    if not (same or has_sides(only)):
        return root, ()
    return only, (f"{printable(only)} is read, the only folder in {printable(root)}",)


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
    held = [held_out([relative_name(p, root) for p in of], seed) for of in classes.values()]
    test = np.concatenate(held)
    order = np.concatenate([np.flatnonzero(~test), np.flatnonzero(test)])
    note = (
        f"the folder has no test split, so {test.sum()} of {len(files)} images were drawn for it, "
        f"one in five by a hash of its name with seed {seed}, and {(~test).sum()} are left for "
        "training"
    )
    return Plan(
        root,
        tuple(classes),
        [files[index] for index in order],
        labels[order],
        int((~test).sum()),
        (note, *_ignored_note(ignored)),
        drawn=True,
    )


def _plan_two_trees(root: Path, sides: Sides) -> Plan:
    """Take the folder's own split, whose sides must have the same classes."""
    (train, train_ignored), (test, test_ignored) = map(images_by_class, (sides.train, sides.test))
    _check_same_classes(root, sides, set(train), set(test))
    (train_files, train_labels), (test_files, test_labels) = _flatten(train), _flatten(test)
    return Plan(
        root,
        tuple(train),
        train_files + test_files,
        np.concatenate([train_labels, test_labels]),
        len(train_files),
        (*sides.notes, *_ignored_note(train_ignored + test_ignored)),
    )


def _check_same_classes(root: Path, sides: Sides, train: set[str], test: set[str]) -> None:
    missing = [f"{sides.train.name}/{printable(name)}" for name in sorted(test - train)]
    missing += [f"{sides.test.name}/{printable(name)}" for name in sorted(train - test)]
    if missing:
        raise DataError(
            f"the splits of {printable(root)} differ in their classes: {', '.join(missing)} "
            f"missing; add these folders or remove the other side's"
        )


def _as_before(plan: Plan, files: Files) -> Plan:
    """Return the images that a run began with, on their sides and in their order."""
    index = {relative_name(path, plan.root): i for i, path in enumerate(plan.files)}
    train, test = ([index[n] for n in part if n in index] for part in (files.train, files.test))
    before = {*files.train, *files.test}
    new = [name for name in index if name not in before]
    gone = [name for name in before if name not in index]
    if not train or not test:
        raise DataError(
            f"{printable(plan.root)} no longer has the images that the run was trained and "
            f"measured on, such as {printable(min(before))}; give the folder that has them"
        )
    known = np.unique(plan.labels[train + test])
    notes = list(
        _moved_note(new, "images are not among those that the run began with and are not used")
    )
    notes += _moved_note(gone, "of the images that the run began with are gone")
    return replace(
        plan,
        classes=tuple(plan.classes[label] for label in known),
        files=[plan.files[i] for i in train + test],
        labels=np.searchsorted(known, plan.labels[train + test]).astype(np.int64),
        train_count=len(train),
        notes=(*notes, *(() if plan.drawn else plan.notes)),
        drawn=files.drawn,
    )


def _moved_note(names: list[str], what: str) -> tuple[str, ...]:
    if not names:
        return ()
    listed = ", ".join(map(printable, sorted(names)[:LISTED]))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (f"{len(names)} {what}: {listed}{more}",)


def _flatten(classes: dict[str, list[Path]]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """List all files, class by class, with the index of their class."""
    counts = [len(files) for files in classes.values()]
    files = [path for of_class in classes.values() for path in of_class]
    return files, np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _ignored_note(ignored: Counter[str]) -> tuple[str, ...]:
    if not ignored:
        return ()
    kinds = ", ".join(f"{printable(ending)} {n}" for ending, n in ignored.most_common(5))
    return (
        f"{ignored.total()} files ignored ({kinds}): not {FORMAT_NAMES}, or outside the class "
        "folders",
    )
