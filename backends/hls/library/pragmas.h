// Directives of Vitis HLS as macros: pragmas in synthesis (__SYNTHESIS__, or QCOMP_HLS defined), else nothing.
#ifndef QCOMP_PRAGMAS_H
#define QCOMP_PRAGMAS_H

#if defined(__SYNTHESIS__) && !defined(QCOMP_HLS)
#define QCOMP_HLS
#endif

#ifdef QCOMP_HLS
#define QCOMP_PRAGMA(text) _Pragma(#text)
#else
#define QCOMP_PRAGMA(text)
#endif

// One iteration a cycle. Flushing: iterations that have begun end even if the next one waits for input.
#define QCOMP_PIPELINE QCOMP_PRAGMA(HLS PIPELINE II=1 style=flp)
// In an innermost loop: this loop and those around it become one, without a pause between rows.
#define QCOMP_FLATTEN QCOMP_PRAGMA(HLS LOOP_FLATTEN)
#define QCOMP_UNROLL QCOMP_PRAGMA(HLS UNROLL)
#define QCOMP_INLINE QCOMP_PRAGMA(HLS INLINE)
#define QCOMP_DATAFLOW QCOMP_PRAGMA(HLS DATAFLOW)

// All elements of a dimension (1 is the first) at once: as registers, or side by side in wider words of a memory.
#define QCOMP_PARTITION(name, dimension) QCOMP_PRAGMA(HLS ARRAY_PARTITION variable=name type=complete dim=dimension)
#define QCOMP_RESHAPE(name, dimension) QCOMP_PRAGMA(HLS ARRAY_RESHAPE variable=name type=complete dim=dimension)
// Constants of which one row is read a cycle; and a table with many independent reads a cycle.
#define QCOMP_ROM(name) QCOMP_PRAGMA(HLS BIND_STORAGE variable=name type=rom_1p)
#define QCOMP_TABLE(name) QCOMP_PRAGMA(HLS BIND_STORAGE variable=name type=rom_np impl=lutram)
// An operation (mul, add) whose result is this variable takes no DSP slice.
#define QCOMP_IN_LUTS(name, operation) QCOMP_PRAGMA(HLS BIND_OP variable=name op=operation impl=fabric)
// A memory with one write and one read a cycle.
#define QCOMP_MEMORY(name) QCOMP_PRAGMA(HLS BIND_STORAGE variable=name type=ram_s2p)
// What an iteration writes is not read in the next few iterations; an iteration does not read what it writes itself.
#define QCOMP_WRITTEN_LONG_BEFORE(name)                                                 \
    QCOMP_PRAGMA(HLS DEPENDENCE variable=name type=inter direction=RAW dependent=false) \
    QCOMP_PRAGMA(HLS DEPENDENCE variable=name type=intra dependent=false)
// What an iteration writes is read so many iterations later at the earliest.
#define QCOMP_WRITTEN_BEFORE(name, iterations) \
    QCOMP_PRAGMA(HLS DEPENDENCE variable=name type=inter direction=RAW distance=iterations dependent=true)

// Words of a stream without padding between their lanes.
#define QCOMP_PACK(stream) QCOMP_PRAGMA(HLS AGGREGATE variable=stream compact=bit)
// Ports of the top function; a port named return is its control.
#define QCOMP_INTERFACE_STREAM(name) QCOMP_PRAGMA(HLS INTERFACE mode=axis port=name)
#define QCOMP_INTERFACE_MEMORY(name, words)                                                                            \
    QCOMP_PRAGMA(HLS INTERFACE mode=m_axi port=name bundle=name offset=slave depth=words)
#define QCOMP_INTERFACE_CONTROL(name) QCOMP_PRAGMA(HLS INTERFACE mode=s_axilite port=name)
#define QCOMP_INTERFACE_NONE(name) QCOMP_PRAGMA(HLS INTERFACE mode=ap_ctrl_none port=name)

// A call that runs at the same time as the others of its dataflow region, up to QCOMP_JOIN; in C simulation a process.
#ifdef QCOMP_HLS
#define QCOMP_PROCESS(...) __VA_ARGS__;
#define QCOMP_JOIN
#else
#include "processes.h"
#define QCOMP_PROCESS(...) qcomp_sim::start([&] { __VA_ARGS__; }, #__VA_ARGS__);
#define QCOMP_JOIN qcomp_sim::run();
#endif

#endif
