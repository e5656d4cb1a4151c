// The sliding window of convolutions and pooling, out of a ring of rows.
#ifndef QCOMP_WINDOW_H
#define QCOMP_WINDOW_H

#include "numbers.h"

namespace qcomp {

// Sizes that follow from those of a window.
template <class P> struct WindowSizes {
    static_assert(P::TOP >= 0 && P::LEFT >= 0, "padding is not negative");
    static_assert(P::PAD < 1 << P::BITS, "padding has the bits of the image");

    // Rows that may be kept at once: those of an output row, and those that the next one adds.
    static const int RING = (P::KH - 1) * P::DILATION_H + 1 + P::STRIDE_H;
    static const int ROW = P::W * P::GROUPS;                    // words of an input row
    static const int EMIT = P::OW * P::KH * P::KW * P::GROUPS;  // words of an output row's windows
    // Iterations of an output row. A word is in the ring GUARD iterations before a window can ask for it.
    static const int GUARD = 8;
    static const int STEPS = larger(EMIT, P::STRIDE_H * ROW + GUARD);

    // Input rows that output rows 0 ... `row` need; not limited to those there are.
    static constexpr int wanted(int row) { return row * P::STRIDE_H + (P::KH - 1) * P::DILATION_H + 1 - P::TOP; }
    static constexpr int needed(int row) { return larger(0, smaller(wanted(row), P::H)); }
    // Words to be read while output row `row` is written.
    static constexpr int words(int row) { return (needed(row + 1) - needed(row)) * ROW; }
    // The place in the ring of the first window's first row, which is in the padding where TOP is not 0.
    static const int FIRST_SLOT = (RING - P::TOP % RING) % RING;
};

// The place `step` rows behind a place in the ring.
template <class P> int next_slot(int slot, int step) {
    QCOMP_INLINE
    const int next = slot + step;
    return next >= WindowSizes<P>::RING ? next - WindowSizes<P>::RING : next;
}

// Where the next word of the input is kept.
template <class P> struct InputPlace {
    int h = 0, slot = 0, column = 0;  // row of the image, its place in the ring, word of the row

    void next() {
        QCOMP_INLINE
        const bool last = column == WindowSizes<P>::ROW - 1;
        column = last ? 0 : column + 1;
        if (last) {
            h += 1;
            slot = next_slot<P>(slot, 1);
        }
    }
};

// Walks over the words of all windows of an output row, then those of the next row.
template <class P> struct WindowCursor {
    int top_slot = WindowSizes<P>::FIRST_SLOT, top = -P::TOP, left = -P::LEFT;  // of the window
    int slot = top_slot, h = top, w = left;                                    // of the word
    int kh = 0, kw = 0, group = 0;

    bool inside() const {
        QCOMP_INLINE
        return h >= 0 && h < P::H && w >= 0 && w < P::W;
    }

    // Next channels of the pixel; whether these were the last.
    bool next_group() {
        QCOMP_INLINE
        const bool last = group == P::GROUPS - 1;
        group = last ? 0 : group + 1;
        return last;
    }

    // Next pixel of the window, row by row; whether this was the last.
    bool next_tap() {
        QCOMP_INLINE
        const bool last_column = kw == P::KW - 1, last_row = kh == P::KH - 1;
        kw = last_column ? 0 : kw + 1;
        w = last_column ? left : w + P::DILATION_W;
        if (last_column) {
            kh = last_row ? 0 : kh + 1;
            h = last_row ? top : h + P::DILATION_H;
            slot = last_row ? top_slot : next_slot<P>(slot, P::DILATION_H);
        }
        return last_column && last_row;
    }

    // Next word of the window, or the first of the window to the right.
    void next_word() {
        QCOMP_INLINE
        if (P::CHANNEL_MAJOR ? next_tap() && next_group() : next_group() && next_tap()) {
            left += P::STRIDE_W;
            w = left;
        }
    }

    // From behind the last window of an output row to the first of the next one.
    void next_row() {
        QCOMP_INLINE
        top += P::STRIDE_H;
        top_slot = next_slot<P>(top_slot, P::STRIDE_H);
        left = -P::LEFT;
        h = top;
        slot = top_slot;
        w = left;
    }
};

template <class P> void store(const Word<P::BITS, P::LANES>& word, ap_uint<P::BITS> (&place)[P::LANES]) {
    QCOMP_INLINE
    for (int lane = 0; lane < P::LANES; ++lane) {
        QCOMP_UNROLL
        place[lane] = word.lane[lane];
    }
}

template <class P> Word<P::BITS, P::LANES> loaded(const ap_uint<P::BITS> (&place)[P::LANES], bool inside) {
    QCOMP_INLINE
    Word<P::BITS, P::LANES> word;
    for (int lane = 0; lane < P::LANES; ++lane) {
        QCOMP_UNROLL
        word.lane[lane] = inside ? place[lane] : ap_uint<P::BITS>(P::PAD);
    }
    return word;
}

// The windows of all output pixels, row by row. For each, all groups of channels of each tap (kh, kw), which is what
// matrix_vector reads; or, CHANNEL_MAJOR, all taps of each group, which depthwise and pooling read. Outside of the
// image there is PAD.
//
// P: H, W, GROUPS, LANES, BITS, PAD, CHANNEL_MAJOR, KH, KW, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TOP, LEFT (the
//    padding before the image), OH, OW.
//
// Iterations, with ROW, EMIT, STEPS, GUARD, needed(), words() of WindowSizes:
//   needed(0) * ROW: reads.
//   for row in OH, i in STEPS: reads words(row) words, spread evenly over the first STEPS - GUARD iterations, word n in
//     iteration ceil((n + 1) * (STEPS - GUARD) / words(row)) - 1; writes if i < EMIT.
//   (H - needed(OH)) * ROW: reads.
template <class P>
void window(hls::stream<Word<P::BITS, P::LANES>>& in, hls::stream<Word<P::BITS, P::LANES>>& out) {
    typedef WindowSizes<P> sizes;
    ap_uint<P::BITS> ring[sizes::RING][sizes::ROW][P::LANES];
    QCOMP_RESHAPE(ring, 3)
    QCOMP_MEMORY(ring)

    static const int FIRST = sizes::needed(0) * sizes::ROW, LAST = (P::H - sizes::needed(P::OH)) * sizes::ROW;
    InputPlace<P> place;
    for (int i = 0; i < FIRST; ++i) {
        QCOMP_PIPELINE
        store<P>(in.read(), ring[place.slot][place.column]);
        place.next();
    }
    WindowCursor<P> cursor;
    int progress = 0, speed = sizes::words(0);  // a word is read whenever progress passes STEPS - GUARD
    for (int row = 0; row < P::OH; ++row) {
        for (int i = 0; i < sizes::STEPS; ++i) {
            QCOMP_PIPELINE
            QCOMP_FLATTEN
            QCOMP_WRITTEN_LONG_BEFORE(ring)
            if (i < sizes::STEPS - sizes::GUARD) progress += speed;
            if (progress >= sizes::STEPS - sizes::GUARD) {
                progress -= sizes::STEPS - sizes::GUARD;
                store<P>(in.read(), ring[place.slot][place.column]);
                place.next();
            }
            if (i < sizes::EMIT) {
                const int column = cursor.inside() ? cursor.w * P::GROUPS + cursor.group : 0;
                out.write(loaded<P>(ring[cursor.slot][column], cursor.inside()));
                cursor.next_word();
            }
            if (i == sizes::STEPS - 1) {
                cursor.next_row();
                speed = sizes::words(row + 1);
            }
        }
    }
    for (int i = 0; i < LAST; ++i) {
        QCOMP_PIPELINE
        in.read();
    }
}

}  // namespace qcomp

#endif
