"""Weights in other files: read from the model's folder alone, wherever in the model they are."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from protos import FLOAT, info, model_of, y

from qcomp import files
from qcomp.errors import ModelError


def external(location="w.bin", *, dims=(4,), offset=None, length=None, name="w"):
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def adding(tensor):
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], [info("x", FLOAT, [4])], [y()], [tensor])


def in_attribute(tensor):
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return model_of(nodes, [info("x", FLOAT, [4])], [y()])


def in_custom_attribute(tensor):
    node = helper.make_node("Strange", ["x"], ["y"], domain="strange", table=tensor)
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["strange"])


def in_list(tensor):
    node = helper.make_node("Strange", ["x"], ["y"], domain="strange", tables=[tensor])
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["strange"])


def in_subgraph(tensor):
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["t"])], "b", [], [info("t", FLOAT, [4])], [tensor])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "e", [], [info("e", FLOAT, [4])])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    return model_of(nodes, [info("x", FLOAT, [4])], [y()])


def in_function(tensor):
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["a", "w"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 21)])
    node = helper.make_node("F", ["x"], ["y"], domain="local")
    return model_of([node], [info("x", FLOAT, [4])], [y()], domains=["local"], functions=[function])


PLACES = [adding, in_attribute, in_custom_attribute, in_list, in_subgraph, in_function]
places = pytest.mark.parametrize("place", PLACES, ids=[p.__name__ for p in PLACES])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder beside a secret; the working directory is elsewhere and has a decoy."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    (elsewhere / "w.bin").write_bytes(np.full(4, 9, np.float32).tobytes())
    (home / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    monkeypatch.chdir(elsewhere)
    return home


class TestExternal:
    """Weights in other files."""

    @places
    def test_are_read_from_the_models_folder(self, folder, place):
        (folder / "m.onnx").write_bytes(place(external()).SerializeToString())
        model = files.load(folder / "m.onnx")
        tensors = [t for t in files._tensors(model) if t.size == 4]
        assert [t.numpy().tolist() for t in tensors] == [[0, 1, 2, 3]]
        proto = place(external())
        ours = ir.from_proto(proto)
        for tensor in files._tensors(ours):
            tensor.base_dir = folder
        assert [t.numpy().tolist() for t in files._tensors(files.load(ours)) if t.size == 4] == [[0, 1, 2, 3]]

    @places
    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            ({"location": "../secret.bin"}, "outside"),
            ({"location": "sub/../../secret.bin"}, "outside"),
            ({"location": "/etc/hostname"}, "outside"),
            ({"location": "link.bin"}, "outside"),
            ({"location": "gone.bin"}, "missing"),
            ({"location": ""}, "missing|malformed"),
            ({"location": "."}, "missing"),
            ({"location": "a" * 5000}, "missing"),
            ({"location": "loop.bin"}, "missing|outside"),
            ({"location": "w.bin", "dims": (5,)}, "too short"),
            ({"location": "w.bin", "offset": 4}, "too short"),
            ({"location": "w.bin", "offset": -4}, "too short|malformed"),
            ({"location": "w.bin", "offset": "x"}, "malformed"),
            ({"location": "w.bin", "length": 8}, "length is wrong"),
            ({"location": "w.bin", "length": -16}, "length is wrong|malformed"),
            ({"location": "w.bin", "length": 1 << 60}, "length is wrong"),
            ({"location": "w.bin", "dims": (1 << 40, 1 << 40)}, "too short|malformed"),
        ],
        ids=lambda x: "-".join(f"{k}={str(v)[:16]}" for k, v in x.items()) if isinstance(x, dict) else "",
    )
    def test_are_refused(self, folder, place, tensor, message):
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "loop.bin").symlink_to(folder / "loop.bin")
        (folder / "m.onnx").write_bytes(place(external(**tensor)).SerializeToString())
        with pytest.raises(ModelError, match=message):
            files.load(folder / "m.onnx")

    @places
    def test_of_a_model_in_memory_are_refused(self, folder, place):
        with pytest.raises(ModelError, match="lie in another file"):
            files.load(place(external()))

    @places
    def test_end_in_the_saved_model(self, folder, place, tmp_path):
        (folder / "m.onnx").write_bytes(place(external()).SerializeToString())
        model = files.load(folder / "m.onnx")
        (tmp_path / "out").mkdir()
        out = files.save(model, tmp_path / "out" / "m.onnx")
        assert out == [tmp_path / "out" / "m.onnx"]
        for leftover in folder.iterdir():
            leftover.unlink()
        again = files.load(out[0])
        assert [t.numpy().tolist() for t in files._tensors(again) if t.size == 4] == [[0, 1, 2, 3]]
