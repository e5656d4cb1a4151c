"""Streams and processes of C simulation: bounded queues, round robin, deadlocks, what is reported."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cpp import compile_and_run, compile_program, needs_compiler

from qcomp.backends import hls

pytestmark = needs_compiler

HEADERS = [Path(hls.__file__).parent / "simulation"]

# One program; its argument names the function to run.
PROGRAM = r"""
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include "hls_stream.h"
using qcomp_sim::run;
using qcomp_sim::start;

template <class T> void copy(hls::stream<T>& in, hls::stream<T>& out, int words) {
    for (int i = 0; i < words; ++i) out.write(in.read());
}

// 1000 words through queues of 3 and 1 words; the sum of position times word shows their order.
void chain() {
    hls::stream<int> in("in"), out("out");
    hls::stream<int, 3> one("one");
    hls::stream<int, 1> two("two");
    for (int i = 0; i < 1000; ++i) in.write(i * 7);
    start([&] { copy<int>(two, out, 1000); });
    start([&] { copy<int>(one, two, 1000); });
    start([&] { copy<int>(in, one, 1000); });
    run();
    bool right = in.empty() && out.size() == 1000;
    for (int i = 0; i < 1000; ++i) right = right && out.read() == i * 7;
    std::printf("%s\n", right ? "in order" : "wrong");
}

void reports() {
    chain();
    chain();
    hls::stream<int> alive("alive"), unused("unused");
    alive.write(1);
    qcomp_sim::report(stdout);
    std::printf("again\n");
    alive << 2;
    int word;
    alive >> word;
    alive.read(word);
    qcomp_sim::report(stdout);
}

// Never more than its depth, and full() only then.
void bounded() {
    hls::stream<int> first("first");
    hls::stream<int, 5> queue("queue");
    std::size_t most = 0, wrong = 0;
    start([&] {
        for (int i = 0; i < 40; ++i) {
            queue.write(i);
            most = queue.size() > most ? queue.size() : most;
            wrong += queue.full() != (queue.size() == 5) || queue.empty();
        }
    });
    start([&] { copy<int>(queue, first, 40); });
    run();
    std::printf("%zu %zu %d\n", most, wrong, int(first.full()));
}

// All words of one side come before those of the other: the first queue has to hold all but one.
template <int DEPTH> void branches() {
    hls::stream<int, DEPTH> early("early");
    hls::stream<int, 2> late("late");
    start([&] { for (int i = 0; i < 10; ++i) early.write(i); for (int i = 0; i < 10; ++i) late.write(i); }, "fork");
    start([&] { for (int i = 0; i < 10; ++i) early.read() - late.read(); }, "join");
    start([] {}, "nothing");
    run();
    std::printf("ended\n");
}

void starved() {
    hls::stream<int> in("in"), out("out");
    start([&] { copy<int>(in, out, 1); }, "copy");
    run();
}

void read_empty() {
    hls::stream<int> words("words");
    words.read();
}

void write_full() {
    hls::stream<int, 1> words("words");
    words.write(1);
    words.write(2);
}

void nested() {
    start([] { run(); });
    run();
}

// The order in which 20 processes go on, through queues of 1 to 3 words.
void order() {
    std::uint64_t trace = 0;
    hls::stream<int> in("in"), out("out");
    hls::stream<int, 1> a[10];
    hls::stream<int, 3> b[10];
    for (int i = 0; i < 500; ++i) in.write(i);
    auto stage = [&trace](hls::stream<int>& from, hls::stream<int>& to, std::uint64_t id) {
        start([&trace, &from, &to, id] {
            for (int i = 0; i < 500; ++i) {
                to.write(from.read());
                trace = trace * 6364136223846793005ull + id;
            }
        });
    };
    for (int i = 0; i < 10; ++i) {
        stage(i == 0 ? in : b[i - 1], a[i], 2 * i + 1);
        stage(a[i], b[i], 2 * i + 2);
    }
    start([&] { copy<int>(b[9], out, 500); });
    run();
    while (!out.empty()) trace = trace * 31 + out.read();
    std::printf("%llu\n", (unsigned long long)trace);
}

void left_over() {
    hls::stream<int, 4> words("words");
    words.write(1);
}

// 400 processes, each with local arrays of 2 MB.
void many() {
    hls::stream<int> out("out");
    for (int i = 0; i < 400; ++i) {
        start([&out, i] {
            volatile char memory[2 << 20];
            memory[0] = memory[(2 << 20) - 1] = 1;
            out.write(i * (memory[0] == memory[(2 << 20) - 1]));
        });
    }
    run();
    long sum = 0;
    while (!out.empty()) sum += out.read();
    std::printf("%ld\n", sum);
}

void leaves() {
    start([] { std::printf("bye\n"); std::exit(7); });
    run();
}

int main(int, char** arguments) {
    std::map<std::string, void (*)()> all = {
        {"chain", chain}, {"reports", reports}, {"bounded", bounded}, {"starved", starved}, {"order", order},
        {"branches of 9", branches<9>}, {"branches of 8", branches<8>}, {"read_empty", read_empty},
        {"write_full", write_full}, {"nested", nested}, {"left_over", left_over}, {"many", many}, {"leaves", leaves}};
    all.at(arguments[1])();
}
"""

# What `order` prints, with either way to change from one process to the next.
ORDER = "276908827019825666"

Ended = tuple[int, list[str], list[str]]


@pytest.fixture(scope="module", params=["", "-DQCOMP_SIM_SWAPCONTEXT"], ids=["jumps", "swapcontext"])
def program(request, tmp_path_factory) -> Path:
    flags = [flag for flag in ["-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-unused-value", request.param] if flag]
    return compile_program(PROGRAM, tmp_path_factory.mktemp("simulation"), HEADERS, *flags)


def ended(program: Path, name: str) -> Ended:
    """Exit code, lines of output and lines of errors."""
    done = subprocess.run([str(program), name], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_words_arrive_in_order_whatever_the_order_of_processes(program):
    assert ended(program, "chain") == (0, ["in order"], [])


def test_a_queue_never_holds_more_than_its_depth(program):
    assert ended(program, "bounded") == (0, ["5 0 0"], ["warning: stream first ends with 40 words in it"])


def test_a_report_has_all_streams_since_the_last_one(program):
    code, out, errors = ended(program, "reports")
    assert (code, out[:2], errors) == (0, ["in order", "in order"], [])
    first = ["in 0 1000 2000", "out 0 1000 2000", "one 3 3 2000", "two 1 1 2000", "alive 0 1 1", "unused 0 0 0"]
    assert out[2:] == [*first, "again", "alive 0 2 1", "unused 0 0 0"]


def test_a_queue_that_is_deep_enough_does_not_block(program):
    assert ended(program, "branches of 9") == (0, ["ended"], [])


def test_a_deadlock_names_processes_and_streams(program):
    assert ended(program, "branches of 8") == (
        4,
        [],
        [
            "error: deadlock: no process can go on",
            "  fork: waits to write to early, which is full (8 words, depth 8)",
            "  join: waits to read from late, which is empty (0 words, depth 2)",
            "  nothing: has ended",
        ],
    )


def test_a_process_without_input_is_a_deadlock(program):
    code, _, errors = ended(program, "starved")
    assert code == 4
    assert errors[1:] == ["  copy: waits to read from in, which is empty (0 words, depth 0)"]


def test_waiting_outside_of_processes_is_an_error(program):
    assert ended(program, "read_empty") == (3, [], ["error: stream words is empty and no process runs"])
    assert ended(program, "write_full") == (3, [], ["error: stream words is full and no process runs"])


def test_a_process_can_not_run_others(program):
    assert ended(program, "nested") == (3, [], ["error: a process can not run others"])


def test_words_that_nobody_reads_are_noticed(program):
    assert ended(program, "left_over") == (0, [], ["warning: stream words ends with 1 words in it"])


def test_processes_have_room_on_their_stacks(program):
    assert ended(program, "many") == (0, [str(sum(range(400)))], [])


def test_a_process_can_end_the_program(program):
    assert ended(program, "leaves") == (7, ["bye"], [])


def test_the_order_of_processes_is_always_the_same(program):
    assert ended(program, "order") == ended(program, "order") == (0, [ORDER], [])


def test_words_of_ports(tmp_path):
    source = r"""
    #include <cstdio>
    #include "ap_axi_sdata.h"
    #include "hls_stream.h"
    struct Pair { ap_uint<4> first, second; };
    int main() {
        hls::stream<ap_axiu<40, 0, 0, 0>> port("port");
        ap_axiu<40, 0, 0, 0> word;
        word.data = 1LL << 40 | 5;
        word.keep = word.strb = -1;
        word.last = 1;
        port.write(word);
        const hls::axis<ap_uint<40>, 0, 0, 0> read = port.read();
        hls::axis<Pair> pair;
        pair.keep_all();
        pair.set_last(0);
        std::printf("%lld %d %d %d ", read.data.to_int64(), read.keep.to_int(), read.keep.length(), read.last.to_int());
        std::printf("%d %d\n", pair.get_keep().to_int(), pair.get_last().to_int());
    }
    """
    assert compile_and_run(source, tmp_path, HEADERS).stdout == b"5 31 5 1 3 0\n"
