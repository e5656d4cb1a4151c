// Softmax over the channels of a pixel, in integers: a table of exponentials, their sum, one division.
#ifndef QCOMP_SOFTMAX_H
#define QCOMP_SOFTMAX_H

#include "numbers.h"

namespace qcomp {

// floor(number / divisor), a bit an iteration; number below 2^62.
inline unsigned long long quotient(unsigned long long number, unsigned long long divisor) {
    unsigned long long rest = 0, found = 0;
    for (int bit = 61; bit >= 0; --bit) {
        QCOMP_PIPELINE
        rest = (rest << 1) | ((number >> bit) & 1);
        found <<= 1;
        if (rest >= divisor) {
            rest -= divisor;
            found |= 1;
        }
    }
    return found;
}

// y = min(floor((e * R + half) / 2^SHIFT), 255) with e = table[largest - x] and R = floor(numerator / sum of e).
//
// P: PIXELS, CHANNELS, BITS, TABLE_BITS, SHIFT (1 .. 62).
// table: of largest - x. numerator: one entry, up to 2^61; e * R + half stays below 2^62.
//
// Iterations: for pixel: CHANNELS: reads; CHANNELS: sums; 62 of a division; CHANNELS: writes.
template <class P>
void softmax(hls::stream<Word<P::BITS, 1>>& in, hls::stream<Word<8, 1>>& out,
             const rom_word<P::TABLE_BITS> (&table)[1 << P::BITS], const rom_word<62> (&numerator)[1]) {
    QCOMP_TABLE(table)
    ap_uint<P::BITS> kept[P::CHANNELS];
    for (int pixel = 0; pixel < P::PIXELS; ++pixel) {
        ap_uint<P::BITS> largest = 0;
        for (int i = 0; i < P::CHANNELS; ++i) {
            QCOMP_PIPELINE
            const Word<P::BITS, 1> x = in.read();
            kept[i] = x.lane[0];
            if (x.lane[0] > largest) largest = x.lane[0];
        }
        unsigned long long total = 0;
        for (int i = 0; i < P::CHANNELS; ++i) {
            QCOMP_PIPELINE
            const ap_uint<P::BITS> below = largest - kept[i];
            total += (unsigned long long)table[below];
        }
        const unsigned long long factor = quotient(numerator[0], total);
        for (int i = 0; i < P::CHANNELS; ++i) {
            QCOMP_PIPELINE
            const ap_uint<P::BITS> below = largest - kept[i];
            const unsigned long long raw =
                ((unsigned long long)table[below] * factor + (1ULL << (P::SHIFT - 1))) >> P::SHIFT;
            Word<8, 1> y;
            y.lane[0] = raw > 255 ? 255 : raw;
            out.write(y);
        }
    }
}

}  // namespace qcomp

#endif
