// Maxima of windows, averages of images, and the place of the largest channel.
#ifndef QCOMP_POOLING_H
#define QCOMP_POOLING_H

#include "numbers.h"

namespace qcomp {

// The largest of each window, out of a CHANNEL_MAJOR window whose PAD is 0.
//
// P: PIXELS, GROUPS, TAPS, LANES, BITS.
//
// Iterations: for pixel, group, tap: reads; writes if tap == TAPS - 1.
template <class P> void max_pool(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Word<P::BITS, P::LANES>>& out) {
    Word<P::BITS, P::LANES> largest = {};
    QCOMP_PARTITION(largest.lane, 1)
    for (int i = 0; i < P::PIXELS * P::GROUPS; ++i) {
        for (int tap = 0; tap < P::TAPS; ++tap) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            const Word<P::BITS, P::LANES> x = in.read();
            for (int lane = 0; lane < P::LANES; ++lane) {
                QCOMP_UNROLL
                if (tap == 0 || x.lane[lane] > largest.lane[lane]) largest.lane[lane] = x.lane[lane];
            }
            if (tap == P::TAPS - 1) out.write(largest);
        }
    }
}

// A sum of COUNT numbers of XBITS bits.
template <class P, int COUNT> using Sum = ap_uint<P::XBITS + bits_of(COUNT)>;

// clamp(rhe((sum - COUNT * ZX) * MULTIPLIER / 2^SHIFT) + ZERO, LOW, HIGH) of each sum.
template <class P, int COUNT> Word<P::YBITS, P::LANES> averages(const Sum<P, COUNT> (&sums)[P::LANES]) {
    QCOMP_INLINE
    static_assert(P::ZX < 1 << P::XBITS, "the zero point has the bits of the input");
    static const int SUM = P::XBITS + bits_of(COUNT) + 1, FACTOR = bits_of(P::MULTIPLIER);
    const ap_uint<FACTOR> factor = P::MULTIPLIER;
    Word<P::YBITS, P::LANES> y;
    for (int lane = 0; lane < P::LANES; ++lane) {
        QCOMP_UNROLL
        const ap_int<SUM> from_zero = sums[lane] - COUNT * P::ZX;
        y.lane[lane] = requantize<P, SUM + FACTOR>(from_zero * factor);
    }
    return y;
}

// The average of each channel of an image. MULTIPLIER / 2^SHIFT holds 1 / PIXELS.
//
// P: PIXELS, GROUPS, LANES, XBITS, YBITS, ZX, MULTIPLIER (positive), SHIFT, ZERO, LOW, HIGH.
//
// Iterations: for pixel, group: reads; writes if pixel == PIXELS - 1.
template <class P>
void global_average(hls::stream<Word<P::XBITS, P::LANES>>& in, hls::stream<Word<P::YBITS, P::LANES>>& out) {
    Sum<P, P::PIXELS> sums[P::GROUPS][P::LANES];
    QCOMP_RESHAPE(sums, 2)
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        for (int group = 0; group < P::GROUPS; ++group) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            QCOMP_WRITTEN_BEFORE(sums, P::GROUPS)
            const Word<P::XBITS, P::LANES> x = in.read();
            Sum<P, P::PIXELS> sum[P::LANES];
            QCOMP_PARTITION(sum, 1)
            for (int lane = 0; lane < P::LANES; ++lane) {
                QCOMP_UNROLL
                sum[lane] = x.lane[lane];
                if (pixel > 0) sum[lane] += sums[group][lane];
                sums[group][lane] = sum[lane];
            }
            if (pixel == P::PIXELS - 1) out.write(averages<P, P::PIXELS>(sum));
        }
    }
}

// The first index of the largest channel of each pixel.
//
// P: PIXELS, GROUPS, LANES, BITS.
//
// Iterations: for pixel, group: reads; writes if group == GROUPS - 1.
template <class P> void arg_max(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Word<16, 1>>& out) {
    static_assert(P::GROUPS * P::LANES <= 1 << 16, "indices have 16 bits");
    ap_uint<P::BITS> largest = 0;
    Word<16, 1> index = {};
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        for (int group = 0; group < P::GROUPS; ++group) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            const Word<P::BITS, P::LANES> x = in.read();
            for (int lane = 0; lane < P::LANES; ++lane) {
                QCOMP_UNROLL
                if ((group == 0 && lane == 0) || x.lane[lane] > largest) {
                    largest = x.lane[lane];
                    index.lane[0] = group * P::LANES + lane;
                }
            }
            if (group == P::GROUPS - 1) out.write(index);
        }
    }
}

}  // namespace qcomp

#endif
