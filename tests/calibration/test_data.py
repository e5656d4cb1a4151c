"""Batches from array files, folders and iterables."""

import tracemalloc
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_of_three import F32, IDS, X, rows, spec

from qcomp.calibration.data import InputSpec, open_data


def joined(samples, batch=4, limit=None, name="x"):
    return np.concatenate([b[name] for b in samples.batches(batch, limit)])


def stores(tmp_path, array):
    """The same samples in every kind of source."""
    for name in ("chunks", "npzs", "named"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, labels=np.array([object()]))
    np.savez_compressed(tmp_path / "one.npz", array)
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(array))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array))
    np.save(tmp_path / "named" / "x.npy", array)
    np.save(tmp_path / "named" / "labels.npy", np.arange(len(array)))
    for i, part in enumerate(np.array_split(array, 3)):
        np.save(tmp_path / "chunks" / f"{i}.npy", part)
        np.savez(tmp_path / "npzs" / f"{i}.NPZ", x=part)
    np.save(tmp_path / "chunks" / "2b.npy", array[-1])
    files = ["a.npy", "a.npz", "one.npz", "fortran.npz", "fortran.npy", "named", "npzs"]
    return [(str(tmp_path / name), array) for name in files] + [
        (tmp_path / "chunks", np.concatenate([array, array[-1:]])),
        ([{"x": array[:2]}, {"x": array[2]}, {"x": array[3:]}], array),
        ({"x": array}, array),
        (array, array),
    ]


def test_every_source_gives_its_samples_again_and_again(tmp_path):
    for source, want in stores(tmp_path, rows(11)):
        samples = open_data(source, [X])
        assert samples.count == len(want), source
        assert samples.names is None
        for batch in (1, 4, 100):
            np.testing.assert_array_equal(joined(samples, batch), want)
        np.testing.assert_array_equal(joined(samples, 4, limit=6), want[:6])
        sizes = [len(b["x"]) for b in samples.batches(4)]
        assert sizes == [4] * (len(want) // 4) + [len(want) % 4] * bool(len(want) % 4)
        assert all(type(b["x"]) is np.ndarray and b["x"].flags.c_contiguous for b in samples.batches(4))


def test_two_inputs_stay_together(tmp_path):
    x, ids = rows(7), np.arange(14, dtype="int32").reshape(7, 2)
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(x), ids=ids)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", x)
    np.save(tmp_path / "folder" / "ids.npy", ids)
    for source in (tmp_path / "a.npz", tmp_path / "folder", [{"ids": ids, "x": x}]):
        samples = open_data(source, [X, IDS])
        for batch in samples.batches(2):
            np.testing.assert_array_equal(batch["x"][:, 0] * 2, batch["ids"][:, 0] * 3)
            assert batch["ids"].dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20)), st.integers(1, 9), st.none() | st.integers(1, 25), st.booleans())
def test_any_chunking_gives_the_same_batches(cuts, batch, limit, once):
    data = rows(20)
    edges = [0, *sorted(cuts), 20]
    parts = [{"x": data[a:b]} for a, b in pairwise(edges)]
    samples = open_data(iter(parts) if once else parts, [X])
    whole = open_data([{"x": data}], [X])
    for _ in range(2):
        got, want = list(samples.batches(batch, limit)), list(whole.batches(batch, limit))
        assert len(got) == len(want)
        assert all(np.array_equal(g["x"], w["x"]) for g, w in zip(got, want, strict=True))
        np.testing.assert_array_equal(np.concatenate([g["x"] for g in got]), data[:limit])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), st.integers(1, 7), st.booleans())
def test_any_chunk_files_give_the_same_batches(tmp_path_factory, sizes, batch, fortran):
    folder, start = tmp_path_factory.mktemp("chunks"), 0
    for i, size in enumerate(sizes):
        part = rows(size, start=start)
        np.savez(folder / f"{i}.npz", x=np.asfortranarray(part) if fortran else part)
        start += size
    np.testing.assert_array_equal(joined(open_data(folder, [X]), batch), rows(start))


def test_an_iterator_is_read_once_and_only_as_far_as_needed():
    taken = []
    buffer = np.empty((2, 3), F32)

    def stream():
        for i in range(10):
            taken.append(i)
            buffer[:] = i
            yield {"x": buffer}

    samples = open_data(stream(), [X])
    assert samples.count is None
    assert joined(samples, 4, limit=4).tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]
    assert taken == [0, 1]
    assert joined(samples)[:, 0].tolist() == [i // 2 for i in range(20)]
    assert taken == list(range(10))


def test_a_fixed_batch_overrides_and_drops_what_is_left():
    samples = open_data({"x": rows(10)}, [spec(shape=(4, 3))])
    assert samples.fixed_batch == 4
    assert [len(b["x"]) for b in samples.batches(1)] == [4, 4]
    assert [len(b["x"]) for b in open_data(rows(3), [spec(shape=(1, 3))]).batches(8)] == [1, 1, 1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_is_constant_for_a_big_npz(tmp_path, save):
    save(tmp_path / "big.npz", np.zeros((4000, 2000), F32))  # 32 MB
    samples = open_data(tmp_path / "big.npz", [spec(shape=("N", 2000))])
    tracemalloc.start()
    try:
        assert sum(len(b["x"]) for b in samples.batches(16)) == 4000
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("float64", "float32"),
        ("int32", "int64"),
        ("uint8", "float32"),
        ("bool", "int64"),
        ("int64", "bool"),
        ("int64", "int8"),
        ("int64", "float32"),
        ("float32", "float16"),
        (">f4", "float32"),
        ("float16", "float64"),
        ("float32", ml_dtypes.bfloat16),
        ("int64", ml_dtypes.bfloat16),
    ],
)
def test_dtypes_that_are_cast(have, want):
    batch = next(open_data({"x": np.eye(3).astype(have)}, [spec(want)]).batches(3))
    assert batch["x"].dtype == np.dtype(want)
    np.testing.assert_array_equal(batch["x"].astype(float), np.eye(3))


def test_a_link_out_of_the_folder_is_read(tmp_path):
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "outside.npy", rows(3))
    (tmp_path / "folder" / "x.npy").symlink_to(tmp_path / "outside.npy")
    assert open_data(tmp_path / "folder", [X]).count == 3


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 11, None])
def test_spread_takes_evenly_from_all(tmp_path, limit):
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.savez(tmp_path / "x.npz", x=array)
    for source in (tmp_path / "x.npz", [{"x": array[:4]}, {"x": array[4:]}], {"x": array}):
        samples = open_data(source, [InputSpec("x", np.dtype("f4"), ("N", 2))]).spread(limit)
        found = np.concatenate([b["x"] for b in samples.batches(4)])[:, 0] / 2
        count = min(limit or 10, 10)
        assert samples.count == count
        np.testing.assert_array_equal(found, [i * 10 // count for i in range(count)])


def test_spread_of_an_iterator_takes_the_first():
    samples = open_data(({"x": np.full((1, 2), i, "f4")} for i in range(9)), [InputSpec("x", np.dtype("f4"), ("N", 2))])
    found = np.concatenate([b["x"] for b in samples.spread(3).batches(2, 3)])
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2])


def test_spread_keeps_blocks_together():
    lengths = [3, 5, 2, 7, 4, 6]
    data = [{"x": np.full((4, length), length, "f4")} for length in lengths]
    samples = open_data(data, [InputSpec("x", np.dtype("f4"), ("N", "L"))]).spread(12, 4)
    assert [batch["x"].shape for batch in samples.batches(4)] == [(4, 3), (4, 2), (4, 4)]
