// The packed network, and the tape: everything one block of coordinates computes in a segment of steps.
#pragma once
#include <algorithm>
#include <vector>

#include "lstm_cells.h"

namespace l2o {

template <class T> struct Network {
    Constants<T> constants;
    int units;
    std::vector<Layer<T>> layers;
    const T *output_weight, *output_bias;
    std::vector<T> packed;

    // weights[l] is (4·units, inputs + units), biases[l] is (4·units,), both with rows in the order i, f, o, g.
    Network(Constants<T> constants, int units, int n_layers, const T* const* weights, const T* const* biases,
            const T* output_weight, const T* output_bias, bool with_backward)
        : constants(constants), units(units), output_weight(output_weight), output_bias(output_bias) {
        size_t total = 0;
        for (int l = 0; l < n_layers; ++l) {
            layers.push_back({l ? units : constants.features(), units, nullptr, nullptr, nullptr});
            total += (layers[l].columns() + 1 + (with_backward ? padded(layers[l].columns()) : 0)) * 4L * units;
        }
        packed.resize(total);
        T* at = packed.data();
        for (int l = 0; l < n_layers; ++l) at = pack(layers[l], weights[l], biases[l], with_backward, at);
    }
    Network(const Network&) = delete;

  private:
    static long padded(int columns) { return (columns + 3) / 4 * 4; }

    T* pack(Layer<T>& layer, const T* weight, const T* bias, bool with_backward, T* at) {
        const long columns = layer.columns(), rows = 4 * units;
        T* forward = at;
        T* packed_bias = forward + rows * columns;
        T* backward = packed_bias + rows;
        for (int gate = 0; gate < 4; ++gate)
            for (int unit = 0; unit < units; ++unit) {
                // The exponentials are of base 2, and tanh z = 2σ(2z) − 1: see `sigmoids`.
                const T factor = gate == 3 ? -2 * kLog2e : -kLog2e;
                const long row = (long)gate * units + unit;
                packed_bias[4 * unit + gate] = factor * (bias[row] + (gate == 1 ? constants.forget_bias : T(0)));
                for (long k = 0; k < columns; ++k)
                    forward[(unit * columns + k) * 4 + gate] = factor * weight[row * columns + k];
            }
        for (long row = 0; with_backward && row < rows; ++row)
            for (long k = 0; k < columns; ++k) {
                const long column = k < layer.inputs ? units + k : k - layer.inputs;
                backward[(column / 4 * rows + row) * 4 + column % 4] = weight[row * columns + k];
            }
        layer.forward = forward;
        layer.bias = packed_bias;
        layer.backward = backward;
        return backward + (with_backward ? padded(columns) * rows : 0);
    }
};

// Rows of `slots` blocks, one per step. Gates, tanh(c) and features of step t are in slot t; c and h after it in t + 1.
template <class T> struct Tape {
    static constexpr int wide = kBlock<T>;
    const Network<T>& network;
    long slots, stride;
    T* memory;

    Tape(const Network<T>& network, long steps, T* memory)
        : network(network), slots(steps + 1), stride(row_stride(steps)), memory(memory) {
        for (long k = 0; k < slots * wide; ++k) row(extra() + 2, 0)[0][k] = T(1);
    }
    // One more cache line than the numbers need where that makes the count of lines odd: an even one, in the worst case
    // a power of two, would map the rows onto few cache sets.
    static long row_stride(long steps) {
        constexpr long line = 64 / sizeof(T);
        return (((steps + 1) * wide + line - 1) / line | 1) * line;
    }
    static size_t numbers(const Network<T>& network, long steps) {
        return (7 * network.units * network.layers.size() + 4) * row_stride(steps);
    }
    Rows<T> row(long index, long slot) const { return {memory + index * stride + slot * wide, stride}; }
    long first(int layer) const { return 7L * network.units * layer; }
    long extra() const { return first(network.layers.size()); }

    Rows<T> gates(int layer, long step) const { return row(first(layer), step); }
    Rows<T> tanh_cell(int layer, long step) const { return row(first(layer) + 4 * network.units, step); }
    Rows<T> cell(int layer, long slot) const { return row(first(layer) + 5 * network.units, slot); }
    Rows<T> hidden(int layer, long slot) const { return row(first(layer) + 6 * network.units, slot); }
    Rows<T> features(long step) const { return row(extra(), step); }
    const T* ones() const { return row(extra() + 2, 0)[0]; }
    T* cotangents(long step) const { return row(extra() + 3, step)[0]; }  // scale · c_t
    Rows<T> inputs(int layer, long step) const { return layer ? hidden(layer - 1, step + 1) : features(step); }

    void forward(long step, const T* grads) const {
        preprocess(grads, features(step), network.constants);
        for (int l = 0; l < (int)network.layers.size(); ++l)
            forward_layer<T, true>(network.layers[l],
                                   {inputs(l, step), hidden(l, step), cell(l, step), hidden(l, step + 1),
                                    cell(l, step + 1), gates(l, step), tanh_cell(l, step)});
    }
};

// Cotangents carried from step to step. d_inputs[l] holds those of (hidden, inputs) of layer l, zero at first.
template <class T> struct Cotangents {
    static constexpr int wide = kBlock<T>;
    const Network<T>& network;
    T* memory;

    Cotangents(const Network<T>& network, T* memory) : network(network), memory(memory) {
        std::fill(memory, memory + numbers(network), T(0));
    }
    static long padded(const Network<T>& network) { return network.units + std::max(network.units, 2) + 3L; }
    static size_t numbers(const Network<T>& network) {
        return ((network.units + padded(network)) * network.layers.size() + network.units) * wide;
    }
    Rows<T> d_cell(int layer) const { return {memory + layer * (network.units + padded(network)) * wide, wide}; }
    Rows<T> d_hidden(int layer) const { return {d_cell(layer)[network.units], wide}; }
    Rows<T> d_inputs(int layer) const { return {d_hidden(layer)[network.units], wide}; }
    Rows<T> d_output() const { return {memory + numbers(network) - network.units * wide, wide}; }

    // One step back through all layers: the tape's gates become cotangents of z.
    void backward(const Tape<T>& tape, long step, bool with_features) const {
        const int top = network.layers.size() - 1, units = network.units;
        for (int v = 0; v < wide; v += Simd<T>::lanes)
            for (int j = 0; j < units; ++j)
                store<T>(d_output()[j] + v, network.output_weight[j] * load<T>(tape.cotangents(step) + v));
        for (int l = top; l >= 0; --l) {
            backward_gates<T>(units, tape.gates(l, step), tape.tanh_cell(l, step), tape.cell(l, step), d_hidden(l),
                              l == top ? d_output() : d_inputs(l + 1), d_cell(l));
            backward_inputs<T>(network.layers[l], l > 0 || with_features, tape.gates(l, step), d_hidden(l));
        }
    }
};

// Gradients of all weights as sums over steps and coordinates, in tiles of kTile numbers.
template <class T> struct WeightSums {
    const Network<T>& network;

    static long tiles(long count, long per_tile) { return (count + per_tile - 1) / per_tile; }
    size_t numbers() const {
        size_t total = tiles(network.units + 1, kTile);
        for (const Layer<T>& layer : network.layers)
            total += tiles(layer.columns(), kOuter) * layer.units + tiles(4 * layer.units, kTile);
        return total * kTile;
    }

    // sums += products of cotangents with inputs over `steps` steps from `step` on.
    void add(const Tape<T>& tape, long step, long steps, T* sums) const {
        const long length = steps * kBlock<T>;
        const T *left[kTile], *right[kTile];
        for (int l = 0; l < (int)network.layers.size(); ++l) {
            const Layer<T>& layer = network.layers[l];
            const Rows<T> dz = tape.gates(l, step), inputs = tape.inputs(l, step), hidden = tape.hidden(l, step);
            for (int k = 0; k < layer.columns(); k += kOuter) {
                for (int i = 0; i < kOuter; ++i)  // columns past the end are never read out
                    right[i] = k + i < layer.inputs      ? inputs[k + i]
                               : k + i < layer.columns() ? hidden[k + i - layer.inputs]
                                                         : tape.ones();
                for (int r = 0; r < 4 * layer.units; r += 4, sums += kTile) {
                    for (int i = 0; i < 4; ++i) left[i] = dz[r + i];
                    add_outer<T, 4, kOuter>(sums, left, right, length);
                }
            }
            right[0] = tape.ones();
            for (int r = 0; r < 4 * layer.units; r += kTile, sums += kTile) {
                for (int i = 0; i < kTile; ++i) left[i] = r + i < 4 * layer.units ? dz[r + i] : tape.ones();
                add_outer<T, kTile, 1>(sums, left, right, length);
            }
        }
        left[0] = tape.cotangents(step);
        const Rows<T> top = tape.hidden(network.layers.size() - 1, step + 1);
        for (int k = 0; k <= network.units; k += kTile, sums += kTile) {
            for (int i = 0; i < kTile; ++i) right[i] = k + i < network.units ? top[k + i] : tape.ones();
            add_outer<T, 1, kTile>(sums, left, right, length);
        }
    }

    // From tiles to the layouts of the weights.
    void unpack(const T* sums, T* const* weights, T* const* biases, T* output_weight, T* output_bias) const {
        for (int l = 0; l < (int)network.layers.size(); ++l) {
            const int columns = network.layers[l].columns(), rows = 4 * network.units;
            for (int k = 0; k < columns; ++k)
                for (int r = 0; r < rows; ++r)
                    weights[l][(long)r * columns + k] =
                        sums[((long)(k / kOuter) * (rows / 4) + r / 4) * kTile + r % 4 * kOuter + k % kOuter];
            sums += tiles(columns, kOuter) * network.units * kTile;
            std::copy(sums, sums + rows, biases[l]);
            sums += tiles(rows, kTile) * kTile;
        }
        std::copy(sums, sums + network.units, output_weight);
        *output_bias = sums[network.units];
    }
};

}  // namespace l2o
