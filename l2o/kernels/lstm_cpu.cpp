// Coordinate-wise LSTM on CPUs: `step` and `sequence_vjp` behind a plain C interface (loaded by ctypes: without torch's
// headers compiling takes seconds). Threads work on blocks of coordinates. Sums over blocks are made in fixed groups and
// added in a fixed order, so that results do not depend on the number of threads.
#include "lstm_memory.h"
#include "shares.h"

namespace l2o {

// One step of a few blocks. The rows of the state are far apart in memory, often by a power of two: pieces of several
// cache lines, kept at an odd number of lines from one another, are read and written twice as fast as single blocks.
template <class T, class S> struct StepChunk {  // S: the state's type in memory
    static constexpr int wide = kBlock<T>, blocks = 4, width = blocks * wide, stride = width + 64 / sizeof(T);
    const Network<T>& network;
    const Arguments& a;

    void run(long begin) const {
        const int units = network.units, layers = network.layers.size();
        const long count = std::min<long>(width, a.n - begin);
        T* memory = (T*)scratch((3 + 4 * units) * stride * sizeof(T));
        T* row = memory;  // gradients in, updates out
        Rows<T> inputs{memory + stride, stride}, cell{memory + 3 * stride, stride}, hidden{cell[units], stride};
        const Rows<T> next[2] = {{hidden[units], stride}, {hidden[2 * units], stride}};
        load_row<T, width>(row, (const T*)a.grads + begin, count);
        for (int v = 0; v < count; v += wide) preprocess(row + v, {inputs[0] + v, stride}, network.constants);
        for (int l = 0; l < layers; ++l) {
            const long at = (long)l * units * a.n + begin;
            load_rows<T, width>(cell, (const S*)a.cell + at, a.n, units, count);
            load_rows<T, width>(hidden, (const S*)a.hidden + at, a.n, units, count);
            for (int v = 0; v < count; v += wide)
                forward_layer<T, false>(network.layers[l], {part(inputs, v), part(hidden, v), part(cell, v),
                                                            part(next[l % 2], v), part(cell, v), {}, {}});
            inputs = next[l % 2];
            if (l + 1 == layers) write_updates(inputs, row, begin, count);
            store_rows<T, width>((S*)a.next_cell + at, cell, a.n, units, count);
            store_rows<T, width>((S*)a.next_hidden + at, inputs, a.n, units, count);
        }
    }

  private:
    static Rows<T> part(Rows<T> rows, int from) { return {rows.at + from, stride}; }

    void write_updates(Rows<T> hidden, T* row, long begin, long count) const {
        for (int v = 0; v < count; v += Simd<T>::lanes) {
            Vec<T> sum = broadcast<T>(*network.output_bias);
            for (int j = 0; j < network.units; ++j) sum += network.output_weight[j] * load<T>(hidden[j] + v);
            store<T>(row + v, network.constants.scale * sum);
        }
        store_row<T, width>((T*)a.updates + begin, row, count);
    }
};

template <class T, class S = T> void step(const Arguments& a) {
    use_huge_pages(a.next_hidden, a.layers * a.units * a.n * sizeof(S));
    use_huge_pages(a.next_cell, a.layers * a.units * a.n * sizeof(S));
    using Chunk = StepChunk<T, S>;
    const long chunks = (a.n + Chunk::width - 1) / Chunk::width;
    // A chunk takes some microseconds, as does waking a thread.
    const int threads = std::max<long>(1, std::min<long>(a.threads, chunks / 2));
    share_out(chunks, threads, [&](auto next) {
        // Every thread packs its own: to fetch what another core has just written takes longer.
        const Network<T> network = network_of<T>(a, false);
        for (long k; (k = next()) >= 0;) Chunk{network, a}.run(k * Chunk::width);
    });
}

// The same for `batch` networks, each with a state of its own. Pointer k of the i-th is i · strides[k] bytes further on:
// of the struct's first those up to next_cell, then those of weights and biases.
template <class T, class S = T> void step_batch(const Arguments& a, long batch, const int64_t* strides) {
    constexpr int common = 8;  // grads … next_cell
    [[maybe_unused]] const int threads = std::max<long>(1, std::min<long>(a.threads, batch));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < batch; ++i) {
        const size_t size = sizeof(Arguments) + 4 * a.layers * sizeof(void*);
        std::vector<char*> memory(size / sizeof(char*));
        Arguments& mine = *(Arguments*)memory.data();
        std::memcpy((void*)&mine, (const void*)&a, size);
        mine.threads = 1;
        char **first = (char**)&mine.grads, **theta = (char**)(&mine + 1);
        for (int k = 0; k < common; ++k) first[k] += i * strides[k];
        for (int k = 0; k < 2 * a.layers; ++k) theta[k] += i * strides[common + k];
        step<T, S>(mine);
    }
}

// One block of coordinates of sequence_vjp. The tape holds one segment of steps; with several, the states at their
// starts are kept and every segment but the last is run twice.
template <class T> struct SequenceBlock {
    static constexpr int wide = kBlock<T>;
    static constexpr long kTapeBytes = 8 << 20, kChunk = 20;
    const Network<T>& network;
    const Arguments& a;
    const long segment, segments, begin, count;
    const Tape<T> tape;
    const Cotangents<T> cotangents;
    T* const checkpoints;  // [segment][layer][cell, hidden][unit]
    T* const row;          // scratch

    static long segment_of(const Network<T>& network, long steps) {
        const long step_bytes = Tape<T>::numbers(network, 1000) * sizeof(T) / 1000;
        const long segments = std::max<long>(1, steps / std::max<long>(16, kTapeBytes / step_bytes));
        return (steps + segments - 1) / segments;
    }
    static size_t numbers(const Network<T>& network, long segment, long segments) {
        const long states = segments * network.layers.size() * 2 * network.units;
        return Tape<T>::numbers(network, segment) + Cotangents<T>::numbers(network) + (states + 1) * wide;
    }
    SequenceBlock(const Network<T>& network, const Arguments& a, long segment, long segments, long block, T* memory)
        : network(network), a(a), segment(segment), segments(segments), begin(block * wide),
          count(std::min<long>(wide, a.n - begin)), tape(network, segment, memory),
          cotangents(network, memory + Tape<T>::numbers(network, segment)),
          checkpoints(cotangents.memory + Cotangents<T>::numbers(network)),
          row(checkpoints + segments * network.layers.size() * 2 * network.units * wide) {}

    void run(const WeightSums<T>& weights, T* sums) const {
        load_state();
        for (long part = 0; part + 1 < segments; ++part) {
            move_state(part, false);
            forward(part);
            for (int l = 0; l < (int)network.layers.size(); ++l)
                copy_rows(tape.cell(l, 0), tape.cell(l, segment), 2 * network.units);
        }
        for (long part = segments - 1; part >= 0; --part) {
            if (part + 1 < segments) move_state(part, true);
            forward(part);
            backward(part, weights, sums);
        }
        store_cotangents();
    }

  private:
    long offset(int layer) const { return (long)layer * network.units * a.n + begin; }
    long steps_of(long part) const { return std::min(segment, a.steps - part * segment); }
    const T* given(const void* sequence, long step) const { return (const T*)sequence + step * a.n + begin; }

    static void copy_rows(Rows<T> to, Rows<T> from, long rows) {
        for (long r = 0; r < rows; ++r) load_row<T>(to[r], from[r], wide);
    }
    // Slot 0 of the tape (cells, and hiddens in the rows after them) to or from a checkpoint.
    void move_state(long part, bool restore) const {
        const long layers = network.layers.size(), rows = 2 * network.units;
        for (int l = 0; l < layers; ++l) {
            const Rows<T> kept{checkpoints + (part * layers + l) * rows * wide, wide}, live = tape.cell(l, 0);
            copy_rows(restore ? live : kept, restore ? kept : live, rows);
        }
    }
    void load_state() const {
        for (int l = 0; l < (int)network.layers.size(); ++l) {
            load_rows(tape.cell(l, 0), (const T*)a.cell + offset(l), a.n, network.units, count);
            load_rows(tape.hidden(l, 0), (const T*)a.hidden + offset(l), a.n, network.units, count);
            if (a.d_next_cell)
                load_rows(cotangents.d_cell(l), (const T*)a.d_next_cell + offset(l), a.n, network.units, count);
            if (a.d_next_hidden)
                load_rows(cotangents.d_hidden(l), (const T*)a.d_next_hidden + offset(l), a.n, network.units, count);
        }
    }
    void store_cotangents() const {
        for (int l = 0; l < (int)network.layers.size(); ++l) {
            if (a.d_cell) store_rows((T*)a.d_cell + offset(l), cotangents.d_cell(l), a.n, network.units, count);
            if (a.d_hidden) store_rows((T*)a.d_hidden + offset(l), cotangents.d_hidden(l), a.n, network.units, count);
        }
    }
    void forward(long part) const {
        for (long step = 0; step < steps_of(part); ++step) {
            load_row(row, given(a.grads, part * segment + step), count);
            tape.forward(step, row);
        }
    }
    // Chunks of steps whose cotangents are still in the second-level cache when they are multiplied.
    void backward(long part, const WeightSums<T>& weights, T* sums) const {
        for (long end = steps_of(part); end > 0;) {
            const long start = std::max<long>(0, end - kChunk);
            for (long step = end - 1; step >= start; --step) backward_step(part * segment + step, step);
            weights.add(tape, start, end - start, sums);
            end = start;
        }
    }
    void backward_step(long time, long step) const {
        T* cotangent = tape.cotangents(step);
        load_row(cotangent, given(a.cotangents, time), count);
        for (int k = 0; k < wide; ++k) cotangent[k] *= network.constants.scale;
        cotangents.backward(tape, step, a.d_grads != nullptr);
        if (!a.d_grads) return;
        load_row(row, given(a.grads, time), count);
        preprocess_backward(row, {cotangents.d_inputs(0)}, row, network.constants);
        store_row((T*)given(a.d_grads, time), row, count);
    }
};

template <class T> void sequence_vjp(const Arguments& a) {
    const Network<T> network = network_of<T>(a, true);
    const WeightSums<T> weights{network};
    const long blocks = (a.n + kBlock<T> - 1) / kBlock<T>;
    const long segment = SequenceBlock<T>::segment_of(network, a.steps);
    const long segments = segment ? (a.steps + segment - 1) / segment : 1;
    const size_t bytes = SequenceBlock<T>::numbers(network, segment, segments) * sizeof(T);
    const long groups = std::min<long>(64, blocks), size = weights.numbers();  // never a function of a.threads
    const std::unique_ptr<T[]> partial(new T[groups * size]);
    std::vector<T> total(size);
    [[maybe_unused]] const int threads = std::max<long>(1, std::min<long>(a.threads, groups));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (long g = 0; g < groups; ++g) {
            T* sums = &partial[g * size];
            std::fill(sums, sums + size, T(0));
            for (long b = g * blocks / groups; b < (g + 1) * blocks / groups; ++b)
                SequenceBlock<T>(network, a, segment, segments, b, (T*)scratch(bytes)).run(weights, sums);
        }
#pragma omp for schedule(static)
        for (long tile = 0; tile < size; tile += kTile) {
            double sums[kTile] = {};
            for (long g = 0; g < groups; ++g)
                for (int k = 0; k < kTile; ++k) sums[k] += partial[g * size + tile + k];
            std::copy(sums, sums + kTile, &total[tile]);
        }
    }
    weights.unpack(total.data(), a.d_weights<T>(), a.d_biases<T>(), (T*)a.d_output_weight, (T*)a.d_output_bias);
}

}  // namespace l2o

#define L2O_EXPORT extern "C" __attribute__((visibility("default"))) void
L2O_EXPORT l2o_lstm_step_float32(const Arguments* a) { l2o::step<float>(*a); }
L2O_EXPORT l2o_lstm_step_float64(const Arguments* a) { l2o::step<double>(*a); }
L2O_EXPORT l2o_lstm_step_float32_bfloat16(const Arguments* a) { l2o::step<float, l2o::BFloat16>(*a); }
L2O_EXPORT l2o_lstm_step_batch_float32(const Arguments* a, int64_t batch, const int64_t* strides) {
    l2o::step_batch<float>(*a, batch, strides);
}
L2O_EXPORT l2o_lstm_step_batch_float64(const Arguments* a, int64_t batch, const int64_t* strides) {
    l2o::step_batch<double>(*a, batch, strides);
}
L2O_EXPORT l2o_lstm_step_batch_float32_bfloat16(const Arguments* a, int64_t batch, const int64_t* strides) {
    l2o::step_batch<float, l2o::BFloat16>(*a, batch, strides);
}
L2O_EXPORT l2o_lstm_sequence_vjp_float32(const Arguments* a) { l2o::sequence_vjp<float>(*a); }
L2O_EXPORT l2o_lstm_sequence_vjp_float64(const Arguments* a) { l2o::sequence_vjp<double>(*a); }
