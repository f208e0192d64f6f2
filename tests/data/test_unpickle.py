"""The restricted unpickler: real array pickles load, hostile ones run nothing."""

from __future__ import annotations

import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest

from gammabeta.data.unpickle import MAX_TUPLES, load_arrays
from gammabeta.errors import DataError

ARRAY = np.arange(24, dtype=np.uint8).reshape(4, 6)


def text(value):
    """Write a Python 2 string, as protocol 2 had it."""
    return b"U" + bytes([len(value)]) + value


def python2_file(fortran=b"\x89", code=b"u1", rows=4):
    """Assemble, opcode by opcode, what cPickle of Python 2 wrote for {'data': array, ...}."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01K" + bytes([rows]) + b"K\x06\x86cnumpy\ndtype\n(" + text(code) + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + fortran + text(ARRAY.tobytes()) + b"tb"
    )  # fmt: skip
    labels = b"](K\x03K\x07e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


def load(tmp_path, data):
    path = tmp_path / "data_batch_1"
    path.write_bytes(data)
    return load_arrays(path)


def test_a_python_2_file_loads(tmp_path):
    loaded = load(tmp_path, python2_file())
    assert list(loaded) == [b"data", b"labels"]
    assert loaded[b"labels"] == [3, 7]
    assert loaded[b"data"].dtype == np.uint8
    np.testing.assert_array_equal(loaded[b"data"], ARRAY)


def test_the_assembled_file_is_what_numpy_reads():
    loaded = pickle.loads(python2_file(), encoding="bytes")  # noqa: S301 (made above)
    np.testing.assert_array_equal(loaded[b"data"], ARRAY)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", [ARRAY, ARRAY.T, ARRAY[::2, 1:3]], ids=["C", "F", "strided"])
def test_todays_pickles_load(tmp_path, protocol, array):
    content = {b"data": array, b"labels": [1, 2], "text": ("é", 1.5, None, True)}
    loaded = load(tmp_path, pickle.dumps(content, protocol))
    np.testing.assert_array_equal(loaded[b"data"], array)
    assert {**loaded, b"data": 0} == {**content, b"data": 0}


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_batch_with_its_file_names_loads(tmp_path, protocol):
    names = [b"%d.png" % i for i in range(10_000)]
    assert load(tmp_path, pickle.dumps({b"filenames": names}, protocol)) == {b"filenames": names}


def test_tuples_as_deep_as_allowed_do_not_crash(tmp_path):
    data = b"\x80\x02})" + b"\x85" * MAX_TUPLES + b"K\x01s."
    assert list(load(tmp_path, data).values()) == [1]


class Call:
    """Pickles as a call of any function, and with a state."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args, state)

    def __reduce__(self):
        return self.parts


def call(name, argument=b"X\x01\x00\x00\x00x"):
    """A protocol-2 pickle that calls `name` ("module attribute") with one argument."""
    module, _, attribute = name.partition(" ")
    return b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + argument + b"\x85R."


FORBIDDEN = (
    *("os system", "posix system", "subprocess Popen", "builtins eval", "__builtin__ eval"),
    *("builtins exec", "builtins getattr", "builtins __import__", "builtins bytearray"),
    *("numpy.f2py.crackfortran myeval", "numpy load", "numpy fromfile", "numpy ndarray.tofile"),
    *("numpy.core.multiarray scalar", "numpy memmap", "copyreg _reconstructor"),
    *("copyreg add_extension", "_codecs decode", "_codecs lookup", "operator attrgetter"),
)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_forbidden_name_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"data_batch_1: .*forbidden name") as caught:
        load(tmp_path, call(name))
    assert "\n" not in str(caught.value)


def hostile_pickles(target):
    """Pickles that would write `target` in one way or another if they were simply loaded."""
    opened = Call(open, str(target), "w")
    nested = Call(print, Call(eval, f"open({str(target)!r}, 'w')"))
    state = Call(np.dtype, "u1", state=opened)
    return {
        "reduce": opened,
        "nested reduce": nested,
        "inside a dict": {b"data": ARRAY, b"labels": [nested]},
        "as a key": {opened: 1},
        "as an array's state": Call(np.ndarray, state=opened),
        "as a dtype's state": state,
        "as an argument of an allowed name": Call(np.dtype, nested),
    }


@pytest.mark.parametrize("way", hostile_pickles("x"))
def test_a_hostile_pickle_has_no_effect(tmp_path, way):
    target = tmp_path / "written"
    data = pickle.dumps(hostile_pickles(target)[way], 2)
    with pytest.raises(DataError):
        load(tmp_path, data)
    assert not target.exists()


def test_the_hostile_pickles_are_live_ammunition(tmp_path):
    target, path = tmp_path / "written", tmp_path / "x"
    path.write_bytes(pickle.dumps(hostile_pickles(target)["nested reduce"], 2))
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True)
    assert target.exists()


ABUSE = {
    "a codec that unpacks": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0xX\x03\0\0\0hex\x86R.",
    "state on a function": b"\x80\x02cnumpy._core.numeric\n_frombuffer\nN}U\x08__code__Ns\x86b.",
    "state set on ndarray": b"\x80\x02cnumpy\nndarray\n}U\x01xK\x01sb.",
    "state set on an array's class": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "ndarray called": call("numpy ndarray", b"K\x05"),
    "object array": python2_file(code=b"O8"),
    "float array": python2_file(code=b"f8"),
    "structured dtype": call("numpy dtype", b"](U\x01xU\x01O\x86e"),
    "array longer than its bytes": python2_file(rows=5),
    "array shorter than its bytes": python2_file(rows=3),
    "persistent reference": b"\x80\x02U\x01xQ.",
    "extension code": b"\x80\x02\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "no dict": pickle.dumps([1]),
    "empty file": b"",
    "no pickle": b"\x00not a pickle",
    "truncated": python2_file()[:-20],
    "bytes after its end": python2_file() + b"x",
    "memory that is not there": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "memo of gigabytes": b"\x80\x02}r\xff\xff\xff\x7f.",
    "tuples without end": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "endless number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
}


@pytest.mark.parametrize("data", ABUSE.values(), ids=ABUSE)
def test_malformed_and_abusive_pickles_are_refused_in_one_line(tmp_path, data):
    with pytest.raises(DataError, match=r"^[^\n]*data_batch_1: not a pickle of plain[^\n]*$"):
        load(tmp_path, data)


def test_every_truncation_is_refused(tmp_path):
    data = python2_file()
    for length in range(len(data)):
        with pytest.raises(DataError):
            load(tmp_path, data[:length])


def test_every_changed_byte_is_refused_or_gives_plain_data(tmp_path):
    data = python2_file()
    plain = (int, list, bytes, str, tuple, dict, float, type(None), np.ndarray)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            try:
                loaded = load(tmp_path, changed)
            except DataError:
                continue
            assert all(isinstance(value, plain) for value in loaded.values()), (position, bit)


def test_the_assembled_file_is_protocol_2():
    protocols = [op.proto for op, _, _ in pickletools.genops(python2_file())]
    assert max(protocols) == 2
