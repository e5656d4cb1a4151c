// The ports of a design: AXI streams of words whose lanes are bytes (or pairs of bytes), the first in the lowest.
#ifndef QCOMP_ENDS_H
#define QCOMP_ENDS_H

#include "ap_axi_sdata.h"
#include "numbers.h"

namespace qcomp {

// A word of a port of so many bits, with TLAST at the end of a sample.
template <int BITS> using Beat = hls::axis<ap_uint<BITS>, 0, 0, 0>;

// Bits that a lane has on a port.
constexpr int on_port(int bits) { return bits <= 8 ? 8 : 16; }

// A sample from its port.
// P: WORDS, LANES, BITS, PORT (bits of the port).
// Iterations: WORDS: reads; writes.
template <class P> void read_input(hls::stream<Beat<P::PORT>>& port, hls::stream<Word<P::BITS, P::LANES>>& out) {
    for (int i = 0; i < P::WORDS; ++i) {
        QCOMP_PIPELINE
        const ap_uint<P::PORT> data = port.read().data;
        Word<P::BITS, P::LANES> word;
        for (int lane = 0; lane < P::LANES; ++lane) {
            QCOMP_UNROLL
            word.lane[lane] = ap_uint<P::BITS>(data >> (lane * on_port(P::BITS)));
        }
        out.write(word);
    }
}

// A sample to its port.
// P: as above. Iterations: WORDS: reads; writes.
template <class P> void write_output(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Beat<P::PORT>>& port) {
    for (int i = 0; i < P::WORDS; ++i) {
        QCOMP_PIPELINE
        const Word<P::BITS, P::LANES> word = in.read();
        ap_uint<P::PORT> data = 0;
        for (int lane = 0; lane < P::LANES; ++lane) {
            QCOMP_UNROLL
            data |= ap_uint<P::PORT>(word.lane[lane]) << (lane * on_port(P::BITS));
        }
        Beat<P::PORT> beat;
        beat.data = data;
        beat.keep = -1;
        beat.strb = -1;
        beat.last = i == P::WORDS - 1;
        port.write(beat);
    }
}

// A sample out of memory, in beats, and into it. Iterations: WORDS: reads; writes.
template <int BITS, int WORDS> void load(const ap_uint<BITS>* memory, hls::stream<Beat<BITS>>& port) {
    for (int i = 0; i < WORDS; ++i) {
        QCOMP_PIPELINE
        Beat<BITS> beat;
        beat.data = memory[i];
        beat.keep = -1;
        beat.strb = -1;
        beat.last = i == WORDS - 1;
        port.write(beat);
    }
}

template <int BITS, int WORDS> void store(hls::stream<Beat<BITS>>& port, ap_uint<BITS>* memory) {
    for (int i = 0; i < WORDS; ++i) {
        QCOMP_PIPELINE
        memory[i] = port.read().data;
    }
}

}  // namespace qcomp

#endif
