// Runs the kernels of a dataflow region as coroutines, for C simulation. One thread and the same order every time: the
// next process that can go on, round robin. A process runs until it has to wait for a stream.
//
// Exit codes: 3 for a stream that is used where nothing can wait for it, 4 for a deadlock.
#ifndef QCOMP_SIMULATION_PROCESSES_H
#define QCOMP_SIMULATION_PROCESSES_H

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace qcomp_sim {

// Bytes of a process's stack, and of what is below it to stop an overflow. Memory that is not touched costs nothing.
const std::size_t STACK_BYTES = 4 << 20, GUARD_BYTES = 64 << 10;

inline void fail(const std::string& message) {
    std::fprintf(stderr, "error: %s\n", message.c_str());
    std::exit(3);
}

// What is known of all streams of one name and depth since the last report.
struct Record {
    std::string name;
    std::size_t depth;           // words; 0: unbounded
    std::size_t high_water;      // the most words that a stream held
    unsigned long long words;    // written to the streams, in all
    unsigned long long streams;  // constructed
    unsigned long long alive;    // not destroyed yet
};

inline std::list<Record>& records() {
    static std::list<Record> all;
    return all;
}

inline Record& record_of(const std::string& name, std::size_t depth) {
    for (Record& record : records()) {
        if (record.depth == depth && record.name == name) return record;
    }
    records().push_back(Record{name, depth, 0, 0, 0, 0});
    return records().back();
}

// Prints `name depth high-water-mark words` of every stream there was since the last report, and counts from 0 again.
// Streams of one name and depth (of a function called many times) share a line: the largest mark, the sum of words.
// The mark is that of this order of processes, in which who writes goes on until it has to wait.
inline void report(std::FILE* file) {
    for (Record& record : records()) {
        if (record.streams + record.alive > 0) {
            std::fprintf(file, "%s %zu %zu %llu\n", record.name.c_str(), record.depth, record.high_water, record.words);
        }
        record.high_water = 0;
        record.words = record.streams = 0;
    }
}

// The state of a stream, without its words.
class Channel {
public:
    Channel(const std::string& name, std::size_t depth) : record(record_of(name, depth)) {
        ++record.streams;
        ++record.alive;
    }
    ~Channel() {
        --record.alive;
        if (size > 0) std::fprintf(stderr, "warning: stream %s ends with %zu words in it\n", record.name.c_str(), size);
    }
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    bool empty() const { return size == 0; }
    bool full() const { return record.depth != 0 && size >= record.depth; }
    void count_write() {
        ++record.words;
        if (++size > record.high_water) record.high_water = size;
    }
    void count_read() { --size; }

    Record& record;
    std::size_t size = 0;  // words it holds
};

// Memory of a coroutine's stack.
class Stack {
public:
    Stack() : memory(mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) fail("no memory for a stack");
    }
    ~Stack() { munmap(memory, BYTES); }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;
    void* begin() const { return static_cast<char*>(memory) + GUARD_BYTES; }

private:
    static const std::size_t BYTES = GUARD_BYTES + STACK_BYTES;
    void* const memory;
};

// Where a coroutine, or the caller of run(), goes on.
struct Context {
    ucontext_t first;    // where it begins
    bool begun = false;  // it goes on at `place` instead
    void* place[5];
};

#if defined(__GNUC__) && !defined(__clang__) && !defined(QCOMP_SIM_SWAPCONTEXT)
// What swapcontext does, without its system call for the signal mask: six times as fast on streams of depth 2.
__attribute__((noinline)) inline void go_to(Context& next) { __builtin_longjmp(next.place, 1); }

__attribute__((noinline)) inline void change(Context& left, Context& next) {
    left.begun = true;
    if (__builtin_setjmp(left.place) != 0) return;
    if (next.begun) go_to(next);
    setcontext(&next.first);
}
#else
inline void change(Context& left, Context& next) { swapcontext(&left.first, &next.first); }
#endif

struct Process {
    std::string name;
    std::function<void()> body;
    Stack stack;
    Context context;
    const Channel* waits = nullptr;  // for this stream
    bool writes = false;             // until it has room; else until it has a word
    bool ended = false;

    Process(const std::string& name, std::function<void()> body) : name(name), body(std::move(body)) {}
    bool ready() const { return !ended && (waits == nullptr || !(writes ? waits->full() : waits->empty())); }
};

class Scheduler {
public:
    void start(std::function<void()> body, const std::string& name) {
        processes.emplace_back(new Process(name, std::move(body)));
        ucontext_t& first = processes.back()->context.first;
        getcontext(&first);
        first.uc_stack.ss_sp = processes.back()->stack.begin();
        first.uc_stack.ss_size = STACK_BYTES;
        first.uc_link = nullptr;
        makecontext(&first, &Scheduler::enter, 0);
    }

    void run() {
        if (running) fail("a process can not run others");
        running = true;
        current = processes.size() - 1;
        leave(outside);
        running = false;
        processes.clear();
    }

    // Returns when the stream has room (writes) or a word (not writes).
    void wait(const Channel& channel, bool writes) {
        if (!running) {
            fail("stream " + channel.record.name + (writes ? " is full" : " is empty") + " and no process runs");
        }
        Process& process = *processes[current];
        process.waits = &channel;
        process.writes = writes;
        leave(process.context);
        process.waits = nullptr;
    }

private:
    static void enter();

    // Goes from a context to the next process that can go on, or out of run() if all have ended.
    void leave(Context& left) {
        std::size_t ended = 0;
        for (std::size_t i = 0; i < processes.size(); ++i) {
            current = current + 1 < processes.size() ? current + 1 : 0;
            Process& next = *processes[current];
            if (next.ready()) return change(left, next.context);
            ended += next.ended;
        }
        if (ended < processes.size()) deadlock();
        if (ended > 0) change(left, outside);
    }

    void deadlock() const {
        std::fprintf(stderr, "error: deadlock: no process can go on\n");
        for (const std::unique_ptr<Process>& process : processes) {
            std::fprintf(stderr, "  %s: ", process->name.c_str());
            if (process->ended) {
                std::fprintf(stderr, "has ended\n");
                continue;
            }
            const Channel& stream = *process->waits;
            std::fprintf(stderr, "waits to %s, which is %s (%zu words, depth %zu)\n",
                         ((process->writes ? "write to " : "read from ") + stream.record.name).c_str(),
                         process->writes ? "full" : "empty", stream.size, stream.record.depth);
        }
        std::exit(4);
    }

    std::vector<std::unique_ptr<Process>> processes;
    Context outside;
    std::size_t current = 0;
    bool running = false;
};

// Never destroyed: a process may call exit(), and runs on a stack of the scheduler's.
inline Scheduler& scheduler() {
    static Scheduler* const one = new Scheduler;
    return *one;
}

inline void Scheduler::enter() {
    Process& process = *scheduler().processes[scheduler().current];
    process.body();
    process.ended = true;
    scheduler().leave(process.context);
}

// Adds a process, which begins at run(). The name is for messages.
inline void start(std::function<void()> body, const std::string& name = "process") {
    scheduler().start(std::move(body), name);
}

// Runs all processes until they have ended.
inline void run() { scheduler().run(); }

}  // namespace qcomp_sim

#endif
