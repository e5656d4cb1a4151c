// Words of streams, words of constant memories, and the one way in which numbers are rounded and clamped.
#ifndef QCOMP_NUMBERS_H
#define QCOMP_NUMBERS_H

#include "ap_int.h"
#include "hls_stream.h"
#include "pragmas.h"

namespace qcomp {

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Bits of an unsigned number, at least 1.
constexpr int bits_of(long long number) {
    int bits = 1;
    while (number >> bits > 0) ++bits;
    return bits;
}

// What a stream carries: LANES neighbouring channels of a pixel, unsigned integers of BITS bits.
template <int BITS, int LANES> struct Word {
    ap_uint<BITS> lane[LANES];
};

// What a stream of sums carries: LANES neighbouring accumulators.
template <int BITS, int LANES> struct Sums {
    ap_int<BITS> lane[LANES];
};

// Constants, as they are kept. Native integers in simulation, so that large tables compile fast.
#ifdef QCOMP_HLS
template <int BITS> using rom_word = ap_uint<BITS>;
template <int BITS> using rom_int = ap_int<BITS>;
#else
template <int BITS> using rom_word = unsigned long long;
template <int BITS> using rom_int = long long;
#endif

// COUNT weights of WBITS bits each in words of at most 64 bits: weight i in word i / PER, at bit i % PER * WBITS.
template <int COUNT, int WBITS> struct Packed {
    static const int PER = smaller(COUNT, 64 / WBITS);
    static const int WORDS = (COUNT + PER - 1) / PER;
    typedef rom_word<PER * WBITS> word;
};

// Weight `index` of a word, two's complement.
template <int WBITS, class WORD> ap_int<WBITS> weight_at(WORD word, int index) {
    QCOMP_INLINE
    return ap_int<WBITS>(word >> (index * WBITS));
}

// number / 2^SHIFT, halves to even: floor((number + half - 1 + odd) / 2^SHIFT), odd = floor(number / 2^SHIFT) modulo 2.
template <int SHIFT, int WIDTH> ap_int<WIDTH> round_half_even(ap_int<WIDTH> number) {
    QCOMP_INLINE
    static_assert(SHIFT >= 0 && SHIFT <= 62 && WIDTH <= 63, "sums of rounding have at most 64 bits");
    if (SHIFT == 0) return number;
    const ap_uint<larger(SHIFT, 1)> below_half = ((1ULL << SHIFT) >> 1) - 1;
    const ap_uint<1> odd = number >> SHIFT;
    const ap_int<larger(WIDTH, SHIFT + 1) + 1> sum = number + below_half + odd;
    return sum >> SHIFT;
}

// clamp(round_half_even(number / 2^SHIFT) + ZERO, LOW, HIGH), with SHIFT, ZERO, LOW, HIGH, YBITS of P.
template <class P, int WIDTH> ap_uint<P::YBITS> requantize(ap_int<WIDTH> number) {
    QCOMP_INLINE
    static_assert(0 <= P::LOW && P::LOW <= P::HIGH && P::HIGH < 1 << P::YBITS, "results have YBITS bits");
    const ap_int<WIDTH> rounded = round_half_even<P::SHIFT, WIDTH>(number);
    if (rounded < P::LOW - P::ZERO) return P::LOW;
    if (rounded > P::HIGH - P::ZERO) return P::HIGH;
    return rounded + P::ZERO;
}

}  // namespace qcomp

#endif
