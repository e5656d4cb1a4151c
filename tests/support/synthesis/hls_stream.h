// hls::stream as the lint of synthesizable code sees it: what is done to a stream is a call of a function that the lint
// knows by its name. Declarations only; nothing can run with it.
#ifndef LINT_HLS_STREAM_H
#define LINT_HLS_STREAM_H

extern "C" {
void lint_stream_create(const void* stream);
void lint_stream_read(const void* stream);
void lint_stream_write(const void* stream);
void lint_stream_poll(const void* stream);  // anything that does not wait
}

namespace hls {

template <class T, int DEPTH = 0> class stream;

template <class T> class stream<T, 0> {
public:
    stream() { lint_stream_create(this); }
    explicit stream(const char*) { lint_stream_create(this); }
    stream(const stream&) = delete;
    stream& operator=(const stream&) = delete;

    T read() {
        lint_stream_read(this);
        return T();
    }
    void read(T& word) { word = read(); }
    void operator>>(T& word) { word = read(); }
    void write(const T&) { lint_stream_write(this); }
    void operator<<(const T& word) { write(word); }

    bool read_nb(T&) { return poll(); }
    bool write_nb(const T&) { return poll(); }
    bool empty() const { return poll(); }
    bool full() const { return poll(); }
    unsigned size() const { return poll(); }
    unsigned capacity() const { return poll(); }

private:
    bool poll() const {
        lint_stream_poll(this);
        return true;
    }
    char unused;
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
    stream() {}
    explicit stream(const char* name) : stream<T, 0>(name) {}
};

}  // namespace hls

#endif
