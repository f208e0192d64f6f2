"""Real files of every format and mode, with the colours that must come out; and damaged ones."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
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
    "16-bit grey tiff": ("a.tif", grey16(32768), {}, (128, 128, 128)),
    "16-bit grey tiff, compressed": (
        "a.tiff",
        grey16(1000),
        {"compression": "tiff_adobe_deflate"},
        (4, 4, 4),
    ),
    "16-bit grey tiff, white is zero": (
        "a.tif",
        grey16(0),
        {"tiffinfo": {262: 0}},
        WHITE,
    ),
    "cmyk tiff": ("a.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, RED),
    "ycbcr tiff": ("a.tif", Image.new("RGB", (8, 8), RED).convert("YCbCr"), {}, RED),
    "palette tiff": ("a.tif", palette([GREEN]), {}, GREEN),
    "transparent tiff": ("a.tif", Image.new("RGBA", (8, 8), (*RED, 0)), {}, WHITE),
    "half grey tiff": ("a.tif", Image.new("LA", (8, 8), (0, 128)), {}, (127, 127, 127)),
    "1-bit tiff, fax": ("a.tif", Image.new("1", (8, 8), 1), {"compression": "group4"}, WHITE),
    "rgb avif": ("a.avif", Image.new("RGB", (8, 8), RED), {"quality": 100}, RED),
    "transparent avif": ("a.avif", Image.new("RGBA", (8, 8), (*RED, 0)), {"quality": 100}, WHITE),
    "rgb ppm": ("a.ppm", Image.new("RGB", (8, 8), RED), {}, RED),
    "16-bit pgm": ("a.pgm", grey16(32768), {}, (128, 128, 128)),
    "jfif": ("a.jfif", Image.new("RGB", (8, 8), RED), {"quality": 95}, RED),
    "1-bit white": ("a.png", Image.new("1", (8, 8), 1), {}, WHITE),
    "1-bit black": ("a.bmp", Image.new("1", (8, 8), 0), {}, BLACK),
}


@pytest.mark.parametrize(("name", "image", "options", "colour"), CASES.values(), ids=CASES)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, colour):
    image.save(tmp_path / name, **options)
    got = read_image(tmp_path / name, 8)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (np.uint8, (8, 8, 3), True)
    assert np.abs(got.astype(int) - colour).max() <= 2


def tiff(path, samples, bits, photometric, packed):
    """Write an 8 by 8 TIFF by hand, of a kind that Pillow reads but does not write."""
    shorts = {256: [8], 257: [8], 258: [bits] * samples, 259: [1], 262: [photometric]}
    shorts |= {277: [samples], 278: [8]}
    entries = {tag: (3, values) for tag, values in shorts.items()}
    entries |= {273: (4, [8]), 279: (4, [len(packed)])}
    start = 8 + len(packed)
    extra = start + 2 + 12 * len(entries) + 4
    directory, tail = struct.pack("<H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        data = b"".join(struct.pack("<H" if kind == 3 else "<I", value) for value in values)
        if len(data) > 4:
            data, tail = struct.pack("<I", extra + len(tail)), tail + data
        directory += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + packed + directory + bytes(4) + tail)
    return path


def test_16_bit_colour_is_scaled(tmp_path):
    pixels = np.broadcast_to(np.array([65535, 1000, 0], "<u2"), (8, 8, 3))
    got = read_image(tiff(tmp_path / "a.tif", 3, 16, 2, pixels.tobytes()), 8)
    assert np.abs(got.astype(int) - (255, 4, 0)).max() <= 1


@pytest.mark.parametrize(("value", "shade"), [(0, 0), (2048, 128), (4095, 255)])
def test_12_bit_grey_is_scaled_by_its_own_white(tmp_path, value, shade):
    pair = bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255])
    got = read_image(tiff(tmp_path / "a.tif", 1, 12, 1, pair * 32), 8)
    assert np.abs(got.astype(int) - shade).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((8, 8), 0.5, np.float32), "floating-point numbers of unknown range; save as 8"),
        (np.full((8, 8), 70_000, np.int32), "32-bit or signed numbers of unknown range; save as"),
    ],
)
def test_numbers_without_a_white_are_refused(tmp_path, pixels, reason):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=reason):
        read_image(tmp_path / "a.tif", 8)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, name):
    later = [Image.new("RGB", (8, 8), GREEN)]
    first = Image.new("RGB", (8, 8), RED)
    first.save(tmp_path / name, save_all=True, append_images=later, lossless=True, quality=100)
    assert np.abs(read_image(tmp_path / name, 8).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
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


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif", "avif", "ppm"])
def test_a_file_cut_short_is_refused_by_name(tmp_path, ending):
    whole = encoded(tmp_path, ending)
    (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"cut\.{ending}: (damaged image \(.+\)|not a readable)"):
        read_image(tmp_path / f"cut.{ending}", 32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file is empty", id="zero bytes"),
        pytest.param(
            b"dear diary\n" * 9, "not a readable JPEG, PNG, WebP, BMP, GIF, TIFF", id="text"
        ),
        pytest.param(b"\xff\xd8\xff no JPEG", "not a readable JPEG, PNG, WebP", id="no header"),
        pytest.param(b"8BPS\0\1" + bytes(60), "not a readable JPEG, PNG", id="another format"),
        pytest.param(bomb(10_000), "too large to decode within 1.5 GB", id="bomb, a warning"),
        pytest.param(bomb(60_000), "too large to decode within 1.5 GB", id="bomb, an error"),
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
        with pytest.raises(DataError, match="too large to decode within"):
            read_image(tmp_path / "bad.png", 32)


# Large pictures: what a phone writes is read, within a bound on memory


MEASURED = """
import resource, sys
from pathlib import Path
from gammabeta.data.decode import read_images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for image in read_images([Path(name) for name in sys.argv[1:]], 32):
    print(image if isinstance(image, str) else image.mean(axis=(0, 1)).round().astype(int).tolist())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def read_apart(*paths):
    """Read pictures in a process of their own; return what came and the megabytes it took."""
    command = [sys.executable, "-W", "error", "-c", MEASURED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    return said, int(megabytes)


@pytest.mark.parametrize("size", [(12_240, 9_180), (16_320, 12_240)], ids=["112 MP", "200 MP"])
def test_a_phones_largest_jpeg_is_read_at_a_reduced_scale(tmp_path, size):
    Image.new("RGB", size, GREEN).save(tmp_path / "a.jpg")
    (said,), megabytes = read_apart(tmp_path / "a.jpg")
    assert said in {"[0, 255, 0]", "[0, 255, 1]"}
    assert megabytes < 120


def header_only(path, size, progressive):
    """Write a JPEG that is small but says that it is large."""
    Image.new("RGB", (16, 16)).save(path, progressive=progressive, subsampling=0)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_coefficients_would_not_fit_is_refused_unread(tmp_path, progressive):
    file = header_only(tmp_path / "a.jpg", (65_500, 65_500), progressive)
    (said,), megabytes = read_apart(file)
    assert said == "too large to decode within 1.5 GB of memory"
    assert megabytes < 20


def test_a_large_jpeg_for_a_large_size_is_reduced_as_far_as_it_must(tmp_path):
    Image.new("L", (14_000, 14_000), 77).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg", 4096)
    assert (image.shape, int(image[0, 0, 0])) == ((4096, 4096, 3), 77)


def test_many_large_pictures_at_once_stay_within_the_limit(tmp_path):
    Image.new("RGBA", (7_000, 7_000), (*RED, 0)).save(tmp_path / "0.png", compress_level=1)
    for number in range(1, 3):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    said, megabytes = read_apart(*sorted(tmp_path.iterdir()))
    assert said == ["[255, 255, 255]"] * 3
    assert megabytes < 1000


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
