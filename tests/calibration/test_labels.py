"""Labels from text files and arrays."""

import numpy as np
import pytest

from qcomp.calibration.data import check_labels, load_labels
from qcomp.errors import DataError


def refused(path, names=None, *, match):
    with pytest.raises(DataError, match=match) as caught:
        load_labels(path, names)
    assert "\n" not in str(caught.value)
    assert caught.value.where
    assert caught.value.hint


@pytest.fixture
def text(tmp_path):
    def write(content):
        path = tmp_path / "labels.txt"
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("content", "names", "want"),
    [
        ("a.png 3\nb.png 5\n", None, [3, 5]),
        ("\ufeffb.png 5\n\nval/a.png\t3 \nc.png 9", ["a.png", "b.png"], [3, 5]),
        ("my cat.png 7\nmy cat.png 7", ["my cat.png"], [7]),
        ("4\n0\n", ["a.png", "b.png"], [4, 0]),
        ("4\r\n0\r\n", None, [4, 0]),
        ("", None, []),
    ],
)
def test_text(text, content, names, want):
    labels = load_labels(text(content), names)
    assert labels.dtype == np.int64
    assert labels.tolist() == want


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", ">u2"])
def test_arrays(tmp_path, dtype):
    np.save(tmp_path / "l.npy", np.arange(5000).astype(dtype) % 100)
    labels = load_labels(tmp_path / "l.npy")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.arange(5000).astype(dtype) % 100)


@pytest.mark.parametrize(
    ("content", "names", "match"),
    [
        ("a.png 3", ["a.png", "b.png", "c.png"], "no label for the image 'b.png' and 1 more"),
        ("a.png 3\na.png 4", ["a.png"], "'a.png' has the labels 3 and 4"),
        ("a.png 3\n4", None, "some lines have a name"),
        ("a.png 3\nb.png cat", None, "line 2: 'cat' is not a class number"),
        ("-1", None, "line 1: -1 is not a class number"),
        ("9223372036854775808", None, "is not a class number"),
        ("1.5", None, "is not a class number"),
    ],
)
def test_text_that_is_refused(text, content, names, match):
    refused(text(content), names, match=match)


def test_files_that_are_refused(tmp_path):
    refused(tmp_path / "missing.txt", match="cannot be read")
    refused(tmp_path, match="cannot be read")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "binary.txt", match="cannot be read")
    (tmp_path / "l.npy").write_bytes(b"\x93NUMPY")
    refused(tmp_path / "l.npy", match="cannot be read")
    for bad in (np.zeros((2, 2), "int64"), np.zeros(2), np.array([1, -1])):
        np.save(tmp_path / "l.npy", bad)
        refused(tmp_path / "l.npy", match="labels are integers|not a class number")
    np.save(tmp_path / "l.npy", np.array([object()]), allow_pickle=True)
    refused(tmp_path / "l.npy", match="never unpickled")


def test_the_number_of_labels():
    check_labels(np.zeros(3, "int64"), 3)
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        check_labels(np.zeros(3, "int64"), 4)
