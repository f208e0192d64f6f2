"""Folders of real pictures. Each is one flat colour that names its class and its number, so that
labels can be read off pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from gammabeta.data import Dataset, Split


def picture(path: Path, colour: tuple[int, int, int] = (0, 0, 0)) -> Path:
    """Write one picture, in whatever folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), colour).save(path)
    return path


def fill(root: Path, blue: int = 7, **counts: int) -> Path:
    """Write ``counts[name]`` pictures a class, coloured (class index, number, blue)."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        for number in range(count):
            picture(root / name / f"{number:03}.png", (label, number, blue))
    return root


def colours(split: Split) -> list[tuple[int, int, int]]:
    """Return the (label, class read off the pixels, number read off the pixels) of each image."""
    pixels = split.images[:, 0, 0]
    return [(int(y), int(p[0]), int(p[1])) for y, p in zip(split.labels, pixels, strict=True)]


def told(data: Dataset, *words: str) -> bool:
    """Return whether one note has all the words."""
    return any(all(word in note for word in words) for note in data.notes)
