// Integers of N bits, ap_int<N> and ap_uint<N>, for C simulation without a vendor's headers. N is 1 to 128.
//
// Values and result types are those of Vitis HLS (UG1399, "Class Methods, Operators, and Data Members" of ap_[u]int):
// assignment wraps modulo 2^N; + - * & | ^ and unary minus have results wide enough to be exact; << >> and ~ keep
// the width of their left operand, so that bits are lost to the left. A native operand counts as an integer of its own
// width. There is no conversion from floating point.
#ifndef QCOMP_SIMULATION_AP_INT_H
#define QCOMP_SIMULATION_AP_INT_H

#include <ostream>
#include <type_traits>

template <int W, bool SIGNED> class ap_int_base;
template <int W, bool SIGNED> class ap_bits;
template <int N> class ap_int;
template <int N> class ap_uint;

namespace qcomp_sim {

__extension__ typedef __int128 int128;
__extension__ typedef unsigned __int128 uint128;

template <class T> struct is {
    typedef T type;
};

// The native integer of so many bytes.
template <int BYTES, bool SIGNED> struct native;
template <> struct native<1, true> : is<signed char> {};
template <> struct native<1, false> : is<unsigned char> {};
template <> struct native<2, true> : is<short> {};
template <> struct native<2, false> : is<unsigned short> {};
template <> struct native<4, true> : is<int> {};
template <> struct native<4, false> : is<unsigned int> {};
template <> struct native<8, true> : is<long long> {};
template <> struct native<8, false> : is<unsigned long long> {};
template <> struct native<16, true> : is<int128> {};
template <> struct native<16, false> : is<uint128> {};

constexpr int bytes_of(int bits) { return bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : bits <= 64 ? 8 : 16; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

// The smallest native integer of at least W bits, in which a value is kept; and of at least 32 bits, to calculate in.
template <int W, bool SIGNED> using storage_t = typename native<bytes_of(W), SIGNED>::type;
template <int W, bool SIGNED> using working_t = typename native<larger(4, bytes_of(W)), SIGNED>::type;

// What operators need to know of an operand. known: it is an integer; arbitrary: it is one of this header.
template <int W, bool SIGNED, bool ARBITRARY> struct integer {
    static const bool known = true, arbitrary = ARBITRARY, is_signed = SIGNED;
    static const int width = W;
};
template <class T> struct number {
    static const bool known = false, arbitrary = false;
};
template <> struct number<bool> : integer<1, false, false> {};
template <> struct number<char> : integer<8, std::is_signed<char>::value, false> {};
template <> struct number<signed char> : integer<8, true, false> {};
template <> struct number<unsigned char> : integer<8, false, false> {};
template <> struct number<short> : integer<16, true, false> {};
template <> struct number<unsigned short> : integer<16, false, false> {};
template <> struct number<int> : integer<32, true, false> {};
template <> struct number<unsigned int> : integer<32, false, false> {};
template <> struct number<long> : integer<8 * sizeof(long), true, false> {};
template <> struct number<unsigned long> : integer<8 * sizeof(long), false, false> {};
template <> struct number<long long> : integer<64, true, false> {};
template <> struct number<unsigned long long> : integer<64, false, false> {};
template <int W, bool SIGNED> struct number<ap_int_base<W, SIGNED>> : integer<W, SIGNED, true> {};
template <int W, bool SIGNED> struct number<ap_bits<W, SIGNED>> : integer<W, false, true> {};
template <int N> struct number<ap_int<N>> : integer<N, true, true> {};
template <int N> struct number<ap_uint<N>> : integer<N, false, true> {};

template <class T> using if_integer = typename std::enable_if<number<T>::known>::type;
template <class T> using if_arbitrary = typename std::enable_if<number<T>::arbitrary>::type;
template <class A, class B>
using if_operands = typename std::enable_if<number<A>::known && number<B>::known &&
                                            (number<A>::arbitrary || number<B>::arbitrary)>::type;

template <class T> constexpr typename std::enable_if<!number<T>::arbitrary, T>::type value_of(T x) { return x; }
template <int W, bool SIGNED> constexpr storage_t<W, SIGNED> value_of(const ap_int_base<W, SIGNED>& x) {
    return x.value();
}
template <int W, bool SIGNED> constexpr storage_t<W, false> value_of(const ap_bits<W, SIGNED>& x) { return x.value(); }

// Marks a value that needs no wrapping.
struct Fits {};

// The type of W bits that operators return.
template <int W, bool SIGNED> struct any_int : is<ap_int<W>> {};
template <int W> struct any_int<W, false> : is<ap_uint<W>> {};
template <int W, bool SIGNED> using int_t = typename any_int<W, SIGNED>::type;

// Types of results of A op B.
template <class A, class B> struct result {
    static const bool sa = number<A>::is_signed, sb = number<B>::is_signed, either = sa || sb;
    static const int wa = number<A>::width, wb = number<B>::width;
    static const int both = larger(wa + (sb && !sa), wb + (sa && !sb));  // holds either operand
    // Vendors' tools compare integers of mixed signs as C does: as unsigned ones, unless the signed one is wider.
    static const bool ordered = sa == sb || (sa ? wa > wb : wb > wa);
    typedef int_t<both + 1, either> sum;
    typedef int_t<both + 1, true> difference;
    typedef int_t<wa + wb, either> product;
    typedef int_t<both, either> logic;
    typedef int_t<wa, sa> shift;
};

// The native integer to calculate in, of a result.
template <class R> using working_of = working_t<number<R>::width, number<R>::is_signed>;

}  // namespace qcomp_sim

// The value and the members of ap_int<W> (SIGNED, two's complement) and ap_uint<W>.
template <int W, bool SIGNED> class ap_int_base {
    static_assert(W >= 1 && W <= 128, "the simulation has integers of 1 to 128 bits");

public:
    typedef qcomp_sim::storage_t<W, SIGNED> storage;
    typedef qcomp_sim::storage_t<(W < 64 ? W : 64), SIGNED> converted;
    typedef qcomp_sim::int_t<W, SIGNED> same;
    static const int width = W;

    ap_int_base() = default;
    template <class T, class = qcomp_sim::if_integer<T>>
    constexpr ap_int_base(T x) : bits(wrapped(static_cast<modulo>(qcomp_sim::value_of(x)))) {}
    constexpr ap_int_base(storage x, qcomp_sim::Fits) : bits(x) {}

    constexpr storage value() const { return bits; }
    constexpr operator converted() const { return static_cast<converted>(bits); }
    constexpr int to_int() const { return static_cast<int>(bits); }
    constexpr unsigned int to_uint() const { return static_cast<unsigned int>(bits); }
    constexpr long long to_int64() const { return static_cast<long long>(bits); }
    constexpr unsigned long long to_uint64() const { return static_cast<unsigned long long>(bits); }
    constexpr int length() const { return W; }

    constexpr bool operator[](int bit) const { return (bits >> bit) & 1; }
    ap_bits<W, SIGNED> operator[](int bit) { return ap_bits<W, SIGNED>(*this, bit, bit); }
    ap_bits<W, SIGNED> range(int high, int low) { return ap_bits<W, SIGNED>(*this, high, low); }
    ap_int_base<W, false> range(int high, int low) const {
        ap_int_base copy(*this);
        return copy.range(high, low);
    }

    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_int_base& operator+=(T x) {
        bits = wrapped(static_cast<modulo>(bits) + static_cast<modulo>(qcomp_sim::value_of(x)));
        return *this;
    }
    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_int_base& operator-=(T x) {
        bits = wrapped(static_cast<modulo>(bits) - static_cast<modulo>(qcomp_sim::value_of(x)));
        return *this;
    }
    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_int_base& operator*=(T x) {
        bits = wrapped(static_cast<modulo>(bits) * static_cast<modulo>(qcomp_sim::value_of(x)));
        return *this;
    }
#define QCOMP_SIM_ASSIGNMENT(OP, BINARY)                                                           \
    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_int_base& operator OP(T x) { \
        return *this = ap_int_base(*this BINARY x);                                                \
    }
    QCOMP_SIM_ASSIGNMENT(&=, &)
    QCOMP_SIM_ASSIGNMENT(|=, |)
    QCOMP_SIM_ASSIGNMENT(^=, ^)
    QCOMP_SIM_ASSIGNMENT(<<=, <<)
    QCOMP_SIM_ASSIGNMENT(>>=, >>)
#undef QCOMP_SIM_ASSIGNMENT

    constexpr ap_int_base& operator++() { return *this += 1; }
    constexpr ap_int_base& operator--() { return *this -= 1; }
    constexpr same operator++(int) {
        const same before = *this;
        *this += 1;
        return before;
    }
    constexpr same operator--(int) {
        const same before = *this;
        *this -= 1;
        return before;
    }

    constexpr same operator+() const { return *this; }
    constexpr qcomp_sim::int_t<W + 1, true> operator-() const {
        return {static_cast<qcomp_sim::storage_t<W + 1, true>>(-static_cast<qcomp_sim::working_t<W + 1, true>>(bits)),
                qcomp_sim::Fits()};
    }
    constexpr same operator~() const { return same(wrapped(~static_cast<modulo>(bits)), qcomp_sim::Fits()); }
    constexpr bool operator!() const { return bits == 0; }

    // Bits that leave are lost; a negative count shifts the other way.
    constexpr same shifted_left(long long count) const {
        if (count < 0) return shifted_right(-count);
        return same(count >= W ? storage(0) : wrapped(static_cast<modulo>(bits) << count), qcomp_sim::Fits());
    }
    constexpr same shifted_right(long long count) const {
        if (count < 0) return shifted_left(-count);
        const storage sign_or_zero = bits < 0 ? -1 : 0;
        return same(count >= W ? sign_or_zero : static_cast<storage>(bits >> count), qcomp_sim::Fits());
    }

private:
    typedef qcomp_sim::working_t<W, false> modulo;

    static constexpr storage wrapped(modulo x) {
        const int unused = 8 * static_cast<int>(sizeof(modulo)) - W;
        typedef qcomp_sim::working_t<W, SIGNED> extended;
        return static_cast<storage>(static_cast<extended>(x << unused) >> unused);
    }

    storage bits;
};

template <int W, bool SIGNED> const int ap_int_base<W, SIGNED>::width;

// Signed integer of N bits.
template <int N> class ap_int : public ap_int_base<N, true> {
public:
    ap_int() = default;
    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_int(T x) : ap_int_base<N, true>(x) {}
    constexpr ap_int(qcomp_sim::storage_t<N, true> x, qcomp_sim::Fits fits) : ap_int_base<N, true>(x, fits) {}
};

// Unsigned integer of N bits.
template <int N> class ap_uint : public ap_int_base<N, false> {
public:
    ap_uint() = default;
    template <class T, class = qcomp_sim::if_integer<T>> constexpr ap_uint(T x) : ap_int_base<N, false>(x) {}
    constexpr ap_uint(qcomp_sim::storage_t<N, false> x, qcomp_sim::Fits fits) : ap_int_base<N, false>(x, fits) {}
};

// Bits high to low of a variable, to read as an unsigned integer or to assign.
template <int W, bool SIGNED> class ap_bits {
public:
    ap_bits(ap_int_base<W, SIGNED>& variable, int high, int low) : variable(variable), high(high), low(low) {}
    ap_bits(const ap_bits&) = default;

    qcomp_sim::storage_t<W, false> value() const { return ((field(variable) >> low) & mask()).value(); }
    operator typename ap_int_base<W, false>::converted() const { return field(value()); }
    template <class T, class = qcomp_sim::if_integer<T>> ap_bits& operator=(T x) {
        const field kept = field(variable) & ~(mask() << low);
        variable = kept | ((field(x) & mask()) << low);
        return *this;
    }
    ap_bits& operator=(const ap_bits& other) { return *this = field(other.value()); }

private:
    typedef ap_int_base<W, false> field;
    field mask() const { return ~field(0) >> (W - 1 - (high - low)); }

    ap_int_base<W, SIGNED>& variable;
    const int high, low;
};

// Operators of integers A and B, at least one of them of this header, calculated in the native type of the RESULT.
// They take values, not references, so that constants of a class need no definition.
#define QCOMP_SIM_OPERATOR(OP, RESULT)                                                                  \
    template <class A, class B, class = qcomp_sim::if_operands<A, B>>                                   \
    constexpr typename qcomp_sim::result<A, B>::RESULT operator OP(A a, B b) {                          \
        typedef typename qcomp_sim::result<A, B>::RESULT R;                                             \
        typedef qcomp_sim::working_of<R> working;                                                       \
        return R(static_cast<typename R::storage>(static_cast<working>(qcomp_sim::value_of(a))          \
                                                      OP static_cast<working>(qcomp_sim::value_of(b))), \
                 qcomp_sim::Fits());                                                                    \
    }
#define QCOMP_SIM_COMPARISON(OP)                                                                             \
    template <class A, class B, class = qcomp_sim::if_operands<A, B>> constexpr bool operator OP(A a, B b) { \
        static_assert(qcomp_sim::result<A, B>::ordered,                                                      \
                      "a signed is compared with an unsigned integer as wide: cast one");                    \
        typedef qcomp_sim::working_of<typename qcomp_sim::result<A, B>::logic> working;                      \
        return static_cast<working>(qcomp_sim::value_of(a)) OP static_cast<working>(qcomp_sim::value_of(b)); \
    }
QCOMP_SIM_OPERATOR(+, sum)
QCOMP_SIM_OPERATOR(-, difference)
QCOMP_SIM_OPERATOR(*, product)
QCOMP_SIM_OPERATOR(&, logic)
QCOMP_SIM_OPERATOR(|, logic)
QCOMP_SIM_OPERATOR(^, logic)
QCOMP_SIM_COMPARISON(==)
QCOMP_SIM_COMPARISON(!=)
QCOMP_SIM_COMPARISON(<)
QCOMP_SIM_COMPARISON(<=)
QCOMP_SIM_COMPARISON(>)
QCOMP_SIM_COMPARISON(>=)
#undef QCOMP_SIM_OPERATOR
#undef QCOMP_SIM_COMPARISON

template <class A, class B, class = qcomp_sim::if_operands<A, B>>
constexpr typename qcomp_sim::result<A, B>::shift operator<<(A a, B count) {
    return typename qcomp_sim::result<A, B>::shift(a).shifted_left(static_cast<long long>(qcomp_sim::value_of(count)));
}

template <class A, class B, class = qcomp_sim::if_operands<A, B>>
constexpr typename qcomp_sim::result<A, B>::shift operator>>(A a, B count) {
    return typename qcomp_sim::result<A, B>::shift(a).shifted_right(static_cast<long long>(qcomp_sim::value_of(count)));
}

// There is no division: hardware for it is large.
template <class A, class B, class = qcomp_sim::if_operands<A, B>> void operator/(A a, B b) = delete;
template <class A, class B, class = qcomp_sim::if_operands<A, B>> void operator%(A a, B b) = delete;

// Decimal, up to 64 bits.
template <class T, class = qcomp_sim::if_arbitrary<T>> std::ostream& operator<<(std::ostream& out, T x) {
    typedef qcomp_sim::number<T> number;
    static_assert(number::width <= 64, "integers of more than 64 bits are not printed");
    return out << static_cast<typename qcomp_sim::native<8, number::is_signed>::type>(qcomp_sim::value_of(x));
}

#endif
