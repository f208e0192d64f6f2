"""Tell by their names which folders are a data set's splits, and refuse to guess where in doubt.

``Training/`` and ``validation_set/`` are splits, whatever their spelling; taken for classes they
would train a model of two classes without a word. ``train/`` beside ``car/`` and ``bus/`` is a
class. What could be either is an error that asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gammabeta.data.image import printable
from gammabeta.data.tree import holds_images, subfolders
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = "train"
HELD_OUT = ("test", "val", "dev", "eval")
"""Kinds of split to measure with; the first that has labels is used."""

NAMED = HELD_OUT[1:]
"""What ``--split`` may name beside train, test and all."""

WORDS = {
    TRAIN: ("train", "trains", "training", "trn", "训练", "训练集"),
    "test": ("test", "tests", "testing", "tst", "测试", "测试集"),
    "val": ("val", "vali", "valid", "validate", "validating", "validation", "验证", "验证集"),
    "dev": ("dev", "development"),
    "eval": ("eval", "evaluate", "evaluating", "evaluation"),
}
FILLERS = (
    *("set", "sets", "split", "splits", "subset", "data", "dataset", "folder", "samples"),
    *("examples", "image", "images", "img", "imgs", "photos", "pictures", "x"),
)
DOUBTFUL = (
    *("fold", "part", "split", "set", "subset", "batch", "learn", "learning", "check", "holdout"),
    *("seen", "unseen", "query", "gallery", "labeled", "labelled", "unlabeled", "unlabelled"),
)
"""Words of splits that nobody can put in order; only an error if the folders look alike inside."""

_KIND_OF = {word + end: k for k, words in WORDS.items() for word in words for end in ("", *FILLERS)}


@dataclass(frozen=True)
class SplitName:
    """What a folder's name says: its kind of split, and the words that say something else."""

    kind: str
    rest: tuple[str, ...]


@dataclass(frozen=True)
class Sides:
    """The folders to train and to measure with, the others, and what to tell about them."""

    train: Path
    test: Path
    notes: tuple[str, ...]


def split_name(name: str) -> SplitName | None:
    """Read a folder's name as a split's, in any case and with the usual additions.

    Example:
        >>> split_name("Training_Set"), split_name("cat")
        (SplitName(kind='train', rest=()), None)
        >>> split_name("val2017")
        SplitName(kind='val', rest=('2017',))
    """
    words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    words = [word.casefold() for word in words]
    kinds = [_KIND_OF[word] for word in words if word in _KIND_OF]
    if len(kinds) != 1:
        return None
    rest = [word for word in words if word not in _KIND_OF and word not in FILLERS]
    return SplitName(kinds[0], tuple(rest))


def choose_sides(root: Path, measure: str | None = None) -> Sides | None:
    """Find the splits among the folders directly inside ``root``.

    Args:
        root: The folder.
        measure: The kind of split to measure with, if it matters: "val", "dev" or "eval".

    Returns:
        The two sides, or None if the folders are classes.

    Raises:
        DataError: If the folders may be splits but one is missing, doubled or without labels.
    """
    folders = subfolders(root)
    named = _named(folders)
    train = [name for name, split in named.items() if split.kind == TRAIN]
    if len(train) == 1 and len(named) > 1:
        return _pair(root, folders, named, train[0], measure)
    if len(train) > 1:
        raise DataError(
            f"{printable(root)}: {_list(train)} all look like the training split; "
            "keep one, or put their images together"
        )
    _refuse_halves(root, folders, named)
    _refuse_doubtful(root, folders)
    return None


def has_sides(root: Path) -> bool:
    """Return whether there is a training split and another, by their names alone."""
    kinds = {split.kind for split in _named(subfolders(root)).values()}
    return TRAIN in kinds and len(kinds) > 1


def class_root(side: Path) -> Path:
    """Step into ``train/train/``, which unpacking makes, where it is all that ``train/`` holds."""
    inside = subfolders(side)
    if len(inside) != 1 or holds_images(side):
        return side
    (name, only), own = next(iter(inside.items())), split_name(side.name)
    return only if own and split_name(name) == own else side


def _named(folders: dict[str, Path]) -> dict[str, SplitName]:
    """Return the folders named like splits; "train station" is one only if classes lie inside."""
    named = {name: split for name in folders if (split := split_name(name))}
    return {n: s for n, s in named.items() if not s.rest or _classes(folders[n])}


def _classes(folder: Path) -> set[str]:
    """Return the names of the folders inside, or none if images lie there directly."""
    return set() if holds_images(folder) else set(subfolders(folder))


def _pair(
    root: Path,
    folders: dict[str, Path],
    named: dict[str, SplitName],
    train: str,
    measure: str | None,
) -> Sides:
    """Choose the side to measure with: of the same series, labelled, in the order of kinds."""
    rest = named[train].rest
    kinds = (measure,) if measure in NAMED else HELD_OUT
    held = [n for kind in kinds for n, s in named.items() if (s.kind, s.rest) == (kind, rest)]
    if not held and measure in NAMED:
        raise DataError(f"{printable(root)} has no split {measure!r}, only {_list(named)}")
    if not held:
        raise DataError(
            f"{printable(root)}: {_list(named)} look like splits but do not belong together; "
            "rename the two to use to train/ and test/"
        )
    doubled = [n for n in held if named[n].kind == named[held[0]].kind]
    if len(doubled) > 1:
        raise DataError(
            f"{printable(root)}: {_list(doubled)} all look like the same split; keep one"
        )
    known = _classes(class_root(folders[train]))
    labelled = [n for n in held if known & _classes(class_root(folders[n]))]
    test = labelled[0] if labelled else held[0]
    if not labelled and not _classes(class_root(folders[test])):
        raise DataError(
            f"{printable(root)}: {_list([test])} has no class folders, so nothing can be measured "
            f"with it; sort its images into them, or give {train}/ itself to have it split"
        )
    notes = [f"{printable(test)}/ is used as the test split"] if test.lower() != "test" else []
    passed = held[: held.index(test)]
    notes += [f"{_list(passed)} not used: it has no labels (class folders)"] if passed else []
    unused = [printable(n) for n in folders if n not in (train, test, *passed)]
    notes += [f"{', '.join(unused)} beside the splits not used"] if unused else []
    return Sides(class_root(folders[train]), class_root(folders[test]), tuple(notes))


def _refuse_halves(root: Path, folders: dict[str, Path], named: dict[str, SplitName]) -> None:
    """Refuse what looks like one half of a split; return if the folders are classes after all."""
    if not named:
        return
    where, names = printable(root), _list(named)
    others = [name for name in folders if name not in named]
    trains = [name for name, split in named.items() if split.kind == TRAIN]
    if not others and trains:
        raise DataError(
            f"{where} has {names} but no test/ beside it; add one, or give the {trains[0]} folder "
            "itself to have it split"
        )
    if not others:
        raise DataError(f"{where} has {names} but no train/ beside it; add one")
    classes = {name: _classes(folders[name]) for name in folders}
    alike = any(classes[name] & classes[other] for name in named for other in others)
    if alike or any(classes[name] for name in trains):
        missing = "test/ or val/" if trains else "train/"
        raise DataError(
            f"{where}: {names} may be a split or a class, and there is no {missing} beside it; "
            f"rename {_list(others)} if it is the other split, or put the images of class "
            f"{', '.join(map(printable, named))} directly into its folder"
        )


def _refuse_doubtful(root: Path, folders: dict[str, Path]) -> None:
    """Refuse ``fold1/`` and ``fold2/`` with the same classes inside."""
    words = [re.findall(r"[^\W\d_]+", name.casefold()) for name in folders]
    if len(folders) < 2 or not all(w and w[0] in DOUBTFUL for w in words):
        return
    if len(set.intersection(*(_classes(folder) for folder in folders.values()))) > 1:
        raise DataError(
            f"{printable(root)}: {_list(folders)} hold the same folders, so they look like splits, "
            "not classes; rename the two to use to train/ and test/, or give one of them"
        )


def _list(names: object) -> str:
    return ", ".join(f"{printable(name)}/" for name in names)  # type: ignore[attr-defined]
