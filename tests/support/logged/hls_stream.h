// hls::stream for tests that look at the order of reads and writes: unbounded, and every use is logged by its name.
#ifndef QCOMP_TESTS_LOGGED_HLS_STREAM_H
#define QCOMP_TESTS_LOGGED_HLS_STREAM_H

#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

inline std::vector<std::string>& uses_of_streams() {
    static std::vector<std::string> log;
    return log;
}

namespace hls {

template <class T, int DEPTH = 0> class stream {
public:
    explicit stream(const std::string& name) : name(name) {}
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    bool empty() const { return words.empty(); }
    T read() {
        if (words.empty()) std::exit(3);
        uses_of_streams().push_back(name);
        const T word = words.front();
        words.pop_front();
        return word;
    }
    void write(const T& word) {
        uses_of_streams().push_back(name);
        words.push_back(word);
    }

private:
    std::string name;
    std::deque<T> words;
};

}  // namespace hls

#endif
