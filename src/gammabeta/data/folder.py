"""A folder of pictures as a data set: one subfolder a class, split in two if it is not already.

:mod:`gammabeta.data.tree` finds the files, :mod:`gammabeta.data.layout` assigns them to splits and
:mod:`gammabeta.data.decode` decodes them; here it is decided where the decoded images are kept,
whether unreadable ones are acceptable, and what the user is told. The training files come first in
one array, so that both splits are views of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from gammabeta.data.dataset import Dataset
from gammabeta.data.decode import Decoded, decode_in_memory, decode_to_cache
from gammabeta.data.image import check_image_size, printable
from gammabeta.data.layout import plan_splits
from gammabeta.errors import DataError
from gammabeta.memory import available_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

    from gammabeta.data.dataset import Files, Progress
    from gammabeta.data.layout import Plan

LISTED = 20
SHOWN_TWINS = 3


def load_folder(
    directory: Path,
    *,
    image_size: int = 32,
    seed: int = 0,
    skip_unreadable: bool = False,
    files: Files | None = None,
    measure: str | None = None,
    memory_limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load a folder of pictures in the formats of ``read_image``.

    With ``train/`` and ``test/`` (or ``Training/``, ``val/``, ``validation_set/`` and their like)
    inside, each with one subfolder a class, these are the splits. Otherwise the subfolders are the
    classes, and of each about one image in five is kept for testing, by a hash of its name: other
    files that come or go do not move it. Classes are sorted by name.

    Args:
        directory: The folder; its name becomes the data set's.
        image_size: Side of the square images, a positive multiple of 8.
        seed: Seed of the split, where the folder does not make one itself. Each seed has its own
            order of files, hence its own cache file.
        skip_unreadable: Leave out images that cannot be read, and say so in the notes.
        files: Use these images in this order, as a run did, and tell what is new or gone.
        measure: Decode only what is to be measured, as the test split: "own" (the folder's own, or
            all of a folder without), "train", "test", "all", "val", "dev" or "eval".
        memory_limit: Bytes that decoded images may take before they are kept in a memory-mapped
            file instead; by default half of the memory that is free.
        cache: Folder of that file; by default one in the user's cache folder.
        progress: Called while decoding, from the calling thread.

    Returns:
        Two splits, uint8 (N, image_size, image_size, 3) and int64 (N,), each holding every class.
        The images are read-only if they are memory-mapped. Notes tell how the split was made,
        what was ignored or skipped, and where the cache is.

    Raises:
        DataError: If the folder is missing or not laid out as above, has fewer than two classes,
            a class without images or with too few to split, names that are not UTF-8, unreadable
            images (all are named), or if the cache cannot be written.
    """
    check_image_size(image_size)
    plan = plan_splits(Path(directory), seed, files, measure)
    limit = memory_limit
    if limit is None and (free := available_bytes()) is not None:
        limit = free // 2
    if limit is None or len(plan.files) * image_size * image_size * 3 <= limit:
        decoded = decode_in_memory(plan.files, image_size, progress)
    else:
        where = cache or Path(platformdirs.user_cache_dir("gammabeta")) / "decoded"
        decoded = decode_to_cache(
            plan.files, image_size, root=plan.root, cache=where, progress=progress
        )
    kept = _kept(plan, decoded, skip_unreadable)
    train, test = plan.split(kept, decoded.images)
    twins = [] if decoded.cache else _twins_note(plan, kept, decoded.images)
    notes = (*plan.notes, _count_note(plan, kept), *twins, *_decoding_notes(plan, decoded))
    return Dataset(
        name=printable(plan.root.resolve().name),
        train=train,
        test=test,
        classes=plan.classes,
        notes=notes,
        files=plan.kept_files(kept),
    )


def _kept(plan: Plan, decoded: Decoded, skip_unreadable: bool) -> npt.NDArray[np.bool_]:
    """Return which files were read; refuse unreadable ones, or the loss of a whole class."""
    kept = np.ones(len(plan.files), np.bool_)
    if not decoded.unreadable:
        return kept
    if not skip_unreadable:
        raise DataError(
            f"{_count_unreadable(plan, decoded)} cannot be read: {_unreadable(plan, decoded)}; "
            f"repair or remove them, or leave them out with --skip-unreadable"
        )
    kept[list(decoded.unreadable)] = False
    border = plan.train_count
    for side, part in (("training", slice(border)), ("test", slice(border, None))):
        if not len(plan.labels[part]):
            continue
        left = np.bincount(plan.labels[part][kept[part]], minlength=len(plan.classes))
        lost = [printable(plan.classes[label]) for label in np.flatnonzero(left == 0)]
        if lost:
            raise DataError(
                f"no readable {side} image is left in class {', '.join(lost)}; "
                f"repair or remove {_unreadable(plan, decoded)}"
            )
    return kept


def _count_note(plan: Plan, kept: npt.NDArray[np.bool_]) -> str:
    """List the classes with their images, so that a folder read the wrong way is seen at once."""
    if not plan.train_count:
        measured = np.bincount(plan.labels[kept], minlength=len(plan.classes))
        named = zip(plan.classes, measured, strict=True)
        return _listed("classes (images measured)", [f"{printable(n)} {k}" for n, k in named])
    counts = []
    for part in (slice(plan.train_count), slice(plan.train_count, None)):
        counts.append(np.bincount(plan.labels[part][kept[part]], minlength=len(plan.classes)))
    each = zip(plan.classes, *counts, strict=True)
    listed = [f"{printable(name)} {train}+{test}" for name, train, test in each]
    return _listed("classes (training + test images)", listed)


def _listed(what: str, listed: list[str]) -> str:
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return f"{what}: {', '.join(listed[:LISTED])}{more}"


def _twins_note(
    plan: Plan, kept: npt.NDArray[np.bool_], images: npt.NDArray[np.uint8]
) -> list[str]:
    """Tell which test images are also training images under another name."""
    files = [plan.files[index] for index in np.flatnonzero(kept)]
    border = int(kept[: plan.train_count].sum())
    seen = {
        hash(image.tobytes()): path for image, path in zip(images, files[:border], strict=False)
    }
    twins = [
        f"{_relative(plan, path)} = {_relative(plan, seen[key])}"
        for image, path in zip(images[border:], files[border:], strict=True)
        if (key := hash(image.tobytes())) in seen
    ]
    if not twins:
        return []
    more = f" and {len(twins) - SHOWN_TWINS} more" if len(twins) > SHOWN_TWINS else ""
    return [
        f"{len(twins)} of {len(files) - border} test images equal a training image at this size, "
        f"so accuracy may look better than it is: {', '.join(twins[:SHOWN_TWINS])}{more}"
    ]


def _relative(plan: Plan, path: Path) -> str:
    return printable(path.relative_to(plan.root))


def _decoding_notes(plan: Plan, decoded: Decoded) -> list[str]:
    notes = []
    if decoded.unreadable:
        count = _count_unreadable(plan, decoded)
        notes.append(f"{count} skipped as unreadable: {_unreadable(plan, decoded)}")
    if decoded.cache is not None:
        notes.append(f"the decoded images are mapped from {printable(decoded.cache)}")
    return notes


def _count_unreadable(plan: Plan, decoded: Decoded) -> str:
    return f"{len(decoded.unreadable)} of {len(plan.files)} images"


def _unreadable(plan: Plan, decoded: Decoded) -> str:
    """Name the unreadable files with the reason, up to a readable number of them."""
    named = [
        f"{_relative(plan, plan.files[index])} ({why})"
        for index, why in sorted(decoded.unreadable.items())[:LISTED]
    ]
    more = len(decoded.unreadable) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
