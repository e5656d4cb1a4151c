"""C++ as LLVM's intermediate code, with what LLVM's analyses say about its loops.

clang and LLVM come from the package ``ziglang``: ``zig c++`` writes bitcode, and the linker in it runs the passes it is
told to on all files together, among them those that print.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PASSES = "function(sroa,loop-simplify,instnamer),print,function(print<scalar-evolution>,print<cycles>)"
"""Local variables into registers, loops into their normal form, names for all values (numbers are slow to print)."""
SECONDS = 300
_CALLEE = re.compile(r'(@"[^"]+"|@[\w.$]+|%"[^"]+"|%[\w.]+)\(')
_VALUE = re.compile(r'(%"[^"]+"|%[\w.]+|@"[^"]+"|@[\w.$]+)\)*$')


def why_not() -> str | None:
    """Why nothing can be compiled here, if so."""
    return None if importlib.util.find_spec("ziglang") else "the package ziglang is not installed"


class CompileError(Exception):
    """What clang or the linker says."""


@dataclass(frozen=True)
class Place:
    """A place in a source file; line 0 if it is not known."""

    file: str = ""
    line: int = 0


Report = Callable[[Place, str, str], None]
"""Takes place, rule and text of a finding."""


@dataclass(frozen=True)
class Call:
    """A call as an instruction.

    Args:
        callee: the mangled name, or none where a pointer is called.
        arguments: the values given, as the intermediate code names them; empty text for constants.
    """

    callee: str | None
    arguments: tuple[str, ...]
    place: Place


@dataclass
class Function:
    """A function that has a body.

    Args:
        name: mangled.
        lines: its text, the signature first.
        loops: what scalar evolution says of each loop's count, by the loop's first block.
        irreducible: the first block of each cycle that has several entries.
    """

    name: str
    place: Place
    lines: list[str]
    module: Module = field(repr=False)
    loops: dict[str, str] = field(default_factory=dict)
    irreducible: list[str] = field(default_factory=list)

    def place_of(self, line: str) -> Place:
        """Where an instruction comes from."""
        found = re.search(r"!dbg !(\d+)", line)
        return self.module.place(int(found[1])) if found else self.place

    @cached_property
    def parameters(self) -> list[str]:
        """The names of its parameters, in order."""
        return split_arguments(self.lines[0])

    @cached_property
    def pointers(self) -> list[str]:
        """Those of its parameters that are pointers or references."""
        return [value for value in self.parameters if re.search(rf"[(,] ?ptr [^,]*{value}[,)]", self.lines[0])]

    def is_raw(self, value: str) -> bool:
        """Whether a parameter is a pointer; what a reference points to can be dereferenced."""
        return bool(re.search(rf"[(,] ?ptr (?![^,]*dereferenceable)[^,]*{re.escape(value)}[,)]", self.lines[0]))

    @cached_property
    def calls(self) -> list[Call]:
        """All but those of LLVM's own intrinsics."""
        found = [self._call(line) for line in self.lines[1:] if re.search(r"\b(call|invoke)\b", line)]
        return [call for call in found if not (call.callee or "").startswith("llvm.")]

    def _call(self, line: str) -> Call:
        text = line[re.search(r"\b(call|invoke)\b", line).end() :]
        callee = _CALLEE.search(text)
        named = callee[1][1:].strip('"') if callee and callee[1][0] == "@" else None
        return Call(named, tuple(split_arguments(text)), self.place_of(line))

    def loop_place(self, block: str) -> Place:
        """Where a loop begins."""
        for line in self.lines:
            latch = re.search(rf"\bbr\b.*label %{re.escape(block)}\b.*!llvm\.loop !(\d+)", line)
            if latch:
                return self.module.loop_place(int(latch[1]), self.place)
        start = next((i for i, line in enumerate(self.lines) if re.match(rf"{re.escape(block)}:", line)), 0)
        return next((self.place_of(line) for line in self.lines[start:] if "!dbg" in line), self.place)

    def variable(self, value: str) -> tuple[str, Place]:
        """Name and place of the variable that a value is the address or the contents of."""
        for line in self.lines:
            found = re.search(rf"#dbg_(?:declare|value)\(ptr {re.escape(value)}, !(\d+),", line)
            if found:
                text = self.module.metadata[int(found[1])]
                line_number = int((re.search(r"\bline: (\d+)", text) or [0, "0"])[1])
                name = re.search(r'name: "([^"]*)"', text)
                return (name[1] if name else value), Place(self.place.file, line_number)
        return value.lstrip("%@"), self.place


@dataclass
class Module:
    """All files of a design as one."""

    metadata: dict[int, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    def place(self, number: int) -> Place:
        """Of a location, or of anything that has a scope."""
        text = self.metadata.get(number, "")
        line = re.search(r"\bline: (\d+)", text)
        scope = text
        while "file: !" not in scope:
            outer = re.search(r"scope: !(\d+)", scope)
            if not outer:
                return Place()
            scope = self.metadata.get(int(outer[1]), "")
        return Place(self._file(int(re.search(r"file: !(\d+)", scope)[1])), int(line[1]) if line else 0)

    def name(self, function: Function) -> str:
        """The name of a function in C++, without its scope."""
        found = re.search(r"!dbg !(\d+)", function.lines[0])
        named = re.search(r'name: "([^"]*)"', self.metadata[int(found[1])]) if found else None
        return named[1] if named else ""

    def _file(self, number: int) -> str:
        text = self.metadata[number]
        name, folder = (re.search(rf'{key}: "([^"]*)"', text)[1] for key in ("filename", "directory"))
        return os.path.normpath(os.path.join(folder, name))

    def loop_place(self, number: int, default: Place) -> Place:
        for inner in re.findall(r"!(\d+)", self.metadata.get(number, ""))[1:]:
            if "DILocation(" in self.metadata.get(int(inner), ""):
                return self.place(int(inner))
        return default


def split_arguments(text: str) -> list[str]:
    """The values in the first parenthesis behind a function's name; empty text for those that are constants."""
    callee = _CALLEE.search(text)
    if not callee:
        return []
    parts, depth, start = [], 0, callee.end()
    for i in range(start, len(text)):
        depth += text[i] in "([{<"
        depth -= text[i] in ")]}>"
        if depth < 0 or (depth == 0 and text[i] == ","):
            parts.append(text[start:i].strip())
            start = i + 1
        if depth < 0:
            break
    values = [_VALUE.search(part) for part in parts if part]
    return [value[1] if value else "" for value in values]


def zig(*arguments: object, folder: Path) -> tuple[str, str]:
    """What a command of zig prints, and what it says on its error output; it works in ``folder``.

    Raises:
        CompileError: if it fails.
    """
    import ziglang

    program = Path(ziglang.__file__).with_name("zig")
    caches = {f"ZIG_{kind}_CACHE_DIR": str(folder / "cache") for kind in ("LOCAL", "GLOBAL")}
    # Files, since LLVM writes its error output in small pieces.
    with open(folder / "printed", "w+") as printed, open(folder / "said", "w+", errors="replace") as said:
        command = [str(program), *map(str, arguments)]
        options = {"stdout": printed, "stderr": said, "cwd": folder, "env": os.environ | caches, "timeout": SECONDS}
        done = subprocess.run(command, **options)
        texts = [file.read() for file in (printed, said) if file.seek(0) == 0]
    if done.returncode:
        raise CompileError(texts[1])
    return texts[0], texts[1]


def compile_files(sources: Sequence[Path], flags: Sequence[str], folder: Path) -> tuple[Module, str]:
    """The files as one module, before any optimization but that of local variables, and clang's warnings.

    Raises:
        CompileError: if a file is not valid C++.
    """
    said, objects = "", []
    unoptimized = ["-O1", "-Xclang", "-disable-llvm-passes", "-fno-sanitize=all", "-fno-stack-protector"]
    for number, source in enumerate(sources):
        objects.append(folder / f"{number}.bc")
        said += zig("c++", *flags, *unoptimized, "-g", "-emit-llvm", "-c", source, "-o", objects[-1], folder=folder)[1]
    # With the temporary files, the linker keeps the names of values.
    options = [f"--lto-newpm-passes={PASSES}", "--lto-emit-llvm", "--save-temps=resolution"]
    options += ["-mllvm", "-scalar-evolution-classify-expressions=0"]
    _, printed = zig("ld.lld", "-shared", *options, *objects, "-o", folder / "all.bc", folder=folder)
    return parse(printed), said


def parse(printed: str) -> Module:
    """The module that was printed, with the analyses behind it."""
    module, lines = Module(), iter(printed.splitlines())
    for line in lines:
        if line.startswith("define "):
            body = [line]
            for inner in lines:
                if inner == "}":
                    break
                body.append(inner)
            name = _CALLEE.search(line)[1][1:].strip('"')
            module.functions[name] = Function(name, Place(), body, module)
        elif found := re.match(r"!(\d+) = (.*)", line):
            module.metadata[int(found[1])] = found[2]
    for function in module.functions.values():
        function.place = function.place_of(function.lines[0])
    _parse_analyses(module, printed)
    return module


def _parse_analyses(module: Module, printed: str) -> None:
    function: Function | None = None
    for line in printed.splitlines():
        if found := re.match(r"(?:Determining loop execution counts for: @|CycleInfo for function: )(.*)", line):
            function = module.functions[found[1].strip('"')]
        elif function and (found := re.match(r"Loop %(\S+): (.*backedge-taken count.*)", line)):
            function.loops.setdefault(found[1], found[2])
        elif function and (found := re.match(r"\s+depth=\d+: entries\((\S+) \S.*\)", line)):
            function.irreducible.append(found[1])
