// hls::stream for C simulation without a vendor's headers: blocking, bounded first-in first-out queues.
#ifndef QCOMP_SIMULATION_HLS_STREAM_H
#define QCOMP_SIMULATION_HLS_STREAM_H

#include <cstddef>
#include <string>
#include <vector>

#include "processes.h"

namespace hls {

// Words of type T; at most DEPTH of them if DEPTH is not 0. Functions take stream<T>&, whatever the depth.
template <class T, int DEPTH = 0> class stream;

template <class T> class stream<T, 0> {
public:
    explicit stream(const std::string& name = "unnamed") : stream(name, 0) {}
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    bool empty() const { return channel.empty(); }
    bool full() const { return channel.full(); }
    std::size_t size() const { return channel.size; }

    // Waits for a word.
    T read() {
        if (channel.empty()) qcomp_sim::scheduler().wait(channel, false);
        channel.count_read();
        const std::size_t place = first;
        first = (first + 1) & (words.size() - 1);
        return words[place];
    }
    void read(T& word) { word = read(); }
    void operator>>(T& word) { word = read(); }

    // Waits for room.
    void write(const T& word) {
        if (channel.full()) qcomp_sim::scheduler().wait(channel, true);
        if (channel.size == words.size()) grow();
        words[(first + channel.size) & (words.size() - 1)] = word;
        channel.count_write();
    }
    void operator<<(const T& word) { write(word); }

protected:
    stream(const std::string& name, std::size_t depth) : words(2), channel(name, depth) {}

private:
    void grow() {
        std::vector<T> larger(2 * words.size());
        for (std::size_t i = 0; i < channel.size; ++i) larger[i] = words[(first + i) & (words.size() - 1)];
        words.swap(larger);
        first = 0;
    }

    std::vector<T> words;  // a ring; its size is a power of two
    std::size_t first = 0;
    qcomp_sim::Channel channel;
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
    static_assert(DEPTH > 0, "a stream holds at least one word");

public:
    explicit stream(const std::string& name = "unnamed") : stream<T, 0>(name, DEPTH) {}
};

}  // namespace hls

#endif
