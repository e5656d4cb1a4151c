"""DATA that does not fit, is damaged, or is hostile: one line each, and nothing is unpickled."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from rows_of_three import F32, IDS, X, rows, spec

from qcomp.calibration import arrays
from qcomp.calibration.data import Preprocess, open_data
from qcomp.errors import DataError, OptionError


def refused(source, *inputs, match, error=DataError, batch=4, limit=None, **options):
    """Both opening and reading count; the message is one line, with a place and something to do."""
    with pytest.raises(error, match=match) as caught:
        list(open_data(source, inputs or [X], **options).batches(batch, limit))
    assert "\n" not in str(caught.value)
    assert caught.value.where
    assert caught.value.hint


def npy_bytes(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (np.int64(300), "int8"),
        (np.uint8(200), "int8"),
        (np.int64(-1), "uint64"),
        (np.uint64(2**63), "int64"),
        (np.int64(2**24 + 1), "float32"),
        (np.int64(2), "bool"),
        (np.int64(70000), "float16"),
    ],
)
def test_integers_that_would_change_are_refused(value, want):
    data = np.zeros((6, 3), value.dtype)
    data[5, 1] = value
    refused({"x": data}, spec(want), match=f"input 'x', sample 5: a value that {want} cannot hold")


@pytest.mark.parametrize("dtype", ["float32", "complex64", "U3", "M8[s]", "V4", "O"])
def test_dtypes_that_are_refused(dtype):
    refused({"x": np.zeros((4, 3), dtype)}, spec("int64"), match=r"takes int64 \[N, 3\], not")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_named(tmp_path, bad):
    data = np.zeros((9, 3))
    data[7, 2] = bad
    np.save(tmp_path / "a.npy", data)
    refused(tmp_path / "a.npy", match="input 'x', sample 7: NaN or infinity")


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((5, 2), "axis 1 has the length 2, the model's input 3"),
        ((3,), "axis 0 is missing"),
        ((), "it has 0 axes"),
        ((5,), "it has 1 axes"),
        ((5, 1, 3), "it has 3 axes"),
    ],
)
def test_shapes_that_do_not_fit_say_both(tmp_path, shape, hint):
    np.save(tmp_path / "a.npy", np.zeros(shape, F32))
    refused(tmp_path / "a.npy", match=rf"takes float32 \[N, 3\], not the shape \[.*\] \(({hint})")


def test_fewer_samples_than_a_fixed_batch():
    refused({"x": rows(3)}, spec(shape=(4, 3)), match="3 of the 4 samples")
    refused({"x": rows(9)}, spec(shape=(4, 3)), match="2 of the 4 samples", limit=2)


def test_a_missing_channel_axis_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 28, 28), F32))
    refused(tmp_path / "a.npy", spec(shape=(None, 1, 28, 28)), match="axis 1 is missing: numpy.expand_dims")


def test_wrong_names_say_what_is_wanted_and_given(tmp_path):
    np.savez(tmp_path / "a.npz", y=rows(2), ids=rows(2))
    refused(tmp_path / "a.npz", match="named 'y', 'ids' for the model's inputs 'x'")
    np.save(tmp_path / "y.npy", rows(2))
    refused(tmp_path / "y.npy", X, IDS, match="named 'y' for the model's inputs 'x', 'ids'")
    refused([{}], match="named nothing for the model's inputs 'x'")
    refused([rows(2)], X, IDS, match="ndarray for the model's inputs x, ids")


def test_different_numbers_of_samples(tmp_path):
    data = {"x": rows(3), "ids": np.zeros((4, 2), "int64")}
    np.savez(tmp_path / "a.npz", **data)
    for source in (tmp_path / "a.npz", [data], iter([data])):
        refused(source, X, IDS, match="different numbers of samples: 3 of 'x', 4 of 'ids'")


def test_dynamic_shapes_differ_only_between_batches():
    data = [{"ids": np.zeros((1, n), "int64")} for n in (2, 5)]
    assert [b["ids"].shape for b in open_data(data, [IDS]).batches(1)] == [(1, 2), (1, 5)]
    refused(data, IDS, match="shapes .2., .5. in one batch")


@pytest.mark.parametrize("source", [[], iter([]), {"x": rows(0)}, iter([{"x": rows(0)}]), np.zeros((0, 3), F32)])
def test_no_samples(source):
    refused(source, match="empty DATA")


def test_folders_without_samples(tmp_path):
    refused(tmp_path, match="empty DATA")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._x.npy").write_bytes(b"")
    refused(tmp_path, match="empty DATA")
    refused(tmp_path / "notes.txt", match="neither an .npy nor an .npz")
    np.save(tmp_path / "a.npy", rows(0))
    refused(tmp_path, match="empty DATA")
    np.savez(tmp_path / "b.npz", x=rows(1))
    refused(tmp_path, match="both .npy and .npz")
    refused(tmp_path / "missing.npy", match="no such file")
    os.mkfifo(tmp_path / "pipe.npy")
    refused(tmp_path / "pipe.npy", match="no such file")


def test_objects_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    evil = np.array([[Evil()] * 3], dtype=object)
    np.save(tmp_path / "a.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=evil)
    for name in ("a.npy", "a.npz"):
        refused(tmp_path / name, match="Python objects, which are never unpickled")
    assert not (tmp_path / "owned").exists()


def test_truncated_and_damaged_files(tmp_path):
    path = tmp_path / "a.npy"
    whole = npy_bytes(rows(50))
    for content in (b"", b"\x93NUMPY", whole[:60], whole[:-1], whole + b"\0", b"PK" + whole, b"\x80\x04K\x01."):
        path.write_bytes(content)
        refused(path, match="cannot be read|makes it")
    np.savez(tmp_path / "a.npz", x=rows(50))
    content = (tmp_path / "a.npz").read_bytes()
    for broken in (content[:-30], content[:300], b"", content.replace(rows(50).tobytes()[300:], b"\1" * 300)):
        (tmp_path / "a.npz").write_bytes(broken)
        refused(tmp_path / "a.npz", match="cannot be read")


@pytest.mark.parametrize("shape", ["(99999999999, 3)", "(-4, -3)", "(4, 3, 1e3)", "'x'", "((((((", "(4, 3"])
def test_headers_that_lie(tmp_path, shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    lie = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48)
    (tmp_path / "a.npy").write_bytes(lie)
    zipped(tmp_path / "a.npz", {"x.npy": lie})
    refused(tmp_path / "a.npy", match="cannot be read|makes it")
    refused(tmp_path / "a.npz", match="cannot be read|makes it")


def test_zip_bombs_are_refused_without_reading_them(tmp_path):
    zipped(tmp_path / "tail.npz", {"x.npy": npy_bytes(rows(4)) + bytes(30_000_000)})
    header = b"\x93NUMPY\x02\x00" + (30_000_000).to_bytes(4, "little") + b" " * 30_000_000
    zipped(tmp_path / "header.npz", {"x.npy": header})
    del header
    for name, match in (("tail.npz", "makes it 176"), ("header.npz", "cannot be read")):
        tracemalloc.start()
        refused(tmp_path / name, match=match)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e6


def test_options_and_models_that_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", rows(3))
    for source in (tmp_path / "a.npy", [{"x": rows(3)}]):
        refused(source, match="for a folder of images", error=OptionError, preprocess=Preprocess())
    refused(rows(3), match="batch is 0", error=OptionError, batch=0)
    refused(rows(3), match="limit is -1", error=OptionError, limit=-1)
    refused(5, match="int is not DATA")
    refused(rows(3), spec(shape=()), match="no batch axis in common")
    refused(rows(3), spec(shape=(1, 3)), spec(shape=(2, 3)), match="no batch axis in common")
    refused([{"x": [[1.0], [1.0, 2.0]]}], match="cannot be read")


def test_a_large_array_in_fortran_order_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MOST_FORTRAN", 1000)
    array = np.asfortranarray(np.zeros((9, 3, 4, 4), np.float32))
    np.savez(tmp_path / "f.npz", array)
    with pytest.raises(DataError, match=r"Fortran order.*ascontiguousarray"):
        arrays.StoredArray.open(tmp_path / "f.npz", "arr_0.npy")
    np.save(tmp_path / "f.npy", array)
    assert arrays.StoredArray.open(tmp_path / "f.npy").shape == array.shape
