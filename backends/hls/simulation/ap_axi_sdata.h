// Words of AXI4-Stream ports with TLAST, for C simulation without a vendor's headers.
#ifndef QCOMP_SIMULATION_AP_AXI_SDATA_H
#define QCOMP_SIMULATION_AP_AXI_SDATA_H

#include <cstddef>

#include "ap_int.h"

namespace qcomp_sim {

// Bytes of a port's data: of ap_int and ap_uint as many as their bits need, of other types their size.
template <class T, bool ARBITRARY = number<T>::arbitrary> struct data_bytes {
    static const int value = sizeof(T);
};
template <class T> struct data_bytes<T, true> {
    static const int value = (number<T>::width + 7) / 8;
};

}  // namespace qcomp_sim

namespace hls {

// T: type of the data. WUSER, WID, WDEST: bits of TUSER, TID and TDEST; 0: the port has none.
template <class T, std::size_t WUSER = 0, std::size_t WID = 0, std::size_t WDEST = 0> struct axis {
    T data;
    ap_uint<qcomp_sim::data_bytes<T>::value> keep;  // a bit for each byte that counts
    ap_uint<qcomp_sim::data_bytes<T>::value> strb;
    ap_uint<(WUSER > 0 ? WUSER : 1)> user;
    ap_uint<1> last;  // the end of a packet
    ap_uint<(WID > 0 ? WID : 1)> id;
    ap_uint<(WDEST > 0 ? WDEST : 1)> dest;

    T get_data() const { return data; }
    ap_uint<qcomp_sim::data_bytes<T>::value> get_keep() const { return keep; }
    ap_uint<qcomp_sim::data_bytes<T>::value> get_strb() const { return strb; }
    ap_uint<1> get_last() const { return last; }
    void set_data(const T& value) { data = value; }
    void set_keep(ap_uint<qcomp_sim::data_bytes<T>::value> value) { keep = value; }
    void set_strb(ap_uint<qcomp_sim::data_bytes<T>::value> value) { strb = value; }
    void set_last(ap_uint<1> value) { last = value; }
    void keep_all() { keep = strb = -1; }
};

}  // namespace hls

template <std::size_t WDATA, std::size_t WUSER, std::size_t WID, std::size_t WDEST>
using ap_axis = hls::axis<ap_int<WDATA>, WUSER, WID, WDEST>;

template <std::size_t WDATA, std::size_t WUSER, std::size_t WID, std::size_t WDEST>
using ap_axiu = hls::axis<ap_uint<WDATA>, WUSER, WID, WDEST>;

#endif
