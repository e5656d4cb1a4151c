"""Every kernel with random parameters, compiled with all warnings, against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from cpp import needs_compiler
from hls_kernels import SIMULATION, VENDOR, Call, Rom, Words, packed, run, run_logged

from qcomp.integer.softmax import Softmax

pytestmark = needs_compiler
CALLS = 6
NO_VENDOR = pytest.mark.skipif(VENDOR is None, reason="hls4ml, whose wheel has the vendor's headers, is not installed")
INTEGERS = [pytest.param(SIMULATION, id="ours"), pytest.param(VENDOR, id="the vendor's", marks=NO_VENDOR)]


def half_even(number: np.ndarray, shift: int) -> np.ndarray:
    """Round int64 number / 2^shift, halves to even: whichever of the integers around it is nearer, or even."""
    below = number >> shift
    over, under = number - (below << shift), ((below + 1) << shift) - number
    return np.where((over > under) | ((over == under) & (below % 2 == 1)), below + 1, below)


def requantized(number, c: dict[str, int]) -> np.ndarray:
    return np.clip(half_even(number, c["SHIFT"]) + c["ZERO"], c["LOW"], c["HIGH"])


def divisor(rng, number: int) -> int:
    return int(rng.choice([d for d in range(1, number + 1) if number % d == 0]))


def unsigned(rng, bits: int, shape) -> np.ndarray:
    """All values, the extremes often, all of them extremes sometimes."""
    values, most = rng.integers(0, 1 << bits, shape), (1 << bits) - 1
    if rng.random() < 0.2:
        return np.full(shape, rng.choice([0, most]))
    return np.where(rng.random(shape) < 0.2, rng.choice([0, most], shape), values)


def requantization(rng, reach: int) -> dict[str, int]:
    """Constants that bring numbers up to `reach` into the range of the result, and some beyond it."""
    bits = int(rng.integers(1, 9))
    low, high = sorted(rng.integers(0, 1 << bits, 2).tolist())
    if rng.random() < 0.7:
        low, high = 0, (1 << bits) - 1
    shift = max(int(reach).bit_length() - bits + int(rng.integers(-2, 3)), 0) if rng.random() < 0.9 else 0
    return {"SHIFT": shift, "ZERO": int(rng.integers(0, 1 << bits)), "LOW": low, "HIGH": high, "YBITS": bits}


def multipliers(rng, bits: int, shape=()) -> np.ndarray:
    """Positive, up to all bits, often powers of two, with which halves occur, or the largest."""
    power = np.left_shift(1, rng.integers(0, bits, shape))
    found = np.where(rng.random(shape) < 0.5, power, rng.integers(1, 1 << bits, shape))
    return np.where(rng.random(shape) < 0.2, (1 << bits) - 1, found)


def accumulator_bits(bias, weight, x_bits: int) -> int:
    """Of the sums of rows of a weight (rows, columns)."""
    most = (1 << x_bits) - 1
    above, below = bias + np.maximum(weight, 0).sum(1) * most, bias + np.minimum(weight, 0).sum(1) * most
    return max(int(above.max()).bit_length(), int(-below.min() - 1).bit_length(), 1) + 1


def weights(rng, bits: int, shape) -> np.ndarray:
    half = 1 << (bits - 1)
    values = rng.integers(-half, half, shape)
    return np.where(rng.random(shape) < 0.2, rng.choice([-half, half - 1], shape), values)


def widths(rng) -> dict[str, int]:
    x_bits, w_bits = (int(v) for v in rng.integers(2, 9, 2))
    return {"XBITS": x_bits, "WBITS": w_bits, "IN_LUTS": int(rng.integers(0, 2))}


def matrix_vector(rng) -> Call:
    simd, pe = int(rng.choice([1, 2, 3, 4, 9, 16, 36])), int(rng.choice([1, 2, 3, 5, 8]))
    shape = (pe * int(rng.integers(1, 4)), simd * int(rng.integers(1, 5)))
    return product(rng, int(rng.integers(1, 5)), shape, simd, pe)


def product(rng, pixels: int, shape: tuple[int, int], simd: int, pe: int) -> Call:
    """With a matrix of a shape."""
    rows, columns = shape
    c = {"PIXELS": pixels, "MW": columns, "MH": rows, "SIMD": simd, "PE": pe} | widths(rng)
    weight = weights(rng, c["WBITS"], shape)
    bias = rng.integers(-(10 ** int(rng.integers(1, 9))), 1000, rows)
    c["ACC"] = accumulator_bits(bias, weight, c["XBITS"])
    x = unsigned(rng, c["XBITS"], (pixels, columns))
    tiles = weight.reshape(rows // pe, pe, columns // simd, simd).transpose(0, 2, 1, 3).reshape(-1, pe, simd)
    roms = [packed("weights", tiles, c["WBITS"]), Rom("bias", "rom_int", c["ACC"], bias.reshape(-1, pe))]
    sums = Words(c["ACC"], (x @ weight.T + bias).reshape(-1, pe), signed=True)
    return Call("matrix_vector", c, [Words(c["XBITS"], x.reshape(-1, simd))], [sums], roms)


def depthwise(rng) -> Call:
    pe, groups, taps = int(rng.choice([1, 2, 3, 8, 11, 24])), int(rng.integers(1, 4)), int(rng.integers(1, 10))
    c = {"PIXELS": int(rng.integers(1, 5)), "GROUPS": groups, "PE": pe, "TAPS": taps} | widths(rng)
    weight = weights(rng, c["WBITS"], (groups * pe, taps))
    bias = rng.integers(-1000, 1000, groups * pe)
    c["ACC"] = accumulator_bits(bias, weight, c["XBITS"])
    x = unsigned(rng, c["XBITS"], (c["PIXELS"], groups, taps, pe))
    tiles = weight.reshape(groups, pe, taps).transpose(0, 2, 1)
    sums = (x * tiles).sum(2) + bias.reshape(groups, pe)
    roms = [
        packed("weights", tiles.reshape(-1, pe), c["WBITS"]),
        Rom("bias", "rom_int", c["ACC"], bias.reshape(-1, pe)),
    ]
    result = Words(c["ACC"], sums.reshape(-1, pe), signed=True)
    return Call("depthwise", c, [Words(c["XBITS"], x.reshape(-1, pe))], [result], roms)


def requantize_sums(rng) -> Call:
    pe, words, acc = int(rng.integers(1, 13)), int(rng.integers(1, 5)), int(rng.integers(2, 35))
    lanes, rows = divisor(rng, pe), pe * int(rng.integers(1, 4))
    bits = int(rng.integers(1, 63 - acc if rng.random() < 0.5 else 12))
    factor = multipliers(rng, bits, rows)
    factor[0] = (1 << bits) - 1  # MBITS are those of the largest
    c = {"WORDS": words * rows // pe, "PE": pe, "LANES": lanes, "ROWS": rows, "ACC": acc, "MBITS": bits}
    c |= requantization(rng, int(factor.max()) << (acc - 1))
    sums = weights(rng, acc, (words, rows))
    behind = np.bitwise_count((factor & -factor) - 1)  # zeros behind the last one of the factor
    zeros = np.clip(c["SHIFT"] - 1 - behind.astype(np.int64), 0, acc - 1)  # as many more, and the product may be a half
    sums = np.where(rng.random((words, rows)) < 0.5, sums >> zeros << zeros, sums)
    number = sums * factor
    inputs, outputs = Words(acc, sums.reshape(-1, pe), signed=True), requantized(number, c).reshape(-1, lanes)
    roms = [Rom("multiplier", "rom_word", bits, factor.reshape(-1, lanes))]
    return Call("requantize_sums", c, [inputs], [Words(c["YBITS"], outputs)], roms)


def of_two(rng) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Sizes and zero points of two inputs, and the inputs."""
    a_bits, b_bits = (int(v) for v in rng.integers(1, 9, 2)) if rng.random() < 0.5 else (8, 8)
    c = {"WORDS": int(rng.integers(1, 200)), "LANES": int(rng.integers(1, 9)), "ABITS": a_bits, "BBITS": b_bits}
    c |= {"ZA": int(unsigned(rng, a_bits, ())), "ZB": int(unsigned(rng, b_bits, ()))}
    shape = (c["WORDS"], c["LANES"])
    return c, unsigned(rng, a_bits, shape), unsigned(rng, b_bits, shape)


def widest(c: dict[str, int]) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """The same with the largest sums that there may be."""
    c = c | {"ABITS": 8, "BBITS": 8, "ZA": 0, "ZB": 0, "MA": 15, "MB": 15}
    largest = np.full((c["WORDS"], c["LANES"]), 255)
    return c, largest, largest


def add(rng) -> Call:
    c, a, b = of_two(rng)
    c |= {name: int(multipliers(rng, int(rng.choice([4, 16, 31])))) for name in ("MA", "MB")}
    if rng.random() < 0.3:
        c, a, b = widest(c)
    number = (a - c["ZA"]) * c["MA"] + (b - c["ZB"]) * c["MB"]
    c |= requantization(rng, np.abs(number).max())
    return Call("add", c, [Words(c["ABITS"], a), Words(c["BBITS"], b)], [Words(c["YBITS"], requantized(number, c))])


def multiply(rng) -> Call:
    c, a, b = of_two(rng)
    c["MULTIPLIER"] = int(multipliers(rng, int(rng.choice([4, 16, 31]))))
    number = (a - c["ZA"]) * (b - c["ZB"]) * c["MULTIPLIER"]
    c |= requantization(rng, np.abs(number).max())
    y = Words(c["YBITS"], requantized(number, c))
    return Call("multiply", c, [Words(c["ABITS"], a), Words(c["BBITS"], b)], [y])


def lookup(rng) -> Call:
    c = {"WORDS": int(rng.integers(1, 300)), "LANES": int(rng.integers(1, 9))}
    c |= {"XBITS": int(rng.integers(1, 9)), "YBITS": int(rng.integers(1, 9))}
    x, table = unsigned(rng, c["XBITS"], (c["WORDS"], c["LANES"])), unsigned(rng, c["YBITS"], 1 << c["XBITS"])
    rom = Rom("table", "rom_word", c["YBITS"], table)
    return Call("lookup", c, [Words(c["XBITS"], x)], [Words(c["YBITS"], table[x])], [rom])


def fork(rng) -> Call:
    c = {"BITS": int(rng.integers(1, 17)), "LANES": int(rng.integers(1, 9)), "WORDS": int(rng.integers(1, 30))}
    x = Words(c["BITS"], unsigned(rng, c["BITS"], (c["WORDS"], c["LANES"])))
    return Call("fork", c, [x], [x, x])


def convert(rng) -> Call:
    few, ratio, wide_words = (int(v) for v in rng.integers(1, 7, 3))
    lanes = (few, few * ratio) if rng.random() < 0.5 else (few * ratio, few)
    bits, size = int(rng.integers(1, 17)), wide_words * few * ratio
    c = {"BITS": bits, "LANES_IN": lanes[0], "LANES_OUT": lanes[1], "WORDS_IN": size // lanes[0]}
    x = unsigned(rng, bits, size)
    return Call("convert", c, [Words(bits, x.reshape(-1, lanes[0]))], [Words(bits, x.reshape(-1, lanes[1]))])


def concat(rng) -> Call:
    pixels, a_words, b_words = (int(v) for v in rng.integers(1, 6, 3))
    lanes, bits = int(rng.integers(1, 5)), int(rng.integers(1, 9))
    a, b = (unsigned(rng, bits, (pixels, n, lanes)) for n in (a_words, b_words))
    c = {"PIXELS": pixels, "A_WORDS": a_words, "B_WORDS": b_words, "BITS": bits, "LANES": lanes}
    parts = [Words(bits, v.reshape(-1, lanes)) for v in (a, b, np.concatenate([a, b], axis=1))]
    return Call("concat", c, parts[:2], parts[2:])


def image(rng) -> tuple[dict[str, int], np.ndarray]:
    height, width, groups = (int(v) for v in rng.integers(1, 7, 3))
    lanes, bits = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    c = {"H": height, "W": width, "GROUPS": groups, "LANES": lanes, "BITS": bits}
    return c, unsigned(rng, bits, (height, width, groups, lanes))


def cut(rng, size: int) -> tuple[int, int, int]:
    """Start, step and number of what is kept of so many."""
    start, step = int(rng.integers(0, size)), int(rng.integers(1, 4))
    return start, step, int(rng.integers(1, (size - start - 1) // step + 2))


def slice_(rng) -> Call:
    c, x = image(rng)
    h, sh, oh = cut(rng, c["H"])
    w, sw, ow = cut(rng, c["W"])
    g, _, count = cut(rng, c["GROUPS"])
    count = min(count, c["GROUPS"] - g)
    y = x[h::sh][:oh, w::sw][:, :ow, g : g + count]
    sizes = {"H0": h, "SH": sh, "OH": oh, "W0": w, "SW": sw, "OW": ow, "G0": g, "G1": g + count}
    words = [Words(c["BITS"], v.reshape(-1, c["LANES"])) for v in (x, y)]
    return Call("slice", c | sizes, words[:1], words[1:])


def pad(rng) -> Call:
    c, x = image(rng)
    names = ("TOP", "BOTTOM", "LEFT", "RIGHT", "BEFORE", "AFTER")
    c |= {name: int(rng.integers(0, 4)) for name in names} | {"PAD": int(rng.integers(0, 1 << c["BITS"]))}
    amounts = [c[name] for name in names]
    y = np.pad(x, (*zip(amounts[::2], amounts[1::2], strict=True), (0, 0)), constant_values=c["PAD"])
    words = [Words(c["BITS"], v.reshape(-1, c["LANES"])) for v in (x, y)]
    return Call("pad", c, words[:1], words[1:])


def pooled(rng) -> tuple[dict[str, int], np.ndarray]:
    pixels, groups, lanes = (int(v) for v in rng.integers(1, 6, 3))
    c = {"PIXELS": pixels, "GROUPS": groups, "LANES": lanes, "TAPS": int(rng.integers(1, 10))}
    return c, unsigned(rng, 8, (pixels, groups, c["TAPS"], lanes))


def max_pool(rng) -> Call:
    c, x = pooled(rng)
    words = [Words(8, v.reshape(-1, c["LANES"])) for v in (x, x.max(2))]
    return Call("max_pool", c | {"BITS": 8}, words[:1], words[1:])


def averaged(rng, c: dict[str, int], x: np.ndarray, axis: int, kernel: str) -> Call:
    """Averages along an axis; the factor is about one part in its length."""
    c |= {"XBITS": 8, "ZX": int(unsigned(rng, 8, ()))}
    c["MULTIPLIER"] = int(multipliers(rng, int(rng.choice([4, 16, 31]))))
    number = (x.sum(axis) - x.shape[axis] * c["ZX"]) * c["MULTIPLIER"]
    c |= requantization(rng, np.abs(number).max())
    inputs, outputs = Words(8, x.reshape(-1, c["LANES"])), requantized(number, c).reshape(-1, c["LANES"])
    return Call(kernel, c, [inputs], [Words(c["YBITS"], outputs)])


def global_average(rng) -> Call:
    c, x = pooled(rng)
    del c["TAPS"]
    return averaged(rng, c, x[:, :, 0], 0, "global_average")


def arg_max(rng) -> Call:
    pixels, groups, lanes, bits = (int(v) for v in rng.integers(1, 9, 4))
    x = unsigned(rng, bits, (pixels, groups * lanes))
    c = {"PIXELS": pixels, "GROUPS": groups, "LANES": lanes, "BITS": bits}
    return Call("arg_max", c, [Words(bits, x.reshape(-1, lanes))], [Words(16, x.argmax(1).reshape(-1, 1))])


def softmax(rng) -> Call:
    """As the definition in NumPy computes it."""
    pixels, channels, bits = int(rng.integers(1, 5)), int(rng.integers(1, 12)), int(rng.integers(2, 9))
    found = Softmax.of(float(rng.uniform(0.01, 0.5)), length=channels)
    x = unsigned(rng, bits, (pixels, channels))
    c = {"PIXELS": pixels, "CHANNELS": channels, "BITS": bits, "TABLE_BITS": 31, "SHIFT": found.shift}
    roms = [Rom("table", "rom_word", 31, found.table[: 1 << bits].astype(np.int64))]
    roms.append(Rom("numerator", "rom_word", 62, np.array([found.numerator])))
    y = found(x.astype(np.uint8), axis=1)
    return Call("softmax", c, [Words(bits, x.reshape(-1, 1))], [Words(8, y.reshape(-1, 1))], roms)


KERNELS = {
    "softmax.h": [softmax],
    "matrix_vector.h": [matrix_vector, depthwise, requantize_sums],
    "moves.h": [fork, convert, concat, slice_, pad],
    "pointwise.h": [add, multiply, lookup],
    "pooling.h": [max_pool, global_average, arg_max],
}


@pytest.mark.parametrize("header", KERNELS)
def test_gives_the_integers_of_numpy(header, tmp_path):
    rng = np.random.default_rng(0)
    run([header], [make(rng) for make in KERNELS[header] for _ in range(CALLS)], tmp_path)


def test_every_folding_of_a_matrix(tmp_path):
    rng = np.random.default_rng(0)
    foldings = [(simd, pe) for simd in (1, 2, 3, 4, 6, 12) for pe in (1, 2, 4)]
    run(["matrix_vector.h"], [product(rng, 3, (4, 12), simd, pe) for simd, pe in foldings], tmp_path)


@pytest.mark.parametrize("integers", INTEGERS)
def test_gives_the_same_as_it_is_synthesized_in_the_order_of_its_schedule(integers, tmp_path):
    """With pragmas and constants of their own widths."""
    rng = np.random.default_rng(1)
    run_logged(list(KERNELS), [make(rng) for kernels in KERNELS.values() for make in kernels], tmp_path, integers)
