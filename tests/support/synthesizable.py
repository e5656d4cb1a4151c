"""A lint of C++ for high-level synthesis: what a vendor's tool would refuse, or quietly make slow or wrong.

clang compiles the design as it is synthesized (``QCOMP_HLS``), LLVM's scalar evolution proves the trip counts, and the
rules below are read from the intermediate code of what the top function calls, after all templates are instantiated.
Functions in the include folders stand for the vendor's headers: they may be called and are not looked into.

Rules:
    compile      clang accepts the code, without a warning of -Wall -Wextra.
    loop         scalar evolution knows how often each loop runs; it has one entry and one exit.
    pipeline     innermost loops are pipelined or unrolled.
    pragma       directives, their arguments and places are among those of ``hls_pragmas.ALLOWED``.
    stream       a stream has one producer and one consumer; reads and writes wait.
    dataflow     a function that declares streams is straight calls.
    float        no floating point.
    heap         no memory of the heap, and none of a size that is not constant.
    recursion    no function calls itself, on whatever way.
    indirect     no call through a pointer, no assembly.
    call         no call of anything that is not part of the design.
    division     divisors are constant powers of two.
    initializer  no variable is initialized when the program starts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hls_pragmas
import hls_streams
import networkx as nx
from llvm_ir import Call, CompileError, Function, Module, Place, compile_files, why_not, zig

__all__ = ["Finding", "lint", "why_not"]

OWN_STREAM = Path(__file__).with_name("synthesis")
FLAGS = (
    "-std=c++14",
    "-DQCOMP_HLS",
    "-D__SYNTHESIS__",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
)
HEAP = re.compile(r"_Zn[wa]|_Zd[la]|(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|alloca)$")
ALLOWED_CALLS = re.compile(r"lint_stream_|mem(cpy|set|move)$|__clang_call_terminate$")
FLOAT = re.compile(r"\b(half|bfloat|float|double|x86_fp80|fp128)\b")


@dataclass(frozen=True, order=True)
class Finding:
    """A place where a rule is broken.

    Args:
        file: below the folder that was looked at, or as clang names it.
        line: 0 if it is not known.
        rule: see above.
    """

    file: str
    line: int
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.what}"


def lint(folder: Path, includes: Sequence[Path] = (), top: str | None = None) -> list[Finding]:
    """What is not synthesizable in the ``*.cpp`` of a folder, with all they include from it.

    Args:
        includes: folders of the vendor's headers, or of stand-ins for them.
        top: the C name of the function that is synthesized; without one, every function of the folder is looked at.
    """
    return Lint(folder.resolve(), [path.resolve() for path in includes], top).run()


class Lint:
    """One run over one folder."""

    def __init__(self, folder: Path, includes: list[Path], top: str | None):
        self.folder, self.includes, self.top = folder, includes, top
        self.findings: set[Finding] = set()

    def run(self) -> list[Finding]:
        vendor = [f"-isystem{path}" for path in (OWN_STREAM, *self.includes)]
        flags = [*FLAGS, f"-I{self.folder}", *vendor]
        sources = sorted(self.folder.rglob("*.cpp"))
        with tempfile.TemporaryDirectory() as scratch:
            try:
                for source in sources:
                    reader = hls_pragmas.Reader(self.own, self.report)
                    reader.read(zig("c++", *flags, "-E", source, folder=Path(scratch))[0])
                module, said = compile_files(sources, flags, Path(scratch))
            except CompileError as error:
                self._diagnostics(str(error))
                return sorted(self.findings) or [Finding("", 0, "compile", str(error))]
        self._diagnostics(said)
        self._check_module(module)
        return sorted(self.findings)

    def own(self, file: str) -> bool:
        """Whether a file is one of the design's."""
        path = Path(file)
        return path.is_relative_to(self.folder) and not any(path.is_relative_to(other) for other in self.includes)

    def report(self, place: Place, rule: str, what: str) -> None:
        """Take down a finding, once."""
        path = Path(place.file)
        file = str(path.relative_to(self.folder)) if self.own(place.file) else place.file
        self.findings.add(Finding(file, place.line, rule, what))

    def _diagnostics(self, said: str) -> None:
        for file, line, what in re.findall(
            r"^(.*?):(\d+):\d+: (?:warning|(?:fatal )?error): (.*)$", said, re.MULTILINE
        ):
            self.report(Place(file, int(line)), "compile", what)

    # ---- rules over the intermediate code ----

    def _check_module(self, module: Module) -> None:
        if self.top is not None and self.top not in module.functions:
            self.findings.add(Finding("", 0, "compile", f"there is no function {self.top}"))
            return
        own = {name: function for name, function in module.functions.items() if self.own(function.place.file)}
        graph = nx.DiGraph()
        graph.add_nodes_from(own)
        graph.add_edges_from((name, call.callee) for name, f in own.items() for call in f.calls if call.callee in own)
        reached = set(own) if self.top is None else {self.top, *nx.descendants(graph, self.top)}
        effects = hls_streams.effects_of(module)
        for name in reached:
            self._check_function(module, own[name])
            hls_streams.check(own[name], effects, name == self.top, self.report)
            hls_streams.check_waits(own[name], effects, set(own), self.report)
        self._check_recursion(graph.subgraph(reached), own)
        self._check_initializers(own)

    def _check_recursion(self, graph: nx.DiGraph, own: dict[str, Function]) -> None:
        for group in nx.strongly_connected_components(graph):
            for name in group:
                if len(group) > 1 or graph.has_edge(name, name):
                    self.report(own[name].place, "recursion", "a function calls itself")

    def _check_initializers(self, own: dict[str, Function]) -> None:
        for name, function in own.items():
            if name.startswith("__cxx_global_var_init"):
                place = next((call.place for call in function.calls), function.place)
                self.report(place, "initializer", "a variable is computed when the program starts")

    def _check_function(self, module: Module, function: Function) -> None:
        self._check_loops(function)
        for line in function.lines:
            self._check_instruction(function, line)
        for call in function.calls:
            self._check_call(module, call)

    def _check_loops(self, function: Function) -> None:
        for block, count in function.loops.items():
            if not re.fullmatch(r"backedge-taken count is (i\d+ )?-?\d+", count):
                self.report(function.loop_place(block), "loop", f"no constant trip count: {count}")
        for block in function.irreducible:
            self.report(function.loop_place(block), "loop", "a loop has several entries")

    def _check_instruction(self, function: Function, line: str) -> None:
        code = re.sub(r'c?"(\\.|[^"\\])*"|[@%!][\w.$]+', "", line.split(", !dbg")[0])
        if FLOAT.search(code) and "#dbg" not in line and " alloca " not in line:
            self.report(function.place_of(line), "float", "floating point")
        if re.search(r" = alloca [^,]+, i\d+ %", line):
            self.report(function.place_of(line), "heap", "memory of a size that is not constant")
        divided = re.search(r" = [su](?:div|rem)(?: exact)? i\d+ [^,]+, (\S+?),? ", line + " ")
        if divided and not _is_power_of_two(divided[1]):
            self.report(function.place_of(line), "division", "a divisor is not a constant power of two")
        if re.search(r"\bcall\b.*\basm\b", code):
            self.report(function.place_of(line), "indirect", "assembly")

    def _check_call(self, module: Module, call: Call) -> None:
        name = call.callee
        if name is None:
            self.report(call.place, "indirect", "a call through a pointer")
        elif HEAP.match(name):
            self.report(call.place, "heap", f"memory of the heap: {name}")
        elif name not in module.functions:
            if not ALLOWED_CALLS.match(name):
                self.report(call.place, "call", f"{name} is not part of the design")
        else:
            self._check_known_call(module, call, module.functions[name])

    def _check_known_call(self, module: Module, call: Call, callee: Function) -> None:
        file = Path(callee.place.file)
        vendors = any(file.is_relative_to(folder) for folder in (OWN_STREAM, *self.includes))
        if callee.place.file and not vendors and not self.own(callee.place.file):
            self.report(call.place, "call", f"{callee.name} is not part of the design")
        if vendors and re.match(r"operator[/%]", module.name(callee)):
            self.report(call.place, "division", "numbers of arbitrary width are divided")


def _is_power_of_two(text: str) -> bool:
    return re.fullmatch(r"\d+", text) is not None and int(text).bit_count() == 1
