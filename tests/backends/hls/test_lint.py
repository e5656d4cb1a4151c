"""The lint of synthesizable code: quiet on good code, and every rule catches what it is there for."""

import re

import pytest
from synthesizable import Finding, lint, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

KERNEL = """
#include "hls_stream.h"
#define PIPELINE _Pragma("HLS PIPELINE II=1 style=flp")
#define UNROLL _Pragma("HLS UNROLL")
typedef hls::stream<int> Stream;
template <int COUNT> struct Size { static const int WORDS = 2 * COUNT; };
struct Word { int lane[3]; };

template <class S> void twice(Stream& in, Stream& out) {
    int seen[S::WORDS];
    _Pragma("HLS ARRAY_PARTITION variable=seen type=complete dim=1")
    for (int i = 0; i < S::WORDS; ++i) {
        PIPELINE
        Word word = {};
        for (int lane = 0; lane < 3; ++lane) {
            UNROLL
            word.lane[lane] = lane;
        }
        const Word copy = word;
        seen[i] = in.read() + copy.lane[i % 4 / 2];
        out.write(2 * seen[i]);
    }
}
void first(Stream& in, Stream& out) { twice<Size<8>>(in, out); }
void second(Stream& in, Stream& out) { twice<Size<9>>(in, out); }
void idle(Stream&, Stream&) {}
"""
TOP = """
extern "C" void top(Stream& input, Stream& output) {
    _Pragma("HLS INTERFACE mode=axis port=input")
    _Pragma("HLS INTERFACE mode=s_axilite port=return")
    _Pragma("HLS DATAFLOW")
    hls::stream<int, 4> a("a");
    _Pragma("HLS AGGREGATE variable=a compact=bit")
    first(input, a);
    second(a, output);
}
"""


def found(folder, code: str, *, top: str | None = "top", **files: str) -> list[Finding]:
    """What the lint finds in one file of code; ``files`` are headers of the vendor."""
    for name, text in {"design/design.cpp": code, **{f"vendor/{key}.h": text for key, text in files.items()}}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return lint(folder / "design", [folder / "vendor"], top)


def check(folder, code: str, rule: str, what: str = "", **options) -> None:
    """One rule is broken, in the line that ends in the comment ``// here``, or in any if there is none."""
    findings = found(folder, code, **options)
    assert {finding.rule for finding in findings} == set(rule.split()), [str(finding) for finding in findings]
    assert what in findings[0].what, findings[0].what
    lines = [number for number, line in enumerate(code.splitlines(), 1) if line.endswith("// here")]
    if lines:
        assert {finding.line for finding in findings} == set(lines), [str(finding) for finding in findings]
        assert {finding.file for finding in findings} == {"design.cpp"}


def test_good_code_is_left_alone(tmp_path):
    assert found(tmp_path, KERNEL + TOP) == []
    assert found(tmp_path, KERNEL + TOP, top=None) == []


def test_several_files_are_one_design(tmp_path):
    used = "int helper(int);\nvoid first(Stream& in, Stream& out) { out.write(helper(in.read())); }\n"
    kernel = KERNEL.replace("void first(Stream& in, Stream& out) { twice<Size<8>>(in, out); }", used)
    (tmp_path / "design").mkdir()
    (tmp_path / "design" / "other.cpp").write_text("int helper(int x) { return x + 1; }\n")
    assert found(tmp_path, kernel + TOP) == []
    (tmp_path / "design" / "other.cpp").write_text("\n\nint helper(int x) { return x < 1 ? 0 : helper(x - 1); }\n")
    assert [str(each) for each in found(tmp_path, kernel + TOP)] == [
        "other.cpp:3: recursion: a function calls itself",
    ]


def test_what_is_not_reached_or_not_ours_does_not_matter(tmp_path):
    bad = "double half(double x) { return x / 2; }\n"
    assert found(tmp_path, KERNEL + bad + TOP) == []
    check(tmp_path, KERNEL + bad + TOP, "float", top=None)
    use = KERNEL.replace("2 * seen[i]", "number(seen[i])").replace(
        "#define PIPELINE", '#include "vendor.h"\n#define PIPELINE'
    )
    vendor = "inline int number(int x) { double y = x; while (y > 3) y /= 2; return int(y); }\n"
    assert found(tmp_path, use + TOP, vendor=vendor) == []


BODIES = {
    "a bound that is not known": ("loop", "for (int i = 0; i < n; ++i) { PIPELINE use(i); } // here"),
    "until": ("loop", "while (n > 3) { PIPELINE n -= use(n); } // here"),
    "do until": ("loop", "do { PIPELINE n -= use(n); } while (n > 3); // here"),
    "break": ("loop", "for (int i = 0; i < 9; ++i) { PIPELINE if (use(i) == n) break; } // here"),
    "return": ("loop", "for (int i = 0; i < 9; ++i) { PIPELINE if (use(i) == n) return n; } // here"),
    "a counter that is changed": ("loop", "for (int i = 0; i < 9; ++i) { PIPELINE if (use(i) == n) ++i; } // here"),
    "a counter that escapes": ("loop", "for (int i = 0; i < 9; ++i) { PIPELINE change(i); } // here"),
    "a loop that never ends": ("loop", "for (int i = 0; n < n + 1; ++i) { PIPELINE n = use(i); } // here"),
    "no end": ("loop", "for (;;) { PIPELINE n ^= use(n); } // here"),
    "a loop by goto": ("loop", "again: if (use(n) < 3) { ++n; // here\ngoto again; }"),
    "a loop with two entries": (
        "loop",
        "int i = 0; if (n > 1) goto in; for (; i < 9; ++i) { PIPELINE use(1); in: use(i); } // here",
    ),
    "double": ("float", "return int(n * 1.5); // here"),
    "float in a variable": ("float", "volatile float x = 1; return x > 2; // here"),
    "new": ("heap", "return *new int(n); // here"),
    "delete": ("heap", "delete pointer; // here"),
    "malloc": ("heap", "*(int*)__builtin_malloc(4) = n; // here"),
    "an array of any size": ("compile heap", "int place[n]; // here\nchange(place[0]);"),
    "a call through a pointer": ("indirect", "int (*volatile f)(int) = use; return f(n); // here"),
    "a virtual call": ("indirect", "return object->number(); // here"),
    "assembly": ("indirect", 'asm volatile("nop"); // here'),
    "printf": ("call", '__builtin_printf("%d", n); // here'),
    "a function without a body": ("call", "return missing(n); // here"),
    "throw": ("call", "if (n > 3) throw n; // here"),
    "division": ("division", "return n / 3; // here"),
    "division by a variable": ("division", "return 100 / n; // here"),
    "remainder": ("division", "return n % 6; // here"),
    "a static variable computed once": ("call", "static int once = use(n); return once; // here"),
}
AROUND = """
static int use(int x) { return x ^ 1; }
static void change(int& x) { x ^= 1; }
int missing(int);
struct Base { virtual int number() const = 0; };
int look(int n, int* pointer, const Base* object) {
    (void)pointer, (void)object, (void)use, (void)change;
    %s
    return n;
}
"""


@pytest.mark.parametrize("name", BODIES)
def test_bodies(tmp_path, name):
    rule, body = BODIES[name]
    code = KERNEL + AROUND % body
    check(tmp_path, code, rule, top=None)


def test_the_functions_around_the_bodies_are_good(tmp_path):
    for body in ("return use(n) / 4 + n % 8;", "for (int i = 9; i > 0; i -= 2) { PIPELINE use(i); }"):
        assert found(tmp_path, KERNEL + AROUND % body, top=None) == []


def test_recursion(tmp_path):
    once = "int again(int n) { return n < 2 ? n : again(n - 1); } // here\n"
    check(tmp_path, KERNEL + once, "recursion", top=None)
    mutual = (
        "int odd(int n);\nint even(int n) { return n == 0 || odd(n - 1); } // here\n"
        "int odd(int n) { return n != 0 && even(n - 1); } // here\n"
    )
    check(tmp_path, KERNEL + mutual, "recursion", top=None)


def test_initializers(tmp_path):
    code = "int compute(int n) { return n + 1; }\nint number = compute(3); // here\n"
    check(tmp_path, KERNEL + code + TOP, "initializer")
    assert found(tmp_path, KERNEL + "int numbers[2] = {1, 2};\n" + TOP) == []


def test_numbers_of_the_vendor_are_not_divided(tmp_path):
    vendor = """
        struct Wide {
            int x;
            Wide operator/(int n) const { return {x / n}; }
            Wide operator+(int n) const { return {x + n}; }
        };
    """
    code = '#include "vendor.h"\nint f(Wide a) { return (a / 3).x; } // here\nint g(Wide a) { return (a + 3).x; }\n'
    check(tmp_path, code, "division", top=None, vendor=vendor)


STREAMS = {
    "no producer": ("second(a, output);", "stream a has no producer"),
    "no consumer": ("first(input, a);", "stream a has no consumer"),
    "two producers": ("first(input, a); second(a, output); first(b, a);", "stream a has 2 producers"),
    "two consumers": ("first(input, a); second(a, output); second(a, b);", "stream a has 2 consumers"),
    "a loop of one": ("first(input, b); first(a, a); second(b, output);", "is written and read by one call"),
    "a port used twice": ("first(input, a); first(input, b);", "port input is used 2 times: read, read"),
    "a port both ways": ("first(input, a); second(a, input);", "port input is used 2 times: read, write"),
    "a port without use": ("first(input, a); idle(a, output);", "port output is used 0 times"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_have_two_ends(tmp_path, name):
    calls, what = STREAMS[name]
    other = '    hls::stream<int, 2> b("b");\n' if re.search(r"\bb\b", calls) else ""
    code = KERNEL + TOP.replace("    first(input, a);\n    second(a, output);\n", f"{other}    {calls}\n")
    findings = found(tmp_path, code)
    assert {finding.rule for finding in findings} == {"stream"}
    assert any(what in finding.what for finding in findings), [str(finding) for finding in findings]


@pytest.mark.parametrize("poll", ["in.empty()", "in.read_nb(x)", "out.full()", "out.write_nb(x)", "in.size()"])
def test_streams_are_waited_for(tmp_path, poll):
    code = KERNEL.replace("in.read() +", "(POLL ? in.read() : 0) +").replace(
        "seen[i] =", "int x = 0; (void)x; seen[i] ="
    )
    lines = [line + " // here" if "POLL" in line else line for line in code.splitlines()]
    check(tmp_path, "\n".join(lines).replace("POLL", poll) + TOP, "stream", "which wait")


def test_a_dataflow_region_is_straight(tmp_path):
    code = KERNEL + TOP.replace("top(Stream& input,", "top(int n, Stream& input,").replace(
        "    second(a,", "    if (n) idle(input, output);\n    second(a,"
    )
    check(tmp_path, code, "dataflow", "branches")


PRAGMAS = {
    "no such directive": ("HLS UNROLL", "HLS UNROL", "no such directive is allowed: HLS UNROL"),
    "another's directive": ("HLS UNROLL", "omp parallel", "no such directive is allowed: omp parallel"),
    "no such argument": ("HLS UNROLL", "HLS UNROLL skip", "UNROLL takes no skip"),
    "another value": ("II=1", "II=2", "PIPELINE takes no II=2"),
    "a value that is no number": ("dim=1", "dim=S::WORDS", "ARRAY_PARTITION takes no dim=S::WORDS"),
    "an argument is missing": (" style=flp", "", "PIPELINE needs style="),
    "no such variable": ("variable=seen", "variable=scene", "names scene, which is not declared"),
    "a variable of another function": ("variable=a ", "variable=seen ", "names seen, which is not declared"),
    "no such port": ("port=input", "port=inputs", "names inputs, which is not declared"),
    "dataflow of a loop": ("HLS UNROLL", "HLS DATAFLOW", "does not stand in the body of a function"),
    "a pipeline of a function": ("HLS DATAFLOW", "HLS PIPELINE II=1 style=flp", "does not stand in the body of a loop"),
}


@pytest.mark.parametrize("name", PRAGMAS)
def test_directives(tmp_path, name):
    before, after, what = PRAGMAS[name]
    assert (KERNEL + TOP).count(before) == 1
    findings = found(tmp_path, (KERNEL + TOP).replace(before, after))
    assert {finding.rule for finding in findings} == {"pragma"}, [str(finding) for finding in findings]
    assert any(what in finding.what for finding in findings), [str(finding) for finding in findings]


def test_directives_are_found_where_their_macro_is_used(tmp_path):
    code = KERNEL.replace("HLS UNROLL", "HLS UNROLL factor=3").replace("        UNROLL", "        UNROLL // here", 1)
    check(tmp_path, code + TOP, "pragma", "UNROLL takes no factor=3")


def test_innermost_loops_are_pipelined_or_unrolled(tmp_path):
    code = KERNEL.replace(
        "    for (int i = 0; i < S::WORDS; ++i) {\n        PIPELINE", "    for (int i = 0; i < S::WORDS; ++i) {"
    )
    assert found(tmp_path, code + TOP) == []
    code = code.replace("            UNROLL\n", "").replace("++lane) {", "++lane) { // here")
    check(tmp_path, code + TOP, "pipeline")
    inside = KERNEL.replace("            UNROLL\n", "")
    assert found(tmp_path, inside + TOP) == []
    constant = "constexpr int bits(int n) { int k = 0; while (n >> k) { ++k; } return k; }\nint four[bits(9)];\n"
    assert found(tmp_path, KERNEL + constant + TOP) == []


def test_code_that_does_not_compile(tmp_path):
    check(tmp_path, KERNEL + "int f() { return g(); } // here\n" + TOP, "compile", "undeclared identifier 'g'")
    check(tmp_path, KERNEL + "static int unused(int n) { return n; } // here\n" + TOP, "compile", "unused function")
    check(tmp_path, KERNEL + TOP, "compile", "there is no function other", top="other")


MEMORY = """
void load(const int* memory, Stream& out) {
    for (int i = 0; i < 4; ++i) {
        PIPELINE
        out.write(memory[i]);
    }
}
extern "C" void top(const int* input, Stream& output, Stream& other) {
    _Pragma("HLS INTERFACE mode=m_axi port=input bundle=input offset=slave depth=4")
    _Pragma("HLS DATAFLOW")
    load(input, output);
    %s
}
"""


def test_memory_is_given_to_one_call(tmp_path):
    findings = found(tmp_path, KERNEL + MEMORY % "load(input, other);")
    assert [f.what for f in findings] == ["memory input is given to 2 calls"]
