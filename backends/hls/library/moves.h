// What moves words and does not calculate: copies, other widths, concatenation, slices, padding.
#ifndef QCOMP_MOVES_H
#define QCOMP_MOVES_H

#include "numbers.h"

namespace qcomp {

// Two copies of a stream of WORDS words.
//
// Iterations: WORDS: reads; writes one, then two.
template <int BITS, int LANES, int WORDS>
void fork(hls::stream<Word<BITS, LANES>>& in, hls::stream<Word<BITS, LANES>>& one,
          hls::stream<Word<BITS, LANES>>& two) {
    for (int i = 0; i < WORDS; ++i) {
        QCOMP_PIPELINE
        const Word<BITS, LANES> word = in.read();
        one.write(word);
        two.write(word);
    }
}

// WORDS_IN words of LANES_IN lanes as words of LANES_OUT; one number of lanes divides the other.
//
// Iterations: narrowing: for word, part in LANES_IN / LANES_OUT: reads if part == 0; writes.
//   Widening: for word, part in LANES_OUT / LANES_IN: reads; writes if that was the last part.
template <int BITS, int LANES_IN, int LANES_OUT, int WORDS_IN>
void convert(hls::stream<Word<BITS, LANES_IN>>& in, hls::stream<Word<BITS, LANES_OUT>>& out) {
    static_assert(LANES_IN % LANES_OUT == 0 || LANES_OUT % LANES_IN == 0, "one number of lanes divides the other");
    static const int LANES = smaller(LANES_IN, LANES_OUT), MOST = larger(LANES_IN, LANES_OUT);
    static const int PARTS = MOST / LANES, WIDE_WORDS = WORDS_IN * LANES_IN / MOST;
    static_assert(WIDE_WORDS * MOST == WORDS_IN * LANES_IN, "no word is left half full");
    static const bool NARROWS = LANES_IN == MOST;
    Word<BITS, MOST> wide = {};  // moves down by LANES every iteration
    QCOMP_PARTITION(wide.lane, 1)
    for (int word = 0; word < WIDE_WORDS; ++word) {
        for (int part = 0; part < PARTS; ++part) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            for (int lane = 0; lane < MOST - LANES; ++lane) {
                QCOMP_UNROLL
                wide.lane[lane] = wide.lane[lane + LANES];
            }
            if (!NARROWS || part == 0) {
                const Word<BITS, LANES_IN> x = in.read();
                for (int lane = 0; lane < LANES_IN; ++lane) {
                    QCOMP_UNROLL
                    wide.lane[MOST - LANES_IN + lane] = x.lane[lane];
                }
            }
            if (NARROWS || part == PARTS - 1) {
                Word<BITS, LANES_OUT> y;
                for (int lane = 0; lane < LANES_OUT; ++lane) {
                    QCOMP_UNROLL
                    y.lane[lane] = wide.lane[lane];
                }
                out.write(y);
            }
        }
    }
}

// Of each pixel, A_WORDS words of a, then B_WORDS words of b.
//
// P: PIXELS, A_WORDS, B_WORDS, BITS, LANES.
//
// Iterations: for pixel, i in A_WORDS + B_WORDS: reads a if i < A_WORDS, else b; writes.
template <class P>
void concat(hls::stream<Word<P::BITS, P::LANES>>& a, hls::stream<Word<P::BITS, P::LANES>>& b,
            hls::stream<Word<P::BITS, P::LANES>>& out) {
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        for (int i = 0; i < P::A_WORDS + P::B_WORDS; ++i) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            if (i < P::A_WORDS) out.write(a.read());
            else out.write(b.read());
        }
    }
}

// Rows H0, H0 + SH, ... (OH of them), columns W0, W0 + SW, ... (OW of them), groups of channels G0 ... G1 - 1.
//
// P: H, W, GROUPS, H0, SH, OH, W0, SW, OW, G0, G1, BITS, LANES. Steps are positive.
//
// Iterations: for h, w, group: reads; writes if the word is kept.
template <class P> void slice(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Word<P::BITS, P::LANES>>& out) {
    static const int LAST_H = P::H0 + (P::OH - 1) * P::SH, LAST_W = P::W0 + (P::OW - 1) * P::SW;
    static_assert(P::SH > 0 && P::SW > 0 && LAST_H < P::H && LAST_W < P::W && P::G1 <= P::GROUPS, "within the image");
    int next_h = P::H0, next_w = P::W0;  // to be kept
    for (int h = 0; h < P::H; ++h) {
        for (int w = 0; w < P::W; ++w) {
            for (int group = 0; group < P::GROUPS; ++group) {
                QCOMP_PIPELINE
                QCOMP_FLATTEN
                const Word<P::BITS, P::LANES> word = in.read();
                const bool row = h == next_h && h <= LAST_H, column = w == next_w && w <= LAST_W;
                if (row && column && group >= P::G0 && group < P::G1) out.write(word);
                if (group == P::GROUPS - 1) {
                    const bool row_ends = w == P::W - 1;
                    if (row_ends && row) next_h += P::SH;
                    if (row_ends) next_w = P::W0;
                    else if (column) next_w += P::SW;
                }
            }
        }
    }
}

// Words of PAD around: TOP, BOTTOM rows; LEFT, RIGHT columns; BEFORE, AFTER groups of channels.
//
// P: H, W, GROUPS (of the input), TOP, BOTTOM, LEFT, RIGHT, BEFORE, AFTER, PAD, BITS, LANES.
//
// Iterations: for h, w, group of the output: reads if within the input; writes.
template <class P> void pad(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Word<P::BITS, P::LANES>>& out) {
    for (int h = -P::TOP; h < P::H + P::BOTTOM; ++h) {
        for (int w = -P::LEFT; w < P::W + P::RIGHT; ++w) {
            for (int group = -P::BEFORE; group < P::GROUPS + P::AFTER; ++group) {
                QCOMP_PIPELINE
                QCOMP_FLATTEN
                Word<P::BITS, P::LANES> word;
                for (int lane = 0; lane < P::LANES; ++lane) {
                    QCOMP_UNROLL
                    word.lane[lane] = P::PAD;
                }
                const bool pixel = h >= 0 && h < P::H && w >= 0 && w < P::W;
                if (pixel && group >= 0 && group < P::GROUPS) word = in.read();
                out.write(word);
            }
        }
    }
}

}  // namespace qcomp

#endif
