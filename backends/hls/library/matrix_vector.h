// Convolutions, products with a matrix, and depthwise convolutions: sums of products, then their requantization.
#ifndef QCOMP_MATRIX_VECTOR_H
#define QCOMP_MATRIX_VECTOR_H

#include "numbers.h"

namespace qcomp {

// An input times a weight: in LUTs, or in what the tool chooses.
template <bool IN_LUTS, int XBITS, int WBITS> ap_int<XBITS + WBITS> product(ap_uint<XBITS> x, ap_int<WBITS> weight) {
    QCOMP_INLINE
    if (!IN_LUTS) return x * weight;
    const ap_int<XBITS + WBITS> in_luts = x * weight;
    QCOMP_IN_LUTS(in_luts, mul)
    return in_luts;
}

// Sum of SIMD inputs times their weights.
template <class P>
ap_int<P::ACC> dot(const Word<P::XBITS, P::SIMD>& x,
                   const typename Packed<P::SIMD, P::WBITS>::word (&weights)[Packed<P::SIMD, P::WBITS>::WORDS]) {
    QCOMP_INLINE
    typedef Packed<P::SIMD, P::WBITS> packed;
    ap_int<P::ACC> sum = 0;
    for (int word = 0; word < packed::WORDS; ++word) {
        QCOMP_UNROLL
        for (int k = 0; k < packed::PER; ++k) {
            QCOMP_UNROLL
            const int lane = word * packed::PER + k;
            if (lane < P::SIMD) {
                sum += product<P::IN_LUTS, P::XBITS, P::WBITS>(x.lane[lane], weight_at<P::WBITS>(weights[word], k));
            }
        }
    }
    return sum;
}

// The matrix-vector unit: of every pixel's MW inputs, MH sums, PE of them and SIMD inputs a cycle.
//
// P: PIXELS, MW, MH, SIMD (divides MW), PE (divides MH), XBITS, WBITS, ACC (bits of every sum, bias included), IN_LUTS.
// weights: row i * (MW / SIMD) + j has those of sums i * PE ... for inputs j * SIMD ..., packed for each sum.
// bias: of sum i * PE + k at [i][k]; it holds the zero point of the inputs, too.
//
// Iterations: for pixel, for i in MH / PE, for j in MW / SIMD: reads if i == 0; writes if j == MW / SIMD - 1.
template <class P>
void matrix_vector(hls::stream<Word<P::XBITS, P::SIMD>>& in, hls::stream<Sums<P::ACC, P::PE>>& out,
                   const typename Packed<P::SIMD, P::WBITS>::word (
                       &weights)[(P::MH / P::PE) * (P::MW / P::SIMD)][P::PE][Packed<P::SIMD, P::WBITS>::WORDS],
                   const rom_int<P::ACC> (&bias)[P::MH / P::PE][P::PE]) {
    static_assert(P::MW % P::SIMD == 0 && P::MH % P::PE == 0, "SIMD divides MW, PE divides MH");
    QCOMP_RESHAPE(weights, 2)
    QCOMP_RESHAPE(weights, 3)
    QCOMP_RESHAPE(bias, 2)
    QCOMP_ROM(weights)
    QCOMP_ROM(bias)
    ap_uint<P::XBITS> inputs[P::MW / P::SIMD][P::SIMD];  // of this pixel
    QCOMP_RESHAPE(inputs, 2)
    Sums<P::ACC, P::PE> sums = {};
    QCOMP_PARTITION(sums.lane, 1)

    int row = 0;  // i * (MW / SIMD) + j
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        for (int i = 0; i < P::MH / P::PE; ++i) {
            for (int j = 0; j < P::MW / P::SIMD; ++j) {
                QCOMP_PIPELINE
                QCOMP_FLATTEN
                Word<P::XBITS, P::SIMD> x;
                if (i == 0) x = in.read();
                for (int lane = 0; lane < P::SIMD; ++lane) {
                    QCOMP_UNROLL
                    if (i == 0) inputs[j][lane] = x.lane[lane];
                    else x.lane[lane] = inputs[j][lane];
                }
                for (int k = 0; k < P::PE; ++k) {
                    QCOMP_UNROLL
                    if (j == 0) sums.lane[k] = bias[i][k];
                    sums.lane[k] += dot<P>(x, weights[row][k]);
                }
                if (j == P::MW / P::SIMD - 1) out.write(sums);
                row = row == (P::MH / P::PE) * (P::MW / P::SIMD) - 1 ? 0 : row + 1;
            }
        }
    }
}

// Adds to each of PE sums one input times its own weight.
template <class P>
void add_products(const Word<P::XBITS, P::PE>& x,
                  const typename Packed<P::PE, P::WBITS>::word (&weights)[Packed<P::PE, P::WBITS>::WORDS],
                  Sums<P::ACC, P::PE>& sums) {
    QCOMP_INLINE
    typedef Packed<P::PE, P::WBITS> packed;
    for (int word = 0; word < packed::WORDS; ++word) {
        QCOMP_UNROLL
        for (int k = 0; k < packed::PER; ++k) {
            QCOMP_UNROLL
            const int lane = word * packed::PER + k;
            if (lane < P::PE) {
                const ap_int<P::WBITS> weight = weight_at<P::WBITS>(weights[word], k);
                sums.lane[lane] += product<P::IN_LUTS, P::XBITS, P::WBITS>(x.lane[lane], weight);
            }
        }
    }
}

// Every channel for itself: of each pixel and group of PE channels, TAPS words -> one word of sums.
//
// P: PIXELS, GROUPS, PE, TAPS, XBITS, WBITS, ACC, IN_LUTS as above.
// weights: row group * TAPS + tap has those of PE channels, packed. bias: of channel k at [group][k].
//
// Iterations: for pixel, group, tap: reads; writes if tap == TAPS - 1.
template <class P>
void depthwise(hls::stream<Word<P::XBITS, P::PE>>& in, hls::stream<Sums<P::ACC, P::PE>>& out,
               const typename Packed<P::PE, P::WBITS>::word (
                   &weights)[P::GROUPS * P::TAPS][Packed<P::PE, P::WBITS>::WORDS],
               const rom_int<P::ACC> (&bias)[P::GROUPS][P::PE]) {
    QCOMP_RESHAPE(weights, 2)
    QCOMP_RESHAPE(bias, 2)
    QCOMP_ROM(weights)
    QCOMP_ROM(bias)
    Sums<P::ACC, P::PE> sums = {};
    QCOMP_PARTITION(sums.lane, 1)

    int row = 0;  // group * TAPS + tap
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        for (int group = 0; group < P::GROUPS; ++group) {
            for (int tap = 0; tap < P::TAPS; ++tap) {
                QCOMP_PIPELINE
                QCOMP_FLATTEN
                const Word<P::XBITS, P::PE> x = in.read();
                for (int k = 0; k < P::PE; ++k) {
                    QCOMP_UNROLL
                    if (tap == 0) sums.lane[k] = bias[group][k];
                }
                add_products<P>(x, weights[row], sums);
                if (tap == P::TAPS - 1) out.write(sums);
                row = row == P::GROUPS * P::TAPS - 1 ? 0 : row + 1;
            }
        }
    }
}

// clamp(rhe(sum * multiplier / 2^SHIFT) + ZERO, LOW, HIGH) of each sum, LANES of the PE of a word a cycle.
//
// P: WORDS (of sums), PE, LANES (divides PE), ROWS (multipliers; PE divides it, and WORDS / (ROWS / PE) is whole), ACC,
//    MBITS, and SHIFT, ZERO, LOW, HIGH, YBITS of requantize.
// multiplier: of row i * LANES + k at [i][k]. Sums come row by row, then again from the first row.
//
// Iterations: for word, for part in PE / LANES: reads if part == 0; writes.
template <class P>
void requantize_sums(hls::stream<Sums<P::ACC, P::PE>>& in, hls::stream<Word<P::YBITS, P::LANES>>& out,
                     const rom_word<P::MBITS> (&multiplier)[P::ROWS / P::LANES][P::LANES]) {
    static_assert(P::PE % P::LANES == 0 && P::ROWS % P::PE == 0, "LANES divides PE, PE divides ROWS");
    static_assert(P::ACC + P::MBITS <= 63, "products have at most 63 bits");
    QCOMP_RESHAPE(multiplier, 2)
    QCOMP_ROM(multiplier)
    Sums<P::ACC, P::PE> sums = {};  // moves down by LANES every iteration
    QCOMP_PARTITION(sums.lane, 1)

    int row = 0;
    for (int word = 0; word < P::WORDS; ++word) {
        for (int part = 0; part < P::PE / P::LANES; ++part) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            for (int k = 0; k < P::PE - P::LANES; ++k) {
                QCOMP_UNROLL
                sums.lane[k] = sums.lane[k + P::LANES];
            }
            if (part == 0) sums = in.read();
            Word<P::YBITS, P::LANES> y;
            for (int k = 0; k < P::LANES; ++k) {
                QCOMP_UNROLL
                const ap_uint<P::MBITS> factor = multiplier[row][k];
                y.lane[k] = requantize<P, P::ACC + P::MBITS>(sums.lane[k] * factor);
            }
            out.write(y);
            row = row == P::ROWS / P::LANES - 1 ? 0 : row + 1;
        }
    }
}

}  // namespace qcomp

#endif
