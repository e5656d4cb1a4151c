"""ap_int and ap_uint of C simulation against Python's integers and against the vendor's headers."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
from cpp import compile_and_run, needs_compiler
from hls_integers import expected, program, random_cases, random_values

from qcomp.backends import hls

pytestmark = needs_compiler

HEADERS = [Path(hls.__file__).parent / "simulation"]
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-unused", "-Wno-bool-operation")


def vendor_headers() -> Path | None:
    """The folder of Xilinx's ap_int.h (Apache-2.0) in the package hls4ml, which is not imported."""
    found = importlib.util.find_spec("hls4ml")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "templates" / "vivado" / "ap_types"


def printed(source: str, folder: Path, includes: Path, *flags: str) -> list[str]:
    done = compile_and_run(source, folder, [includes], "-O1", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("seed", range(2))
def test_values_and_widths_are_those_of_exact_integers(seed, tmp_path):
    rng = random.Random(seed)
    cases, values = random_cases(rng, 15), random_values(rng, 40)
    assert printed(program(cases, values), tmp_path, HEADERS[0]) == expected(cases, values)


@pytest.mark.skipif(vendor_headers() is None, reason="hls4ml, whose wheel has the vendor's headers, is not installed")
def test_values_and_widths_are_those_of_the_vendor(tmp_path):
    rng = random.Random(100)
    cases, values = random_cases(rng, 8), random_values(rng, 40)
    source = program(cases, values)
    vendor = vendor_headers()
    assert vendor is not None
    assert printed(source, tmp_path, HEADERS[0]) == printed(source, tmp_path, vendor, "-w")


def test_they_are_plain_data_of_the_smallest_size(tmp_path):
    source = """
    #include <type_traits>
    #include "ap_int.h"
    struct Word { ap_uint<4> lane[8]; };
    static_assert(std::is_trivial<Word>::value && sizeof(Word) == 8, "");
    static_assert(sizeof(ap_int<9>) == 2 && sizeof(ap_int<17>) == 4 && sizeof(ap_int<33>) == 8, "");
    constexpr ap_int<8> wrapped = 200;
    static_assert(wrapped == -56 && ap_uint<8>(3) - ap_uint<8>(5) == -2 && (ap_uint<8>(255) << 4) == 0xf0, "");
    static_assert(std::is_same<decltype(ap_int<8>() * ap_uint<8>()), ap_int<16>>::value, "");
    template <int N> constexpr int width_of(ap_int<N>) { return N; }
    static_assert(width_of(ap_int<8>() + ap_uint<8>()) == 10, "");
    int main() {
        int table[] = {5, 6, 7, 8};
        return table[ap_uint<2>(3)] == 8 && ap_int<3>(-4) ? 0 : 1;
    }
    """
    assert compile_and_run(source, tmp_path, HEADERS, *STRICT).returncode == 0


def test_they_are_printed_as_numbers(tmp_path):
    source = """
    #include <iostream>
    #include "ap_int.h"
    int main() { ap_uint<8> x = 65; std::cout << ap_int<8>(-65) << " " << x << " " << x[0] << " " << x * x; }
    """
    assert compile_and_run(source, tmp_path, HEADERS).stdout == b"-65 65 1 4225"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ap_int<8>(1) < ap_uint<8>(1)", "cast one"),
        ("ap_uint<32>(1) == 1", "cast one"),
        ("ap_int<8>(4) / 2", "deleted"),
        ("ap_int<8>(4) % 2", "deleted"),
        ("ap_int<8>(0.5)", "no matching function"),
        ("ap_int<100>(1) * ap_int<100>(1)", "1 to 128 bits"),
    ],
)
def test_what_hardware_does_otherwise_is_refused(statement, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        compile_and_run(f'#include "ap_int.h"\nint main() {{ {statement}; }}\n', tmp_path, HEADERS)
