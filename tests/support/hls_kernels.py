"""Programs that run kernels of ``backends/hls/library`` on given words, many calls in one program, in two ways.

As processes: one is the kernel, another one, the tester, sends and receives words in the order of the kernel's
schedule, through streams that hold one word; a kernel that needs another order stops for ever, which is reported.
As in synthesis: all is sent, the kernel called, all received; the order in which it used its streams is logged.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cpp import compile_and_run

from qcomp.backends.hls.schedules import schedule_of

HLS = Path(__file__).parents[2] / "backends" / "hls"
LIBRARY, SIMULATION, LOGGED = HLS / "library", HLS / "simulation", Path(__file__).with_name("logged")
HLS4ML = importlib.util.find_spec("hls4ml")
VENDOR = Path(HLS4ML.origin).parent / "templates/vivado/ap_types" if HLS4ML and HLS4ML.origin else None
"""The folder of Xilinx's ap_int.h (Apache-2.0) in the package hls4ml, which is not imported."""
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
TEMPLATE_ARGUMENTS = ("fork", "convert")

PROGRAM = """
#include <cstdio>
#include <cstdlib>

static long long given() {
    long long number = 0;
    if (std::fread(&number, sizeof number, 1, stdin) != 1) std::exit(6);
    return number;
}

static void print(long long number) { std::fwrite(&number, sizeof number, 1, stdout); }

template <template <int, int> class W, int BITS, int LANES> void send(hls::stream<W<BITS, LANES>>& stream) {
    W<BITS, LANES> word;
    for (auto& lane : word.lane) lane = given();
    stream.write(word);
}

template <template <int, int> class W, int BITS, int LANES> void receive(hls::stream<W<BITS, LANES>>& stream) {
    const W<BITS, LANES> word = stream.read();
    for (const auto& lane : word.lane) print(lane);
}

#ifdef QCOMP_HLS
#define STREAM(...) hls::stream<__VA_ARGS__>
#define CALL(kernel, test)                                             \\
    test;                                                              \\
    uses_of_streams().clear();                                         \\
    kernel;                                                            \\
    for (const auto& name : uses_of_streams()) print(std::atoi(&name[0])); \\
    test;
#else
#define STREAM(...) hls::stream<__VA_ARGS__, 1>
#define CALL(kernel, test) \\
    QCOMP_PROCESS(kernel)  \\
    QCOMP_PROCESS(test)    \\
    QCOMP_JOIN
#endif
"""

CALL = """
namespace call_{number} {{
struct P {{
{members}}};
{roms}
void kernel({parameters}) {{ qcomp::{kernel}<{template}>({arguments}); }}
void test({parameters}) {{
    for (long long left = given(); left > 0; --left) {{
        switch (given()) {{
{cases}        }}
    }}
}}
void run() {{
{streams}    CALL(kernel({names}), test({names}))
    if (!({empty})) std::exit(5);
}}
}}
"""


@dataclass(frozen=True)
class Words:
    """What goes through a stream.

    Args:
        bits: of each number.
        values: int64 (words, lanes).
    """

    bits: int
    values: np.ndarray
    signed: bool = False

    @property
    def kind(self) -> str:
        return f"qcomp::{'Sums' if self.signed else 'Word'}<{self.bits}, {self.values.shape[1]}>"


@dataclass(frozen=True)
class Rom:
    """Constants.

    Args:
        kind: ``rom_word`` or ``rom_int``.
        bits: of each entry.
        values: integers of any shape; what is negative goes into a ``rom_int``.
    """

    name: str
    kind: str
    bits: int
    values: np.ndarray

    def text(self) -> str:
        sizes = "".join(f"[{n}]" for n in self.values.shape)
        suffix = "LL" if self.kind == "rom_int" else "ULL"
        numbers = re.sub(r"(\d+)", rf"\1{suffix}", str(self.values.tolist())).replace("[", "{").replace("]", "}")
        return f"static const qcomp::{self.kind}<{self.bits}> {self.name}{sizes} = {numbers};\n"


def packed(name: str, weights: np.ndarray, bits: int) -> Rom:
    """Signed weights along the last axis in words of at most 64 bits, the first in the lowest bits."""
    per = min(weights.shape[-1], 64 // bits)
    words = -(-weights.shape[-1] // per)
    values = np.zeros((*weights.shape[:-1], words), object)
    for index, weight in np.ndenumerate(weights):
        *row, i = index
        values[(*row, i // per)] |= (int(weight) % (1 << bits)) << (i % per * bits)
    return Rom(name, "rom_word", per * bits, values)


@dataclass(frozen=True)
class Call:
    """A kernel, what goes in, and what should come out."""

    kernel: str
    constants: dict[str, int]
    inputs: Sequence[Words]
    outputs: Sequence[Words]
    roms: Sequence[Rom] = field(default=())

    def steps(self) -> list[tuple[int, int]]:
        """(stream, word) in the order of the schedule; inputs before outputs within an iteration."""
        schedule = schedule_of(self.kernel, self.constants)
        times, words = [*schedule.reads, *schedule.writes], [*self.inputs, *self.outputs]
        assert [len(t) for t in times] == [len(w.values) for w in words]
        steps = [(int(when), stream, word) for stream, t in enumerate(times) for word, when in enumerate(t)]
        return [(stream, word) for _, stream, word in sorted(steps)]

    def dialogue(self, logged: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What the program is given, and what it should print."""
        given, printed, steps = [], [], self.steps()
        is_input = [stream < len(self.inputs) for stream, _ in steps]
        phases = [steps]
        if logged:
            phases = [[s for s, i in zip(steps, is_input, strict=True) if i == before] for before in (True, False)]
            printed.append(np.array([stream for stream, _ in steps]))
        for phase in phases:
            given.append(np.array([len(phase)]))
            for stream, word in phase:
                given.append(np.array([stream]))
                target = given if stream < len(self.inputs) else printed
                target.append([*self.inputs, *self.outputs][stream].values[word])
        return given, printed

    def text(self, number: int) -> str:
        """A namespace with a function ``run``."""
        words = [*self.inputs, *self.outputs]
        names = [f"s{i}" for i in range(len(words))]
        verbs = ["send"] * len(self.inputs) + ["receive"] * len(self.outputs)
        pairs = list(enumerate(zip(words, names, verbs, strict=True)))
        values = ", ".join(map(str, self.constants.values()))
        return CALL.format(
            number=number,
            kernel=self.kernel,
            members="".join(f"    static const int {name} = {value};\n" for name, value in self.constants.items()),
            roms="".join(rom.text() for rom in self.roms),
            parameters=", ".join(f"hls::stream<{w.kind}>& {name}" for _, (w, name, _) in pairs),
            cases="".join(f"            case {i}: {verb}({name}); break;\n" for i, (_, name, verb) in pairs),
            streams="".join(f'    STREAM({w.kind}) {name}("{i}");\n' for i, (w, name, _) in pairs),
            template=values if self.kernel in TEMPLATE_ARGUMENTS else "P",
            arguments=", ".join([*names, *(rom.name for rom in self.roms)]),
            names=", ".join(names),
            empty=" && ".join(f"{name}.empty()" for name in names),
        )


def run(headers: Sequence[str], calls: Sequence[Call], folder: Path) -> None:
    """Run all calls as processes; assert that their outputs are as expected, bit for bit."""
    _run(headers, calls, folder, [LIBRARY, SIMULATION], STRICT, logged=False)


def run_logged(headers: Sequence[str], calls: Sequence[Call], folder: Path, integers: Path = SIMULATION) -> None:
    """Run all calls as in synthesis; assert also that streams are used exactly in the order of the schedule.

    Args:
        integers: the folder of ap_int.h.
    """
    flags = STRICT if integers == SIMULATION else ("-w",)
    _run(headers, calls, folder, [LIBRARY, LOGGED, integers], ("-DQCOMP_HLS", *flags), logged=True)


def _run(
    headers: Sequence[str],
    calls: Sequence[Call],
    folder: Path,
    includes: Sequence[Path],
    flags: Sequence[str],
    logged: bool,
) -> None:
    source = "".join(f'#include "{header}"\n' for header in headers) + PROGRAM
    source += "".join(call.text(i) for i, call in enumerate(calls))
    source += "int main() {\n" + "".join(f"    call_{i}::run();\n" for i in range(len(calls))) + "}\n"
    dialogues = [call.dialogue(logged) for call in calls]
    stdin = np.concatenate([part for given, _ in dialogues for part in given]).astype("<i8").tobytes()
    done = compile_and_run(source, folder, includes, *flags, stdin=stdin)
    result, start = np.frombuffer(done.stdout, "<i8"), 0
    for call, (_, printed) in zip(calls, dialogues, strict=True):
        expected = np.concatenate(printed)
        found = result[start : (start := start + len(expected))]
        assert np.array_equal(found, expected), f"{call.kernel} {call.constants}: {done.stderr.decode()}"
    assert done.returncode == 0, done.stderr.decode()
    assert start == len(result)
