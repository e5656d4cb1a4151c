"""Random C++ expressions on ap_int, ap_uint and native integers, and what they are by Python's integers.

A case is a few C++ statements on ``a`` and ``b``, which ``show`` results: ``(width in bits, value)``. Widths follow
UG1399: results of + - * & | ^ and unary minus hold any value, shifts and ~ keep the width of their left operand.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Results = list[tuple[int, int]]

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
}
NATIVE = {
    "bool": (1, False),
    "char": (8, True),
    "signed char": (8, True),
    "unsigned char": (8, False),
    "short": (16, True),
    "unsigned short": (16, False),
    "int": (32, True),
    "unsigned": (32, False),
    "long long": (64, True),
    "unsigned long long": (64, False),
}
EDGES = [0, 1, -1, 2, 127, 128, -128, 255, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63)]


@dataclass(frozen=True)
class Type:
    """An integer type of C++; ``native``: its name where it is not an ap_int or ap_uint."""

    bits: int
    signed: bool
    native: str = ""

    @property
    def name(self) -> str:
        return self.native or f"{'ap_int' if self.signed else 'ap_uint'}<{self.bits}>"

    def wrap(self, value: int) -> int:
        """Modulo 2^bits; a native bool is whether the value differs from 0."""
        if self.native == "bool":
            return int(value != 0)
        value &= (1 << self.bits) - 1
        return value - (1 << self.bits) if self.signed and value >> (self.bits - 1) else value


@dataclass(frozen=True)
class Case:
    a: Type
    b: Type
    text: str
    evaluate: Callable[[int, int], Results]


def random_type(rng: random.Random) -> Type:
    return Type(rng.choice([1, 2, 4, 7, 8, 8, 9, 16, 24, 31, 32, 33, 63, 64, rng.randint(1, 64)]), rng.random() < 0.5)


def random_operand(rng: random.Random) -> Type:
    """An ap_int, an ap_uint or a native integer."""
    if rng.random() < 0.6:
        return random_type(rng)
    name = rng.choice(list(NATIVE))
    return Type(*NATIVE[name], name)


def width(op: str, left: Type, right: Type) -> int:
    if op == "*":
        return left.bits + right.bits
    both = max(left.bits + (right.signed and not left.signed), right.bits + (left.signed and not right.signed))
    return both + (op in "+-")


def binary(rng: random.Random) -> Case:
    """All operators, in both orders."""
    a, b = random_type(rng), random_operand(rng)
    text = " ".join(f"show(a {op} b); show(b {op} a);" for op in OPERATORS)

    def evaluate(x: int, y: int) -> Results:
        both = [[(width(op, a, b), f(x, y)), (width(op, b, a), f(y, x))] for op, f in OPERATORS.items()]
        return [result for results in both for result in results]

    return Case(a, b, text, evaluate)


def comparison(rng: random.Random) -> Case:
    """Of types that C compares as the numbers they are: of one sign, or the signed one wider."""
    a, b = random_type(rng), random_operand(rng)
    signed, unsigned = (a, b) if a.signed else (b, a)
    if a.signed != b.signed and signed.bits <= unsigned.bits:
        return comparison(rng)
    text = " ".join(f"show(a {op} b); show(b {op} a);" for op in COMPARISONS)

    def evaluate(x: int, y: int) -> Results:
        return [(1, result) for f in COMPARISONS.values() for result in (f(x, y), f(y, x))]

    return Case(a, b, text, evaluate)


def shift(rng: random.Random) -> Case:
    a, b = random_type(rng), Type(6, False)
    n = rng.choice([0, a.bits - 1, a.bits, rng.randint(0, a.bits)])
    text = f"show(a << b); show(a >> b); show(a << {n}); show(a >> {n}); a <<= {n}; show(a); a >>= b; show(a);"

    def evaluate(x: int, y: int) -> Results:
        moved = a.wrap(x << n)
        values = [a.wrap(x << y), x >> y, moved, x >> n, moved, moved >> y]
        return [(a.bits, value) for value in values]

    return Case(a, b, text, evaluate)


def assignment(rng: random.Random) -> Case:
    """``a OP= b``, a count up and down, then ``a`` to another type and from there to a native one."""
    a, b = random_type(rng), random_operand(rng)
    other, op = random_type(rng), rng.choice(list(OPERATORS))
    text = f"a {op}= b; show(a); show(a++); show(--a); {other.name} c = a; show(c); int d = c; show(ap_int<32>(d));"

    def evaluate(x: int, y: int) -> Results:
        value = a.wrap(OPERATORS[op](x, y))
        there = other.wrap(value)
        return [(a.bits, value)] * 3 + [(other.bits, there), (32, Type(32, True).wrap(there))]

    return Case(a, b, text, evaluate)


def unary(rng: random.Random) -> Case:
    a, b = random_type(rng), random_type(rng)
    a = Type(max(a.bits, 2), a.signed)

    def evaluate(x: int, y: int) -> Results:
        return [(a.bits + 1, -x), (a.bits, a.wrap(~x)), (1, x == 0), (1, x != 0 and y != 0)]

    return Case(a, b, "show(-a); show(~a); show(!a); show(a && b);", evaluate)


def bits(rng: random.Random) -> Case:
    """Bits of ``a`` are read, then set from ``b``."""
    a, b = random_type(rng), random_type(rng)
    low, bit = rng.randrange(a.bits), rng.randrange(b.bits)
    high = rng.randint(low, a.bits - 1)
    text = f"show(bool(a[{low}])); ap_uint<{high - low + 1}> c = a.range({high}, {low}); show(c); "
    text += f"a.range({high}, {low}) = b; show(a); a[{high}] = b[{bit}]; show(a);"

    def evaluate(x: int, y: int) -> Results:
        field = ((1 << (high - low + 1)) - 1) << low
        first = x & ~field | (y << low) & field
        second = first & ~(1 << high) | (y >> bit & 1) << high
        return [
            (1, x >> low & 1),
            (high - low + 1, (x & field) >> low),
            (a.bits, a.wrap(first)),
            (a.bits, a.wrap(second)),
        ]

    return Case(a, b, text, evaluate)


def kernel(rng: random.Random) -> Case:
    """Multiply and accumulate, round half to even, clamp: as kernels do."""
    a, b, s = Type(rng.randint(2, 8), True), Type(rng.randint(1, 8), False), rng.randint(1, 40)
    multiplier = rng.randrange(1, 2**31)
    text = f"""ap_int<24> sum = 1000; sum += a * b; show(sum); const ap_uint<31> m = {multiplier};
        ap_int<55> p = sum * m; show(p); ap_uint<1> odd = p >> {s}; p += (1ULL << {s} >> 1) - 1 + odd;
        ap_int<32> q = (p >> {s}) - b; show(q); ap_uint<8> y = q < 0 ? 0 : q > 255 ? 255 : q.to_int(); show(y);"""

    def evaluate(x: int, y: int) -> Results:
        total = 1000 + x * y
        product = total * multiplier
        rounded = (product + (1 << s >> 1) - 1 + (product >> s & 1)) >> s
        last = Type(32, True).wrap(rounded - y)
        return [(24, total), (55, product), (32, last), (8, min(max(last, 0), 255))]

    return Case(a, b, text, evaluate)


KINDS = [binary, comparison, shift, assignment, unary, bits, kernel]


def random_cases(rng: random.Random, count: int) -> list[Case]:
    """``count`` of each kind."""
    return [kind(rng) for kind in KINDS for _ in range(count)]


def random_values(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Pairs of signed 64-bit integers."""
    values = [*EDGES, *(rng.randrange(-(2**63), 2**63) >> rng.randrange(64) for _ in EDGES)]
    return [(rng.choice(values), rng.choice(values)) for _ in range(count)]


def expected(cases: Sequence[Case], values: Sequence[tuple[int, int]]) -> list[str]:
    """The lines that the program prints: width, bits 0 to 63 and, of wider ones, the rest."""
    lines = []
    for case in cases:
        for x, y in values:
            for wide, value in case.evaluate(case.a.wrap(x), case.b.wrap(y)):
                words = [value & (2**64 - 1)] + ([value >> 64] if wide > 64 else [])
                lines.append(" ".join(map(str, [wide, *words])))
    return lines


def program(cases: Sequence[Case], values: Sequence[tuple[int, int]]) -> str:
    """C++ that prints every case for all values."""
    pairs = ", ".join(f"{{{x & (2**64 - 1)}ULL, {y & (2**64 - 1)}ULL}}" for x, y in values)
    blocks = "\n".join(
        f"    for (const auto& v : values) {{ {case.a.name} a = (long long)v[0]; {case.b.name} b = (long long)v[1];\n"
        f"        {case.text} }}"
        for case in cases
    )
    return f"""
#include <ap_int.h>
#include <cstdio>
template <class T> void show(const T& x) {{
    std::printf("%d %llu", x.length(), (unsigned long long)x.to_int64());
    if (x.length() > 64) std::printf(" %lld", (long long)(x >> 64).to_int64());
    std::printf("\\n");
}}
void show(bool x) {{ std::printf("1 %d\\n", x); }}
static const unsigned long long values[][2] = {{{pairs}}};
int main() {{
{blocks}
}}
"""
