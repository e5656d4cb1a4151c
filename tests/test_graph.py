"""The helpers over onnx_ir: structure, names, edits, and calls of onnx's functions."""

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as small
from named_values import chain, node_of, value

from qcomp import graph
from qcomp.errors import ModelError
from qcomp.graph import Names


class TestVerify:
    """Each violation is found and named."""

    @pytest.mark.parametrize("kind", small.SMALL)
    def test_accepts_valid_graphs(self, kind):
        graph.verify(ir.from_proto(small.SMALL[kind](0)))

    def refused(self, model, message):
        with pytest.raises(ModelError, match=message):
            graph.verify(model)

    def test_reads_what_is_removed(self):
        model = chain()
        model.graph.remove(node_of(model, "a"))
        self.refused(model, "Mul 'node_b': reads 'a', which nothing before it defines")

    def test_reads_what_comes_later(self):
        model = chain()
        first = node_of(model, "a")
        model.graph.remove(first)
        model.graph.append(first)
        self.refused(model, "Mul 'node_b': reads 'a'")

    def test_reads_an_initializer_that_is_not_registered(self):
        model = chain()
        model.graph.initializers.pop("w")
        self.refused(model, "Mul 'node_b': reads 'w'")

    def test_reads_a_value_of_another_graph(self):
        model = chain()
        node_of(model, "b").replace_input_with(1, value(chain(), "w"))
        self.refused(model, "reads 'w'")

    def test_one_name_for_two_values(self):
        model = chain()
        value(model, "b").name = "a"
        self.refused(model, "Mul 'node_b': the value 'a' is defined twice")

    def test_the_name_of_an_input(self):
        model = chain()
        value(model, "b").name = "x"
        self.refused(model, "'x' is defined twice")

    def test_an_output_that_nothing_defines(self):
        model = chain()
        model.graph.outputs.append(ir.Value(name="z"))
        self.refused(model, "nothing defines the output 'z'")

    def test_an_initializer_without_a_tensor(self):
        model = chain()
        value(model, "w").const_value = None
        self.refused(model, "the initializer 'w' has no tensor")

    def test_a_branch_that_reads_what_is_not_there(self):
        model = ir.from_proto(small.branches(0))
        branch = next(sub for node in model.graph for sub in graph.subgraphs(node))
        branch[-1].replace_input_with(0, value(chain(), "a"))
        self.refused(model, "reads 'a'")

    def test_a_branch_that_hides_an_outer_name(self):
        model = ir.from_proto(small.branches(0))
        branch = next(sub for node in model.graph for sub in graph.subgraphs(node))
        branch[0].outputs[0].name = model.graph.node(0).outputs[0].name
        self.refused(model, "is defined twice")

    def test_a_value_of_one_branch_is_unknown_in_the_other_and_after(self):
        model = ir.from_proto(small.branches(0))
        then, other = (sub for node in model.graph for sub in graph.subgraphs(node))
        inner = then[0].outputs[0]
        other[0].replace_input_with(0, inner)
        self.refused(model, "reads")
        model = ir.from_proto(small.branches(0))
        branch = next(sub for node in model.graph for sub in graph.subgraphs(node))
        model.graph[-1].replace_input_with(0, branch[0].outputs[0])
        self.refused(model, "Add 'node_y': reads")

    def test_branches_may_use_the_same_names(self):
        model = ir.from_proto(small.branches(0))
        for node in model.graph:
            for sub in graph.subgraphs(node):
                sub[-1].outputs[0].name = "same"
        graph.verify(model)


class TestNames:
    """Fresh names."""

    def test_are_fresh_and_keep_the_wanted_one_where_it_is_free(self):
        names = Names(chain().graph)
        assert names.fresh("new") == "new"
        assert names.fresh("new") == "new_1"
        assert names.fresh("w") == "w_1"
        assert names.fresh("w") == "w_2"
        assert names.fresh("w_1") == "w_1_1"

    def test_know_those_of_branches(self):
        names = Names(ir.from_proto(small.branches(0)).graph)
        assert names.fresh("then_y") != "then_y"

    def test_are_never_given_twice(self):
        names, rng = Names(chain().graph), np.random.default_rng(0)
        given = [names.fresh("a" + "_1" * int(rng.integers(3))) for _ in range(500)]
        assert len({*given, "a"}) == 501

    def test_cost_the_same_however_often_one_is_wanted(self):
        def lookups(count):
            names, steps = Names(chain().graph), 0

            def tally(frame, event, argument):
                nonlocal steps
                steps += 1
                return tally

            sys.settrace(tally)
            try:
                for _ in range(count):
                    names.fresh("same")
            finally:
                sys.settrace(None)
            return steps

        assert lookups(400) <= 5 * lookups(100)


class TestInitializers:
    """New constants replace nothing."""

    def test_a_taken_name(self):
        model = chain()
        new = graph.initializer(model.graph, Names(model.graph), "w", np.float32([7]))
        assert new.name == "w_1"
        assert value(model, "w").const_value.numpy().tolist() == [2, 3]
        model.graph.outputs.append(new)
        proto = ir.to_proto(model)
        assert {t.name for t in proto.graph.initializer} == {"w", "w_1"}

    @pytest.mark.parametrize("array", [np.float32(3), np.zeros((0, 2), np.int64), np.ones((3, 2), np.int8).T])
    def test_any_shape(self, array):
        model = chain()
        array = np.asarray(array)
        new = graph.initializer(model.graph, Names(model.graph), "c", array)
        assert new.const_value.numpy().shape == array.shape == graph.static_shape(new)
        np.testing.assert_array_equal(graph.constant(new), array)
        assert new.dtype == ir.DataType.from_numpy(array.dtype)

    def test_a_tensor_of_another_name(self):
        model = chain()
        new = graph.initializer(model.graph, Names(model.graph), "c", ir.Tensor(np.float32([1]), name="else"))
        model.graph.outputs.append(new)
        assert "c" in {t.name for t in ir.to_proto(model).graph.initializer}

    def test_set_constant_of_its_own(self):
        model = chain()
        node_of(model, "y").replace_input_with(1, value(model, "x"))
        graph.set_constant(node_of(model, "b"), 1, np.asarray(np.float32(5)), Names(model.graph), "weight")
        found = node_of(model, "b").inputs[1]
        assert found.name == "w"
        assert found.const_value.numpy().shape == graph.static_shape(found) == ()
        graph.verify(model)

    def test_set_constant_that_is_shared(self):
        model = chain()
        graph.set_constant(node_of(model, "b"), 1, np.float32([8, 9]), Names(model.graph), "weight")
        assert node_of(model, "b").inputs[1].name == "w_1"
        assert graph.constant(node_of(model, "y").inputs[1]).tolist() == [2, 3]
        graph.verify(model)
        found = small.run(model, {"x": np.ones((1, 2), np.float32)})["y"]
        assert found.tolist() == [[10, 12]]

    def test_set_constant_where_there_was_none(self):
        b = small.Builder()
        b.op("Gemm", b.input("x", ["N", 2]), b.constant(np.eye(2)), name="y")
        model = ir.from_proto(b.model("y"))
        graph.set_constant(node_of(model, "y"), 2, np.float32([1, 2]), Names(model.graph), "bias")
        assert node_of(model, "y").inputs[2].name == "y_bias"
        assert small.run(model, {"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1, 2]]

    def test_drop_unread(self):
        model = chain()
        graph.drop_unread(value(model, "w"))
        assert "w" in model.graph.initializers
        unread = graph.initializer(model.graph, Names(model.graph), "unread", np.float32([1]))
        graph.drop_unread(unread)
        assert "unread" not in model.graph.initializers
        shown = graph.initializer(model.graph, Names(model.graph), "shown", np.float32([1]))
        model.graph.outputs.append(shown)
        graph.drop_unread(shown)
        assert "shown" in model.graph.initializers


class TestEdits:
    """redirect, take_over, remove, detach."""

    def test_redirect(self):
        model = chain()
        graph.redirect(value(model, "a"), value(model, "x"))
        assert node_of(model, "b").inputs[0].name == "x"
        assert not value(model, "a").uses()

    def test_redirect_keeps_nodes_and_outputs(self):
        model = chain()
        model.graph.outputs.append(value(model, "a"))
        graph.redirect(value(model, "a"), value(model, "x"), keep=[node_of(model, "b")])
        assert node_of(model, "b").inputs[0].name == "a"
        graph.redirect(value(model, "a"), value(model, "x"))
        assert node_of(model, "b").inputs[0].name == "x"
        assert [v.name for v in model.graph.outputs] == ["y", "a"]

    def test_redirect_of_a_node_that_reads_it_twice_and_in_a_branch(self):
        model = chain()
        for index in (0, 1):
            node_of(model, "b").replace_input_with(index, value(model, "a"))
        graph.redirect(value(model, "a"), value(model, "x"))
        assert [v.name for v in node_of(model, "b").inputs] == ["x", "x"]
        model = ir.from_proto(small.branches(0))
        branch = next(sub for node in model.graph for sub in graph.subgraphs(node))
        outer = branch[0].inputs[0]
        graph.redirect(outer, model.graph.inputs[0])
        assert branch[0].inputs[0] is model.graph.inputs[0]

    def test_take_over_a_graph_output(self):
        model = chain()
        old, new = value(model, "y"), value(model, "b")
        model.graph.outputs.append(old)
        graph.take_over(old, new)
        graph.remove(model.graph, [old.producer()])
        assert [v.name for v in model.graph.outputs] == ["y", "y"]
        assert all(v is new for v in model.graph.outputs)
        model.graph.outputs.pop()
        graph.verify(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)

    def test_take_over_inside(self):
        model = chain()
        old = value(model, "a")
        kind, shape = old.type, old.shape
        new = ir.Node("", "Identity", [value(model, "x")], outputs=[ir.Value(name="fresh")], name="i").outputs[0]
        model.graph.insert_before(old.producer(), new.producer())
        graph.take_over(old, new)
        graph.remove(model.graph, [old.producer()])
        assert node_of(model, "b").inputs[0] is new
        assert (new.name, new.type, new.shape) == ("a", kind, shape)
        graph.verify(model)

    def test_remove_takes_initializers_that_nothing_reads_any_more(self):
        model = chain()
        nodes = [node_of(model, "b"), node_of(model, "y")]
        model.graph.outputs[0] = value(model, "a")
        graph.remove(model.graph, [nodes[1]])
        assert "w" in model.graph.initializers
        graph.remove(model.graph, [nodes[0]])
        assert "w" not in model.graph.initializers
        assert small.kinds(model) == ["Relu"]
        graph.remove(model.graph, [])
        graph.verify(model)

    def test_remove_refuses_what_is_still_read(self):
        model = chain()
        with pytest.raises(ValueError, match="a"):
            graph.remove(model.graph, [node_of(model, "a")])

    def test_detach(self):
        model = chain()
        nodes = [node_of(model, "b"), node_of(model, "y")]
        graph.detach(nodes)
        assert "w" not in model.graph.initializers
        assert not value(model, "a").uses()


class TestFacts:
    """Questions about nodes and values."""

    def test_is_op(self):
        def made(domain, kind="Relu"):
            return ir.Node(domain, kind, [])

        assert graph.is_op(made(""), "Exp", "Relu")
        assert graph.is_op(made("ai.onnx"), "Relu")
        assert not graph.is_op(made("com.microsoft"), "Relu")
        assert not graph.is_op(made("ai.onnx.ml"), "Relu")
        assert not graph.is_op(None, "Relu")
        assert graph.is_op(made("com.microsoft"), "Relu", domain="com.microsoft")
        assert graph.is_op(made("ai.onnx.ml", "Scaler"), "Scaler", domain="ai.onnx.ml")

    def test_constants(self):
        b = small.Builder()
        x = b.input("x", ["N"])
        c = b.op("Constant", name="c", value_float=2.0)
        b.op("Add", b.op("Mul", x, c), b.constant(np.float32([[3]]), "w"), name="y")
        model = ir.from_proto(b.model("y"))
        assert graph.constant(value(model, "c")) == 2
        assert graph.scalar(value(model, "w")) == 3
        assert graph.constant(value(model, "x")) is None
        assert graph.constant(value(model, "y")) is None
        assert graph.constant(None) is None
        assert graph.scalar(value(chain(), "w")) is None

    def test_a_constant_that_is_a_graph_input_may_change(self):
        model = chain()
        model.graph.inputs.append(value(model, "w"))
        assert graph.constant(value(model, "w")) is None

    def test_users_shapes_and_attributes(self):
        model = chain()
        assert graph.only_user(value(model, "a")) is node_of(model, "b")
        assert graph.only_user(value(model, "w")) is None
        assert graph.only_user(value(model, "y")) is None
        assert graph.static_shape(value(model, "x")) == (None, 2)
        assert graph.static_shape(ir.Value(name="v")) is None
        assert (graph.rank(value(model, "x")), graph.rank(ir.Value(name="v")), graph.rank(None)) == (2, None, None)
        assert graph.is_float(value(model, "x"))
        assert not graph.is_float(ir.Value(name="v"))
        conv = next(iter(ir.from_proto(small.cnn(0)).graph))
        assert tuple(graph.attribute(conv, "pads", None)) == (1, 1, 1, 1)
        assert graph.attribute(conv, "group", 1) == 1

    def test_all_values_reach_into_branches(self):
        found = [v.name for v in graph.all_values(ir.from_proto(small.branches(0)).graph)]
        assert {"x", "y", "then_y", "else_y"} <= set(found)

    def test_main_graph(self):
        model = chain()
        assert graph.main_graph(node_of(model, "a")) is model.graph
        with pytest.raises(ModelError, match="in no graph"):
            graph.main_graph(ir.Node("", "Relu", [], name="alone"))


def test_arrays_of_equal_contents_have_one_short_key():
    array = np.arange(6, dtype=np.int8)
    assert graph.contents(array) == graph.contents(array.copy())
    others = [array[::-1], array.astype(np.uint8), array.reshape(2, 3), array[:5], np.int8(1)]
    assert len({graph.contents(np.asarray(other)) for other in (array, *others)}) == 6
    strided = np.asfortranarray(array.reshape(2, 3))
    assert graph.contents(strided) == graph.contents(array.reshape(2, 3))
    assert len(graph.contents(np.zeros(1 << 16))[-1]) == 32
