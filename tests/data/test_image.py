"""Real files of every format and mode, with the colours that must come out; and damaged ones."""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from gammabeta.data.image import printable, read_image
from gammabeta.errors import DataError

RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)
ENDINGS = {"1": "png", "L": "gif", "LA": "png", "P": "bmp", "RGB": "webp", "RGBA": "png"}
ENDINGS |= {"CMYK": "jpg", "I;16": "png"}


def palette(colours, size=(8, 8)):
    """Return a palette image filled with its first colour."""
    image = Image.new("P", size, 0)
    image.putpalette([byte for colour in colours for byte in colour])
    return image


def grey16(value):
    return Image.fromarray(np.full((8, 8), value, np.uint16))


CASES = {
    "rgb jpeg": ("a.jpg", Image.new("RGB", (8, 8), RED), {"quality": 95}, RED),
    "rgb jpeg in capitals": ("a.JPEG", Image.new("RGB", (8, 8), GREEN), {"quality": 95}, GREEN),
    "rgb png": ("a.png", Image.new("RGB", (8, 8), RED), {}, RED),
    "rgb webp": ("a.webp", Image.new("RGB", (8, 8), RED), {"lossless": True}, RED),
    "rgb bmp": ("a.bmp", Image.new("RGB", (8, 8), RED), {}, RED),
    "rgb gif": ("a.gif", Image.new("RGB", (8, 8), RED), {}, RED),
    "grey png": ("a.png", Image.new("L", (8, 8), 77), {}, (77, 77, 77)),
    "grey jpeg": ("a.jpg", Image.new("L", (8, 8), 77), {"quality": 95}, (77, 77, 77)),
    "grey with a transparent shade": ("a.png", Image.new("L", (8, 8)), {"transparency": 0}, WHITE),
    "palette png": ("a.png", palette([GREEN]), {}, GREEN),
    "palette bmp": ("a.bmp", palette([GREEN, RED, RED]), {}, GREEN),
    "palette png, transparent index": ("a.png", palette([RED]), {"transparency": 0}, WHITE),
    "palette png, alpha bytes": (
        "a.png",
        palette([RED]),
        {"transparency": b"\x80"},
        (255, 127, 127),
    ),
    "palette gif, transparent index": ("a.gif", palette([RED]), {"transparency": 0}, WHITE),
    "transparent grey": ("a.png", Image.new("LA", (8, 8), (0, 0)), {}, WHITE),
    "half grey": ("a.png", Image.new("LA", (8, 8), (0, 128)), {}, (127, 127, 127)),
    "transparent red": ("a.png", Image.new("RGBA", (8, 8), (*RED, 0)), {}, WHITE),
    "transparent webp": ("a.webp", Image.new("RGBA", (8, 8), (*RED, 0)), {"lossless": True}, WHITE),
    "opaque red": ("a.png", Image.new("RGBA", (8, 8), (*RED, 255)), {}, RED),
    "cmyk red": ("a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 95}, RED),
    "16-bit mid grey": ("a.png", grey16(32768), {}, (128, 128, 128)),
    "16-bit dark grey": ("a.png", grey16(1000), {}, (4, 4, 4)),
    "16-bit white": ("a.png", grey16(65535), {}, WHITE),
    "1-bit white": ("a.png", Image.new("1", (8, 8), 1), {}, WHITE),
    "1-bit black": ("a.bmp", Image.new("1", (8, 8), 0), {}, BLACK),
}


@pytest.mark.parametrize(("name", "image", "options", "colour"), CASES.values(), ids=CASES)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, colour):
    image.save(tmp_path / name, **options)
    got = read_image(tmp_path / name, 8)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (np.uint8, (8, 8, 3), True)
    assert np.abs(got.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, name):
    later = [Image.new("RGB", (8, 8), GREEN)]
    first = Image.new("RGB", (8, 8), RED)
    first.save(tmp_path / name, save_all=True, append_images=later, lossless=True)
    assert np.abs(read_image(tmp_path / name, 8).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation, name):
    quarters = {
        1: "rgbk",
        2: "grkb",
        3: "kbgr",
        4: "bkrg",
        5: "rbgk",
        6: "gkrb",
        7: "kgbr",
        8: "brkg",
    }
    colours = {"r": RED, "g": GREEN, "b": (0, 0, 255), "k": BLACK}
    grid = np.array([colours[c] for c in quarters[orientation]], np.uint8).reshape(2, 2, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(grid.repeat(16, axis=0).repeat(16, axis=1))
    stored.save(tmp_path / name, exif=exif, quality=95)
    got = read_image(tmp_path / name, 32)[8::16, 8::16].reshape(4, 3)
    assert np.abs(got.astype(int) - [colours[c] for c in "rgbk"]).max() <= 8


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (16, 20), (96, 48)], ids=str)
def test_non_square_matches_torchvision_resize_and_centre_crop(tmp_path, size):
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    smooth = np.stack([120 + 100 * np.sin(x / 9), 2 * y, x + y], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    resize = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])
    want = resize(torch.from_numpy(smooth).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    difference = np.abs(read_image(tmp_path / "a.png", 16).astype(int) - want)
    assert difference[1:-1, 1:-1].max() <= 1  # the crop comes first here, so its edge may differ


def test_shrinking_is_antialiased(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png", 8).astype(int) - 127).max() <= 3


def test_a_big_jpeg_is_as_sharp_as_a_big_png(tmp_path):
    cells = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    big = Image.fromarray(cells.repeat(10, axis=0).repeat(10, axis=1))
    big.save(tmp_path / "a.jpg", quality=95)
    big.save(tmp_path / "a.png")
    jpeg, png = (read_image(tmp_path / name, 32).astype(int) for name in ("a.jpg", "a.png"))
    assert np.abs(jpeg - png).mean() < 4


def test_one_pixel_fills_the_square(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 32) == RED).all()


def test_a_very_long_strip_needs_no_memory(tmp_path):
    Image.new("L", (1, 2_000_000), 9).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 64) == 9).all()


def bomb(side):
    """Return a PNG whose header promises side² pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\4IDAT"


def encoded(tmp_path, ending, **options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{ending}", **options)
    return (tmp_path / f"whole.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif"])
def test_a_file_cut_short_is_refused_by_name(tmp_path, ending):
    whole = encoded(tmp_path, ending)
    (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"cut\.{ending}: (damaged image \(.+\)|not a readable)"):
        read_image(tmp_path / f"cut.{ending}", 32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="zero bytes"),
        pytest.param(b"dear diary\n" * 9, "not a readable JPEG, PNG, WebP, BMP or GIF", id="text"),
        pytest.param(b"P6 1 1 255\n\0\0\0", "not a readable JPEG, PNG, WebP", id="another format"),
        pytest.param(bomb(10_000), "more than 89478485 pixels, too large", id="bomb, a warning"),
        pytest.param(bomb(60_000), "more than 89478485 pixels, too large", id="bomb, an error"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, content, reason):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.png: {reason}") as caught:
        read_image(tmp_path / "bad.png", 32)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_also_where_warnings_are_silenced(tmp_path):
    (tmp_path / "bad.png").write_bytes(bomb(10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="too large to decode safely"):
            read_image(tmp_path / "bad.png", 32)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: No such file or directory"):
        read_image(tmp_path / "gone.png", 32)


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: not a regular file"):
        read_image(tmp_path / "pipe.png", 32)


def test_a_line_break_in_a_name_is_escaped():
    assert printable("a\nb\x1b.png") == "a\\nb\\x1b.png"


@settings(deadline=None, max_examples=60)
@given(
    mode=st.sampled_from(sorted(ENDINGS)),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.sampled_from([8, 16, 32]),
)
def test_any_size_in_any_mode_comes_out_square(mode, width, height, size):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{ENDINGS[mode]}")
        Image.new(mode, (width, height)).save(path)
        image = read_image(path, size)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
