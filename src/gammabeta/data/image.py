"""One picture file in, one square of RGB bytes out.

Whatever a folder of pictures holds (grey, palette, transparent, CMYK, 16-bit, rotated by a camera)
leaves here as uint8 (S, S, 3). Files are untrusted: only the decoders of ``FORMATS`` are offered to
them, the memory that decoding takes is bounded, for all threads together, and every failure is a
:class:`DataError` that names the file and the reason.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
        *(".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Lower-case endings of the files that count as images."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or PPM"
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
TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0

MEMORY_LIMIT = 1_500_000_000
"""Bytes that decoding may take, in all threads together; a picture that needs more is refused."""
BYTES_PER_PIXEL = 16
"""What a decoded pixel takes at worst: RGBA, white paper, RGB, and the same turned upright."""
MAX_IMAGE_SIZE = math.isqrt(MEMORY_LIMIT // BYTES_PER_PIXEL) // 8 * 8
"""Side of the largest square that the limit allows, a multiple of 8."""
JPEG_SCALES = (1, 2, 4, 8)


class _Budget:
    """Memory that threads borrow from; who finds too little left waits for the others."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.changed = threading.Condition()

    @contextmanager
    def borrow(self, amount: int) -> Iterator[None]:
        """Hold ``amount`` bytes, at most the limit, until the block ends."""
        with self.changed:
            self.changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self.changed:
                self.left += amount
                self.changed.notify_all()


_budget = _Budget(MEMORY_LIMIT)


def printable(path: Path | str) -> str:
    r"""Return a path fit for a one-line message: odd bytes and control characters escaped.

    Example:
        >>> printable("cats\udcff/a\nb.png")
        'cats\\xff/a\\nb.png'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_image_size(image_size: int) -> None:
    """Refuse a side length that the networks cannot halve three times, or no picture may have.

    Raises:
        DataError: If ``image_size`` is not a positive multiple of 8, or over ``MAX_IMAGE_SIZE``.
    """
    if image_size < 8 or image_size % 8:
        raise DataError(f"image size must be a positive multiple of 8 such as 32, got {image_size}")
    if image_size > MAX_IMAGE_SIZE:
        raise DataError(
            f"image size is {image_size}, but must be at most {MAX_IMAGE_SIZE}: a larger picture "
            f"takes more than {MEMORY_LIMIT / 1e9:g} GB to make"
        )


def read_image(path: Path, image_size: int) -> npt.NDArray[np.uint8]:
    """Read a picture as a square of RGB bytes.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to
    8 bits, and of an animation or a stack of pages the first is kept. The largest centred square
    is then resized with an antialiased bilinear filter, which is what resizing the shorter side
    and cropping the centre give, without ever holding a very long strip.

    A JPEG larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, so that a telephone's 200
    million pixels are read. Decoding takes 1.5 GB at most, in all threads together: 93 million
    pixels; of JPEG, which may keep all coefficients, 250 million, or 500 million with subsampled
    colour. What needs more is refused before it is decoded.

    Args:
        path: A JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or PPM file; its content decides, not its
            name.
        image_size: Side of the square, in pixels.

    Returns:
        uint8, (image_size, image_size, 3), writable and C-contiguous.

    Raises:
        DataError: If the file cannot be read, is empty, cut short, damaged, too large to decode,
            or of another format. The message names the file and the reason.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            image, needed = _open(file, image_size)
            if needed > MEMORY_LIMIT:
                raise Image.DecompressionBombError
            with _budget.borrow(needed), image:
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


def _open(file: IO[bytes], image_size: int) -> tuple[Image.Image, int]:
    """Read a picture's header; return the picture and how many bytes it takes to decode."""
    is_jpeg = file.read(3) == b"\xff\xd8\xff"
    file.seek(0)
    if not is_jpeg:
        image = Image.open(file, formats=FORMATS)
        return image, BYTES_PER_PIXEL * image.width * image.height
    jpeg = JpegImageFile(file)  # Image.open would refuse a large one by its full size
    side = min(jpeg.size)
    scale = max((s for s in JPEG_SCALES if side // s >= 2 * image_size), default=1)
    while _jpeg_bytes(jpeg, scale) > MEMORY_LIMIT and side // (2 * scale) >= image_size:
        scale *= 2
    scale = min(scale, JPEG_SCALES[-1])
    needed = _jpeg_bytes(jpeg, scale)
    jpeg.draft(None, (jpeg.width // scale, jpeg.height // scale))
    return jpeg, needed


def _jpeg_bytes(image: JpegImageFile, scale: int) -> int:
    """Return what a JPEG takes at a scale, with the coefficients that a progressive one keeps."""
    areas = [wide * high for _, wide, high, _ in image.layer]
    block = max(layer[1] for layer in image.layer) * max(layer[2] for layer in image.layer)
    pixels = image.width * image.height
    return BYTES_PER_PIXEL * pixels // scale**2 + 2 * pixels * sum(areas) // block


def _reason(error: Exception) -> str:
    """Say in one line why a file could not be read."""
    match error:
        case UnidentifiedImageError() | SyntaxError():
            return f"not a readable {FORMAT_NAMES} image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"too large to decode within {MEMORY_LIMIT / 1e9:g} GB of memory"
        case OSError(strerror=str(reason)):
            return reason
    words = " ".join(str(error).split()) or type(error).__name__
    return words if isinstance(error, DataError) else f"damaged image ({words})"


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture in RGB and the way up that its camera recorded."""
    image.load()  # some formats turn the picture, or tell of transparency, only once decoded
    turn = UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION, 1))
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture of any mode that the formats have as RGB."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits at 255
        return Image.fromarray(_wide_grey(image)).convert("RGB")
    if image.mode == "F":
        raise DataError("its pixels are floating-point numbers of unknown range; save as 8 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return paper.convert("RGB")


def _wide_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Scale grey of more than 8 bits to 8; what a TIFF calls white is white."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and not image.mode.startswith("I;16"):
        raise DataError("its pixels are 32-bit or signed numbers of unknown range; save as 8 bits")
    white = 2 ** (tags[TIFF_BITS][0] if tags else 16) - 1
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide * 255 + white // 2) // white).astype(np.uint8)
    return 255 - grey if tags and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO else grey


def _square(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize the largest centred square to ``size`` by ``size``."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)
