"""One picture file in, one square of RGB bytes out.

Whatever a folder of pictures holds (grey, palette, transparent, CMYK, 16-bit, rotated by a camera)
leaves here as uint8 (S, S, 3). Files are untrusted: only five decoders are ever offered to them,
sizes are bounded, and every failure is a :class:`DataError` that names the file and the reason.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from gammabeta.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""Lower-case endings of the files that count as images."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
FORMAT_NAMES = "JPEG, PNG, WebP, BMP or GIF"
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def printable(path: Path | str) -> str:
    r"""Return a path fit for a one-line message: odd bytes and control characters escaped.

    Example:
        >>> printable("cats\udcff/a\nb.png")
        'cats\\xff/a\\nb.png'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_image_size(image_size: int) -> None:
    """Refuse a side length that the networks cannot halve three times.

    Raises:
        DataError: If ``image_size`` is not a positive multiple of 8.
    """
    if image_size < 8 or image_size % 8:
        raise DataError(f"image size must be a positive multiple of 8 such as 32, got {image_size}")


def read_image(path: Path, image_size: int) -> npt.NDArray[np.uint8]:
    """Read a picture as a square of RGB bytes.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to
    8 bits, and of an animation the first frame is kept. The largest centred square is then
    resized with an antialiased bilinear filter, which is what resizing the shorter side and
    cropping the centre give, without ever holding a very long strip.

    Args:
        path: A JPEG, PNG, WebP, BMP or GIF file; its content decides, not its name.
        image_size: Side of the square, in pixels.

    Returns:
        uint8, (image_size, image_size, 3), writable and C-contiguous.

    Raises:
        DataError: If the file cannot be read, is empty, cut short, damaged, too large to decode
            safely, or of another format. The message names the file and the reason.
    """
    try:
        _check_regular(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            image.draft(None, (2 * image_size, 2 * image_size))  # big JPEGs decode at 1/2 to 1/8
            return _square(_upright(image), image_size)
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise nearly anything
        raise DataError(f"{printable(path)}: {_reason(error)}") from None


def _check_regular(path: Path) -> None:
    """Refuse what would block (a pipe) or cannot hold a picture."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a regular file")
    if status.st_size == 0:
        raise DataError("the file is empty")


def _check_pixels(image: Image.Image) -> None:
    """Make Pillow's warning about huge pictures an error, whatever the warning filters say."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _reason(error: Exception) -> str:
    """Say in one line why a file could not be read."""
    match error:
        case UnidentifiedImageError():
            return f"not a readable {FORMAT_NAMES} image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"more than {Image.MAX_IMAGE_PIXELS} pixels, too large to decode safely"
        case OSError(strerror=str(reason)):
            return reason
    words = " ".join(str(error).split()) or type(error).__name__
    return words if isinstance(error, DataError) else f"damaged image ({words})"


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture in RGB and the way up that its camera recorded."""
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """Return any mode that the five formats decode to as RGB."""
    image.load()  # some formats tell of transparency only once decoded
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    return paper.convert("RGB")


def _square(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize the largest centred square to ``size`` by ``size``."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
