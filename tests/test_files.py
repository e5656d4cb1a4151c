"""Reading models from strangers, and writing safely."""

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from onnx import TensorProto, helper
from protos import FLOAT, const, f, identity, info, model_of, node, on_ort, rows, y

from qcomp import files, graph, upgrade
from qcomp.errors import ModelError, OutputError, QcompError


class TestRefuses:
    """Everything that is no model is refused in words."""

    def test_missing_and_folder(self, tmp_path):
        for path, what in ((tmp_path / "missing.onnx", "no such file"), (tmp_path, "is a folder")):
            with pytest.raises(ModelError, match=what):
                files.load(path)
        with pytest.raises(ModelError, match="cannot be read: File name too long"):
            files.load("m" * 5000)

    @pytest.mark.parametrize("suffix", [".onnx", "", ".json", ".txt", ".textproto", ".onnxtxt"])
    @pytest.mark.parametrize(
        "content",
        [b"", b"hello, this is text\n", b"{}", bytes(range(256)) * 20, b"\x00" * 100, b"\x08\x08", b"\xff" * 64],
        ids=["empty", "text", "json", "binary", "zeros", "header", "ff"],
    )
    def test_what_is_no_model(self, tmp_path, content, suffix):
        path = tmp_path / f"m{suffix}"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX"):
            files.load(path)

    def test_a_constant_with_attributes_of_another_operator(self, tmp_path):
        model, path = small.cnn(0), tmp_path / "m.onnx"
        next(n for n in model.graph.node if n.op_type == "Conv").op_type = "Constant"
        onnx.save(model, path)
        with pytest.raises(ModelError, match="the ONNX graph is malformed"):
            files.load(path)

    def test_random_bytes(self, tmp_path):
        rng, path = np.random.default_rng(0), tmp_path / "m.onnx"
        for size in [*range(40), 1000, 10_000]:
            path.write_bytes(rng.bytes(size))
            with pytest.raises(ModelError):
                files.load(path)

    def test_truncated_and_damaged_models_never_crash(self, tmp_path):
        data, path = small.cnn(0).SerializeToString(), tmp_path / "m.onnx"
        rng = np.random.default_rng(1)
        cuts = [data[: len(data) * i // 40] for i in range(40)]
        for _ in range(150):
            spoiled = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                spoiled[place] = rng.integers(256)
            cuts.append(bytes(spoiled))
        refused = 0
        for content in cuts:
            path.write_bytes(content)
            try:
                files.load(path)
            except QcompError:
                refused += 1
        assert 40 <= refused < len(cuts)

    @pytest.mark.parametrize("version", [1, 6])
    def test_old_opsets(self, version):
        with pytest.raises(ModelError, match=f"opset {version} is too old .*opset 7 or newer"):
            files.load(identity(opset=version, ir_version=3))

    def test_a_cycle(self):
        nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
        nodes.append(helper.make_node("Relu", ["b"], ["y"]))
        with pytest.raises(ModelError, match="cycle"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y()]))

    def test_an_undefined_input_or_output(self):
        with pytest.raises(ModelError, match="nowhere"):
            files.load(model_of([helper.make_node("Relu", ["nowhere"], ["y"])], [info("x", FLOAT, [1])], [y()]))
        with pytest.raises(ModelError, match="nowhere"):
            files.load(
                model_of(
                    [helper.make_node("Relu", ["x"], ["y"])], [info("x", FLOAT, [1])], [info("nowhere", FLOAT, None)]
                )
            )

    def test_a_value_that_is_defined_twice(self):
        nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["y"])]
        with pytest.raises(ModelError, match="'y'"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y()]))

    def test_a_quantized_model(self):
        nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="q")]
        with pytest.raises(ModelError, match=r"DynamicQuantizeLinear 'q': the model is quantized already"):
            files.load(model_of(nodes, [info("x", FLOAT, [1])], [y(TensorProto.UINT8)]))


class TestKeeps:
    """What a load must not lose."""

    def test_newer_opsets(self):
        assert upgrade.opset(files.load(identity(opset=22))) == 22

    @pytest.mark.parametrize("version", [11, 17, 21])
    def test_operators_of_unknown_domains(self, version):
        nodes = [helper.make_node("Strange", ["x"], ["s"], domain="strange", a=1), node("Relu", "s")]
        proto = model_of(nodes, [info("x", FLOAT, ["N"])], [y()], opset=version, domains=["strange"], ir_version=8)
        model = files.load(proto)
        assert [(n.domain, n.op_type) for n in model.graph] == [("strange", "Strange"), ("", "Relu")]
        assert model.graph.opset_imports["strange"] == 1
        assert model.graph.node(0).attributes["a"].value == 1

    @pytest.mark.parametrize("version", [11, 21])
    def test_metadata(self, version):
        proto = identity(opset=version, ir_version=8, producer_name="p", doc_string="d", model_version=3)
        helper.set_model_props(proto, {"names": "cat,dog", "stride": "32"})
        model = files.load(proto)
        assert dict(model.metadata_props) == {"names": "cat,dog", "stride": "32"}
        assert (model.producer_name, model.doc_string, model.model_version) == ("p", "d", 3)

    @pytest.mark.parametrize("version", [11, 21])
    def test_an_initializer_that_is_a_graph_input_is_a_constant(self, version):
        inputs = [info("x", FLOAT, ["N", 3]), info("w", FLOAT, [3, 500])]
        proto = model_of(
            [node("MatMul", "x w")], inputs, [y()], [const("w", rows(3, 500))], opset=version, ir_version=3
        )
        model = files.load(proto)
        assert [v.name for v in model.graph.inputs] == ["x"]
        np.testing.assert_array_equal(graph.constant(model.graph.node(0).inputs[1]), rows(3, 500))

    @pytest.mark.parametrize("version", [13, 21])
    def test_functions_are_inlined_but_for_our_own(self, version):
        functions = [
            helper.make_function(d, "F", ["a"], ["b"], [node("Relu", "a", "b")], [helper.make_opsetid("", version)])
            for d in ("local", "qcomp")
        ]
        nodes = [
            helper.make_node("F", ["x"], ["h"], domain="local"),
            helper.make_node("F", ["h"], ["y"], domain="qcomp"),
        ]
        proto = model_of(
            nodes,
            [info("x", FLOAT, ["N"])],
            [y()],
            opset=version,
            domains=["local", "qcomp"],
            functions=functions,
            ir_version=8,
        )
        model = files.load(proto)
        assert [(n.domain, n.op_type) for n in model.graph] == [("", "Relu"), ("qcomp", "F")]
        assert [key[0] for key in model.functions] == ["qcomp"]
        assert on_ort(model, {"x": f([-1, 2])})[0].tolist() == [0, 2]

    def test_constants_become_initializers(self):
        nodes = [
            helper.make_node("Constant", [], ["a"], value_float=2.0),
            helper.make_node("Constant", [], ["b"], value_ints=[1, 2]),
            helper.make_node("Constant", [], ["c"], value=const("", rows(300))),
            node("Mul", "x a", "p"),
            node("Add", "p c", "q"),
            node("Unsqueeze", "q b"),
        ]
        model = files.load(model_of(nodes, [info("x", FLOAT, [300])], [y()]))
        assert small.kinds(model) == ["Mul", "Add", "Unsqueeze"]

    def test_strings_sequences_optionals_and_empty_tensors(self):
        words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
        sequence = helper.make_tensor_sequence_value_info("seq", FLOAT, None)
        nodes = [
            helper.make_node("SequenceConstruct", ["x", "x"], ["seq"]),
            helper.make_node("Optional", ["x"], ["opt"]),
            helper.make_node("OptionalGetElement", ["opt"], ["got"]),
            helper.make_node("Concat", ["got", "nothing"], ["y"], axis=0),
            helper.make_node("Identity", ["words"], ["texts"]),
        ]
        outputs = [y(), sequence, info("texts", TensorProto.STRING, [2])]
        tensors = [words, const("nothing", np.zeros((0, 3), np.float32))]
        for version in (15, 21):
            proto = model_of(nodes, [info("x", FLOAT, ["N", 3])], outputs, tensors, opset=version, ir_version=8)
            model = files.load(proto)
            found = on_ort(model, {"x": np.ones((2, 3), np.float32)})
            assert found[0].shape == (2, 3)
            assert len(found[1]) == 2
            assert list(found[2]) == ["a", "b"]

    def test_scalars_and_dimensions_of_size_zero(self):
        proto = model_of([node("Relu", "x")], [info("x", FLOAT, [0, 3])], [y()])
        assert graph.static_shape(files.load(proto).graph.outputs[0]) == (0, 3)
        proto = model_of([node("Relu", "x")], [info("x", FLOAT, [])], [y()])
        assert graph.static_shape(files.load(proto).graph.outputs[0]) == ()

    def test_unordered_nodes_and_names_that_are_missing_or_shadowed(self):
        nodes = [helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Exp", ["x"], ["h"])]
        model = files.load(model_of(nodes, [info("x", FLOAT, ["N"])], [y()]))
        assert small.kinds(model) == ["Exp", "Relu"]
        assert all(n.name for n in model.graph)
        assert len({n.name for n in model.graph}) == 2
        branch = helper.make_graph([node("Exp", "x", "h")], "b", [], [info("h", FLOAT, None)])
        nodes = [node("Abs", "x", "h"), node("Cast", "h", "c", to=TensorProto.BOOL)]
        nodes.append(node("If", "c", then_branch=branch, else_branch=branch))
        model = files.load(model_of(nodes, [info("x", FLOAT, [])], [y()]))
        assert len({v.name for v in graph.all_values(model.graph)}) == len(list(graph.all_values(model.graph)))


class TestSourcesStayUnchanged:
    """A model in memory is the caller's."""

    @pytest.mark.parametrize("kind", small.SMALL)
    @pytest.mark.parametrize("version", [17, 21])
    def test_protos_and_models(self, kind, version):
        proto = small.SMALL[kind](0)
        proto.opset_import[0].version = version  # their operators have one form in both
        for n in proto.graph.node:
            n.name = ""  # so that names must be given
        before = proto.SerializeToString(deterministic=True)
        files.load(proto)
        assert proto.SerializeToString(deterministic=True) == before
        model = ir.from_proto(proto)
        before = small.serialized(model)
        loaded = files.load(model)
        for name in list(loaded.graph.initializers):
            loaded.graph.initializers[name].name = f"{name}_renamed"
        assert small.serialized(model) == before

    def test_names_that_are_taken_twice(self):
        then, other = (helper.make_graph([node("Exp", "x", "t")], "b", [], [info("t", FLOAT, None)]) for _ in range(2))
        nodes = [node("Cast", "x", "c", to=TensorProto.BOOL), node("If", "c", then_branch=then, else_branch=other)]
        model = ir.from_proto(model_of(nodes, [info("x", FLOAT, [])], [y()]))
        before = small.serialized(model)
        files.load(model)
        assert small.serialized(model) == before


class TestSave:
    """What is written is whole or not there."""

    def test_round_trip(self, tmp_path):
        model = files.load(small.cnn(0))
        before = small.serialized(model)
        assert files.save(model, tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
        assert small.serialized(model) == before
        again = files.load(tmp_path / "m.onnx")
        feeds = small.feeds(model, 0)
        np.testing.assert_array_equal(small.run(again, feeds)["y"], small.run(model, feeds)["y"])

    @pytest.mark.parametrize("limit", [0, 1 << 40])
    @pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(28, "No space left on device")])
    def test_a_failure_keeps_the_old_file(self, tmp_path, monkeypatch, error, limit):
        monkeypatch.setattr(files, "EXTERNAL_BYTES", limit)
        path = tmp_path / "m.onnx"
        path.write_bytes(b"old")
        (tmp_path / "m.onnx.data").write_bytes(b"old data")

        def half(model, target, **more):
            with open(target, "wb") as stream:
                stream.write(b"half")
            if more:
                (target.parent / more["external_data"]).write_bytes(b"half")
            raise error

        monkeypatch.setattr(ir, "save", half)
        expected = OutputError if isinstance(error, OSError) else RuntimeError
        with pytest.raises(expected, match="No space left" if expected is OutputError else "boom"):
            files.save(files.load(small.cnn(0)), path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.onnx": b"old", "m.onnx.data": b"old data"}

    def test_a_long_name(self, tmp_path):
        path = tmp_path / ("m" * 250)
        assert files.save(files.load(small.cnn(0)), path) == [path]
        assert list(tmp_path.iterdir()) == [path]

    def test_large_weights_go_beside_the_model(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "EXTERNAL_BYTES", 1000)
        monkeypatch.setattr(files, "_EXTERNAL_THRESHOLD", 100)
        model, path = files.load(small.cnn(0)), tmp_path / "m.onnx"
        before, feeds = small.serialized(model), small.feeds(model, 0)
        assert files.save(model, path) == [path, tmp_path / "m.onnx.data"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
        assert any(
            t.data_location == TensorProto.EXTERNAL for t in onnx.load(path, load_external_data=False).graph.initializer
        )
        assert small.serialized(model) == before
        again = files.load(path)
        for name, value in model.graph.initializers.items():
            np.testing.assert_array_equal(again.graph.initializers[name].const_value.numpy(), value.const_value.numpy())
        assert files.save(again, path) == [path, tmp_path / "m.onnx.data"]
        third = files.load(path)
        np.testing.assert_array_equal(small.run(third, feeds)["y"], small.run(model, feeds)["y"])

    def test_places_that_cannot_be_written(self, tmp_path):
        model = files.load(small.mlp(0))
        with pytest.raises(OutputError, match="is a folder"):
            files.save(model, tmp_path)
        with pytest.raises(OutputError, match="does not exist"):
            files.save(model, tmp_path / "no" / "m.onnx")
        with pytest.raises(OutputError, match="cannot be written"):
            files.save(model, tmp_path / ("m" * 300))
        assert not list(tmp_path.iterdir())

    def test_a_device_is_not_replaced(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OutputError, match="is no ordinary file"):
            files.check_writable(tmp_path / "pipe")

    def test_a_link_leads_to_the_file_that_is_written(self, tmp_path):
        (tmp_path / "link.onnx").symlink_to("m.onnx")
        files.save(files.load(small.mlp(0)), tmp_path / "link.onnx")
        assert (tmp_path / "link.onnx").is_symlink()
        assert (tmp_path / "m.onnx").is_file()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="not writable"):
            files.check_writable(tmp_path / "m.onnx")
