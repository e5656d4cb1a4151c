"""Every kernel of the library is synthesizable, as the lint sees it."""

from pathlib import Path

import pytest
from synthesizable import lint, why_not

from qcomp.backends.hls.schedules import TABLE

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HLS = Path(__file__).parents[3] / "backends" / "hls"
HEADERS = ("matrix_vector", "moves", "pointwise", "pooling", "softmax", "window", "ends")

CONSTANTS = """
struct P {
    static const int H = 6, W = 5, GROUPS = 2, LANES = 2, BITS = 8, PAD = 3, PIXELS = 30, TAPS = 9;
    static const int CHANNELS = 4, TABLE_BITS = 8;
    static const int WORDS = 60, PORT = 16;
    static const int KH = 3, KW = 3, STRIDE_H = 2, STRIDE_W = 1, DILATION_H = 1, DILATION_W = 2, TOP = 1, LEFT = 2;
    static const int OH = 3, OW = 5, BOTTOM = 1, RIGHT = 2, BEFORE = 1, AFTER = 1;
    static const int H0 = 1, SH = 2, W0 = 0, SW = 1, G0 = 0, G1 = 1, A_WORDS = 2, B_WORDS = 3;
    static const int MW = 18, MH = 4, SIMD = 3, PE = 2, ROWS = 4;
    static const int XBITS = 8, WBITS = 5, ABITS = 8, BBITS = 7, YBITS = 8, ACC = 24, MBITS = 16;
    static const int MULTIPLIER = 1234, MA = 55, MB = 66, ZA = 1, ZB = 2, ZX = 3;
    static const int SHIFT = 16, ZERO = 4, LOW = 0, HIGH = 255;
    static const bool IN_LUTS = true, CHANNEL_MAJOR = true;
};
using namespace qcomp;
typedef hls::stream<Word<8, 2>> Words;
typedef hls::stream<Sums<24, 2>> Accumulators;
static const rom_word<15> dense[2 * 6][2][1] = {{{0x7fffULL}, {1}}};
static const rom_word<10> deep[2 * 9][1] = {{0x3ffULL}};
static const rom_int<24> bias[2][2] = {{-3, 4}};
static const rom_word<16> multiplier[2][2] = {{65535, 4}};
static const rom_word<8> table[256] = {1, 2, 255};
static const rom_word<62> numerator[1] = {1ULL << 60};
"""
CALLS = {
    "matrix_vector": "hls::stream<Word<8, 3>>& in, Accumulators& out|matrix_vector<P>(in, out, dense, bias)",
    "depthwise": "Words& in, Accumulators& out|depthwise<P>(in, out, deep, bias)",
    "requantize_sums": "Accumulators& in, Words& out|requantize_sums<P>(in, out, multiplier)",
    "fork": "Words& in, Words& one, Words& two|fork<8, 2, 7>(in, one, two)",
    "convert": "Words& in, Words& out|convert<8, 2, 2, 6>(in, out)",
    "convert to fewer": "Words& in, hls::stream<Word<8, 1>>& out|convert<8, 2, 1, 6>(in, out)",
    "convert to more": "Words& in, hls::stream<Word<8, 6>>& out|convert<8, 2, 6, 6>(in, out)",
    "concat": "Words& a, Words& b, Words& out|concat<P>(a, b, out)",
    "slice": "Words& in, Words& out|slice<P>(in, out)",
    "pad": "Words& in, Words& out|pad<P>(in, out)",
    "add": "Words& a, hls::stream<Word<7, 2>>& b, Words& out|add<P>(a, b, out)",
    "multiply": "Words& a, hls::stream<Word<7, 2>>& b, Words& out|multiply<P>(a, b, out)",
    "lookup": "Words& in, Words& out|lookup<P>(in, out, table)",
    "max_pool": "Words& in, Words& out|max_pool<P>(in, out)",
    "global_average": "Words& in, Words& out|global_average<P>(in, out)",
    "arg_max": "Words& in, hls::stream<Word<16, 1>>& out|arg_max<P>(in, out)",
    "softmax": "hls::stream<Word<8, 1>>& in, hls::stream<Word<8, 1>>& out|softmax<P>(in, out, table, numerator)",
    "window": "Words& in, Words& out|window<P>(in, out)",
    "read_input": "hls::stream<Beat<16>>& port, Words& out|read_input<P>(port, out)",
    "write_output": "Words& in, hls::stream<Beat<16>>& port|write_output<P>(in, port)",
}


def test_all_kernels_are_called():
    """At least those whose schedule is known; the ends are read_input and write_output."""
    assert set(TABLE) - {"source", "sink"} < {name.split()[0] for name in CALLS}


def test_every_kernel_is_synthesizable(tmp_path):
    design = tmp_path / "firmware"
    design.mkdir()
    for header in (HLS / "library").glob("*.h"):
        (design / header.name).write_text(header.read_text())
    lines = [f'#include "{name}.h"' for name in HEADERS] + [CONSTANTS]
    for number, call in enumerate(CALLS.values()):
        parameters, body = call.split("|")
        lines.append(f"void call_{number}({parameters}) {{ {body}; }}")
    (design / "kernels.cpp").write_text("\n".join(lines) + "\n")
    assert [str(finding) for finding in lint(design, [HLS / "simulation"])] == []
