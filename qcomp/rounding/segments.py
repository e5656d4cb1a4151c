"""A model run piece by piece: every operator once a sample, what later pieces read kept on disk.

The model is cut at values that somebody wants to look at, in stages. A stage runs what its values need and has not
run yet, batch by batch; the frontier, values that a stage makes and a later one reads, is spooled to a folder. Memory
does not grow with the samples, and between two stages the graph behind the cut may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcomp import graph, runtime
from qcomp.graph import Array
from qcomp.runtime import Feeds


class Segments:
    """One model in stages.

    Args:
        model: the model; the graph in front of a stage must not change any more once that stage runs.
        stages: the values wanted of each stage.
        folder: an existing one, of its own.
        threads: of ONNX Runtime.
    """

    def __init__(
        self, model: ir.Model, stages: Sequence[Sequence[ir.Value]], folder: Path, *, threads: int = 1
    ) -> None:
        self._model, self._stages, self._folder, self._threads = model, stages, folder, threads
        self._nodes: list[list[ir.Node]] = [[] for _ in stages]
        self._last_read: dict[ir.Value, int] = {}
        self._kept: dict[ir.Value, np.dtype[Any]] = {}
        self._files: dict[ir.Value, list[Path]] = {}
        """Of each value that is kept, one a batch."""
        self._count = 0
        self._runner: _Runner | None = None
        self._position = {node: index for index, node in enumerate(model.graph)}
        self._repeated = _repeated(model.graph)
        seen: set[ir.Node] = set()
        for stage, wanted in enumerate(stages):
            self._schedule(stage, wanted, seen)

    def _schedule(self, stage: int, wanted: Iterable[ir.Value], seen: set[ir.Node]) -> None:
        """Find the nodes of a stage, and note until when each value is read."""
        again: set[ir.Node] = set()
        stack = list(wanted)
        while stack:
            value = stack.pop()
            node = value.producer()
            if node is not None and node in self._repeated:
                if node not in again:
                    again.add(node)
                    stack += reads(node)
                continue
            self._last_read[value] = stage
            if node is not None and node not in seen:
                seen.add(node)
                self._nodes[stage].append(node)
                stack += reads(node)

    def _nodes_of(self, stage: int) -> list[ir.Node]:
        """The nodes of a stage with those that are repeated, in the graph's order."""
        found = dict.fromkeys(self._nodes[stage])
        stack = [v for node in found for v in reads(node)]
        while stack:
            node = stack.pop().producer()
            if node is not None and node in self._repeated and node not in found:
                found[node] = None
                stack += reads(node)
        return sorted(found, key=self._position.__getitem__)

    def begin(self, feeds: Feeds) -> None:
        """Keep the inputs of the next batch."""
        for value in self._model.graph.inputs:
            if value in self._last_read and str(value.name) in feeds:
                self._keep(value, feeds[str(value.name)])

    def open(self, stage: int) -> None:
        """Prepare to run a stage; its part of the graph is read now."""
        nodes = self._nodes_of(stage)
        made = dict.fromkeys(v for node in nodes for v in node.outputs)
        read = dict.fromkeys(v for node in nodes for v in reads(node) if v not in made)
        later = [v for v in made if self._last_read.get(v, -1) > stage]
        wanted = [v for v in dict.fromkeys(self._stages[stage]) if v in made]
        constants = [v for v in read if v not in self._kept and graph.constant_tensor(v) is not None]
        inputs = [v for v in read if v in self._kept]
        outputs = list(dict.fromkeys([*wanted, *later]))
        self._runner = None
        if outputs:
            view = ir.GraphView(
                inputs,
                outputs,
                nodes=nodes,
                initializers=constants,
                opset_imports=self._model.graph.opset_imports,
                name="segment",
            )
            types = {str(v.name): self._kept[v] for v in inputs}
            self._runner = _Runner(self._model, view.clone(), inputs, outputs, types, self._threads)

    def run(self, stage: int, batch: int) -> dict[ir.Value, Array]:
        """The wanted values of a batch."""
        arrays: dict[ir.Value, Array] = {}
        if self._runner is not None:
            arrays = self._runner({v: self._load(v, batch) for v in self._runner.inputs})
            for value, array in arrays.items():
                if self._last_read.get(value, -1) > stage:
                    self._keep(value, array)
        return {v: arrays[v] if v in arrays else self._load(v, batch) for v in self._stages[stage]}

    def close(self, stage: int) -> None:
        """Forget what no later stage reads."""
        for value in [v for v in self._kept if self._last_read[v] <= stage]:
            del self._kept[value]
            for path in self._files.pop(value):
                path.unlink()

    def _keep(self, value: ir.Value, array: Array) -> None:
        self._kept[value] = array.dtype
        self._count += 1
        path = self._folder / f"{self._count}.npy"
        self._files.setdefault(value, []).append(path)
        np.save(path, array, allow_pickle=False)

    def _load(self, value: ir.Value, batch: int) -> Array:
        loaded: Array = np.load(self._files[value][batch], allow_pickle=False)
        return loaded


class _Runner:
    """A session of a part of a graph, whose inputs are values of the whole."""

    def __init__(
        self,
        model: ir.Model,
        part: ir.Graph,
        inputs: list[ir.Value],
        outputs: list[ir.Value],
        types: dict[str, np.dtype[Any]],
        threads: int,
    ) -> None:
        self.inputs, self._outputs = inputs, outputs
        for value in part.inputs:
            value.type = ir.TensorType(ir.DataType.from_numpy(types[str(value.name)]))
        functions = [function.clone() for function in model.functions.values()]
        whole = ir.Model(part, ir_version=model.ir_version, functions=functions)
        self._session = runtime.session(whole, threads=threads)

    def __call__(self, arrays: dict[ir.Value, Array]) -> dict[ir.Value, Array]:
        feeds = {str(v.name): array for v, array in arrays.items()}
        results = runtime.run(self._session, [str(v.name) for v in self._outputs], feeds)
        return dict(zip(self._outputs, results, strict=True))


def _repeated(target: ir.Graph) -> set[ir.Node]:
    """What every stage runs anew where it needs it: DequantizeLinear, whose input is smaller to keep, and constants."""
    constants: set[ir.Node | None] = set()
    found: set[ir.Node] = set()
    for node in target:
        if all(v.producer() in constants or graph.constant_tensor(v) is not None for v in reads(node)):
            constants.add(node)
            found.add(node)
        elif graph.is_op(node, "DequantizeLinear"):
            found.add(node)
    return found


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads of its own graph, its subgraphs' reads included."""
    found = [v for v in node.inputs if v is not None]
    for sub in graph.subgraphs(node):
        inner = ir.traversal.RecursiveGraphIterator(sub)
        found += [v for n in inner for v in n.inputs if v is not None and v.graph is node.graph]
        found += [v for v in sub.outputs if v.graph is node.graph]
    return found
