// Operators on each number for itself.
#ifndef QCOMP_POINTWISE_H
#define QCOMP_POINTWISE_H

#include "numbers.h"

namespace qcomp {

// clamp(rhe(((a - ZA) * MA + (b - ZB) * MB) / 2^SHIFT) + ZERO, LOW, HIGH).
//
// P: WORDS, LANES, ABITS, BBITS, YBITS, ZA, ZB, MA, MB (positive), SHIFT, ZERO, LOW, HIGH.
//
// Iterations: WORDS: reads a, then b; writes.
template <class P>
void add(hls::stream<Word<P::ABITS, P::LANES>>& a, hls::stream<Word<P::BBITS, P::LANES>>& b,
         hls::stream<Word<P::YBITS, P::LANES>>& out) {
    static const int WIDTH = larger(P::ABITS + bits_of(P::MA), P::BBITS + bits_of(P::MB)) + 2;
    const ap_uint<bits_of(P::MA)> a_factor = P::MA;
    const ap_uint<bits_of(P::MB)> b_factor = P::MB;
    for (int i = 0; i < P::WORDS; ++i) {
        QCOMP_PIPELINE
        const Word<P::ABITS, P::LANES> x = a.read();
        const Word<P::BBITS, P::LANES> y = b.read();
        Word<P::YBITS, P::LANES> sum;
        for (int lane = 0; lane < P::LANES; ++lane) {
            QCOMP_UNROLL
            const ap_int<P::ABITS + 1> from_a = x.lane[lane] - P::ZA;
            const ap_int<P::BBITS + 1> from_b = y.lane[lane] - P::ZB;
            sum.lane[lane] = requantize<P, WIDTH>(from_a * a_factor + from_b * b_factor);
        }
        out.write(sum);
    }
}

// clamp(rhe((a - ZA) * (b - ZB) * MULTIPLIER / 2^SHIFT) + ZERO, LOW, HIGH).
//
// P: WORDS, LANES, ABITS, BBITS, YBITS, ZA, ZB, MULTIPLIER (positive), SHIFT, ZERO, LOW, HIGH.
//
// Iterations: WORDS: reads a, then b; writes.
template <class P>
void multiply(hls::stream<Word<P::ABITS, P::LANES>>& a, hls::stream<Word<P::BBITS, P::LANES>>& b,
              hls::stream<Word<P::YBITS, P::LANES>>& out) {
    static_assert(P::ZA < 1 << P::ABITS && P::ZB < 1 << P::BBITS, "zero points have the bits of their inputs");
    static const int WIDTH = P::ABITS + P::BBITS + 1 + bits_of(P::MULTIPLIER);
    const ap_uint<bits_of(P::MULTIPLIER)> factor = P::MULTIPLIER;
    for (int i = 0; i < P::WORDS; ++i) {
        QCOMP_PIPELINE
        const Word<P::ABITS, P::LANES> x = a.read();
        const Word<P::BBITS, P::LANES> y = b.read();
        Word<P::YBITS, P::LANES> product;
        for (int lane = 0; lane < P::LANES; ++lane) {
            QCOMP_UNROLL
            const ap_int<P::ABITS + 1> from_a = x.lane[lane] - P::ZA;
            const ap_int<P::BBITS + 1> from_b = y.lane[lane] - P::ZB;
            product.lane[lane] = requantize<P, WIDTH>(from_a * from_b * factor);
        }
        out.write(product);
    }
}

// table[x]: any function of one number.
//
// P: WORDS, LANES, XBITS, YBITS.
//
// Iterations: WORDS: reads; writes.
template <class P>
void lookup(hls::stream<Word<P::XBITS, P::LANES>>& in, hls::stream<Word<P::YBITS, P::LANES>>& out,
            const rom_word<P::YBITS> (&table)[1 << P::XBITS]) {
    QCOMP_TABLE(table)
    for (int i = 0; i < P::WORDS; ++i) {
        QCOMP_PIPELINE
        const Word<P::XBITS, P::LANES> x = in.read();
        Word<P::YBITS, P::LANES> y;
        for (int lane = 0; lane < P::LANES; ++lane) {
            QCOMP_UNROLL
            y.lane[lane] = table[x.lane[lane]];
        }
        out.write(y);
    }
}

}  // namespace qcomp

#endif
