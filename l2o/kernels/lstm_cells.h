// The LSTM stack on one block of coordinates: packed weights, one layer forward, one layer backward, outer products.
// A block is kBlock<T> coordinates = kWide vectors. Rows are units, gates or inputs; coordinates are contiguous in a row.
#pragma once
#include <cmath>

#include "simd.h"

namespace l2o {

constexpr int kWide = 2;  // vectors per block: every broadcast weight is used twice
#ifdef __AVX512F__
constexpr int kUnits = 2, kColumns = 8, kOuter = 4;  // 16 accumulators in 32 registers
#else
constexpr int kUnits = 1, kColumns = 4, kOuter = 2;  // 8 accumulators in 16 registers
#endif
constexpr int kTile = 4 * kOuter;  // products of one outer tile, 4 rows by kOuter columns
template <class T> constexpr int kBlock = kWide * Simd<T>::lanes;

// Rows of coordinates in memory: row r starts at at + r·stride.
template <class T> struct Rows {
    T* at;
    long stride;
    T* operator[](long row) const { return at + row * stride; }
};

// How a gradient becomes features, and the scalars of the cell.
template <class T> struct Constants {
    bool logarithm;  // false: the feature is the gradient itself
    T p, floor, log_eps, scale, forget_bias;
    int features() const { return logarithm ? 2 : 1; }
};

// Weights of one layer, packed in the order in which the loops read them.
template <class T> struct Layer {
    int inputs, units;
    const T* forward;   // [unit][inputs + units][gate i, f, o, g]
    const T* bias;      // [unit][gate], forget bias included
    const T* backward;  // [4 columns of (units, inputs), zero-padded][row = gate·units + unit][column]
    int columns() const { return inputs + units; }
};

// features = (log(max(|g| + ε, e^-p)) / p, clamp(g / e^-p, −1, 1)), or g.
template <class T> inline void preprocess(const T* grads, Rows<T> features, const Constants<T>& constants) {
    for (int v = 0; v < kBlock<T>; v += Simd<T>::lanes) {
        Vec<T> g = load<T>(grads + v);
        if (!constants.logarithm) {
            store<T>(features[0] + v, g);
            continue;
        }
        Vec<T> size = (g < T(0) ? -g : g) + constants.log_eps;
        size = size < constants.floor ? broadcast<T>(constants.floor) : size;
        store<T>(features[0] + v, log<T>(size) / constants.p);
        store<T>(features[1] + v, clamp<T>(g / constants.floor, T(-1), T(1)));
    }
}

// grads' cotangent from the features' cotangents.
template <class T>
inline void preprocess_backward(const T* grads, Rows<T> features, T* out, const Constants<T>& constants) {
    for (int v = 0; v < kBlock<T>; v += Simd<T>::lanes) {
        Vec<T> g = load<T>(grads + v), d = load<T>(features[0] + v), zero{};
        if (constants.logarithm) {
            Vec<T> size = (g < T(0) ? -g : g) + constants.log_eps, slope = d / (constants.p * size);
            slope = g < T(0) ? -slope : (g == T(0) ? zero : slope);
            Vec<T> ratio = g / constants.floor, linear = load<T>(features[1] + v) / constants.floor;
            d = (size < constants.floor ? zero : slope) + ((ratio < T(-1)) | (ratio > T(1)) ? zero : linear);
        }
        store<T>(out + v, d);
    }
}

// acc[4u + gate][v] += Σ_k weight[u][k][gate] · rows[k][v]
template <class T, int units>
inline void add_products(Vec<T> (&acc)[4 * units][kWide], const T* weight, long unit_stride, Rows<T> rows, int count) {
    for (int k = 0; k < count; ++k) {
        Vec<T> x[kWide];
        UNROLL
        for (int v = 0; v < kWide; ++v) x[v] = load<T>(rows[k] + v * Simd<T>::lanes);
        UNROLL
        for (int u = 0; u < units; ++u)
            UNROLL
            for (int gate = 0; gate < 4; ++gate)
                UNROLL
                for (int v = 0; v < kWide; ++v) acc[4 * u + gate][v] += weight[u * unit_stride + 4 * k + gate] * x[v];
    }
}

// What a layer reads and writes in one step. `gates` and `tanh_cell` are written only when recording.
template <class T> struct CellRows {
    Rows<T> inputs, hidden, cell, next_hidden, next_cell, gates, tanh_cell;
};

template <class T, int units, bool record>
inline void forward_units(const Layer<T>& layer, int unit, const CellRows<T>& rows) {
    Vec<T> acc[4 * units][kWide];
    UNROLL
    for (int r = 0; r < 4 * units; ++r)
        UNROLL
        for (int v = 0; v < kWide; ++v) acc[r][v] = broadcast<T>(layer.bias[4 * unit + r]);
    const long unit_stride = 4 * layer.columns();
    const T* weight = layer.forward + unit * unit_stride;
    add_products<T, units>(acc, weight, unit_stride, rows.inputs, layer.inputs);
    add_products<T, units>(acc, weight + 4 * layer.inputs, unit_stride, rows.hidden, layer.units);
    Vec<T> tanh_c[units * kWide], open[units * kWide];
    UNROLL
    for (int k = 0; k < units * kWide; ++k) {
        const int j = unit + k / kWide, v = k % kWide, at = v * Simd<T>::lanes, u4 = 4 * (k / kWide), size = layer.units;
        Vec<T> gate[4] = {acc[u4][v], acc[u4 + 1][v], acc[u4 + 2][v], acc[u4 + 3][v]};
        sigmoids<T, 4>(gate);
        const Vec<T> g = T(2) * gate[3] - T(1), c = gate[1] * load<T>(rows.cell[j] + at) + gate[0] * g;
        store<T>(rows.next_cell[j] + at, c);
        open[k] = gate[2];
        tanh_c[k] = c * T(-2 * kLog2e);
        if constexpr (record) {
            store<T>(rows.gates[j] + at, gate[0]);
            store<T>(rows.gates[size + j] + at, gate[1]);
            store<T>(rows.gates[2 * size + j] + at, gate[2]);
            store<T>(rows.gates[3 * size + j] + at, g);
        }
    }
    sigmoids<T, units * kWide>(tanh_c);
    UNROLL
    for (int k = 0; k < units * kWide; ++k) {
        const int j = unit + k / kWide, at = k % kWide * Simd<T>::lanes;
        tanh_c[k] = T(2) * tanh_c[k] - T(1);
        store<T>(rows.next_hidden[j] + at, open[k] * tanh_c[k]);
        if constexpr (record) store<T>(rows.tanh_cell[j] + at, tanh_c[k]);
    }
}

// z = W [x; h] + b;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(c').
template <class T, bool record> inline void forward_layer(const Layer<T>& layer, const CellRows<T>& rows) {
    int unit = 0;
    for (; unit + kUnits <= layer.units; unit += kUnits) forward_units<T, kUnits, record>(layer, unit, rows);
    for (; unit < layer.units; ++unit) forward_units<T, 1, record>(layer, unit, rows);
}

// Replace the recorded gates by the cotangents of z, and d_cell (of c') by that of c. d_hidden + d_above is that of h'.
template <class T>
inline void backward_gates(int size, Rows<T> gates, Rows<T> tanh_cell, Rows<T> cell, Rows<T> d_hidden, Rows<T> d_above,
                           Rows<T> d_cell) {
    for (int j = 0; j < size; ++j)
        for (int v = 0; v < kBlock<T>; v += Simd<T>::lanes) {
            Vec<T> i = load<T>(gates[j] + v), f = load<T>(gates[size + j] + v);
            Vec<T> o = load<T>(gates[2 * size + j] + v), g = load<T>(gates[3 * size + j] + v);
            Vec<T> tanh_c = load<T>(tanh_cell[j] + v), c = load<T>(cell[j] + v);
            Vec<T> dh = load<T>(d_hidden[j] + v) + load<T>(d_above[j] + v);
            Vec<T> dc = load<T>(d_cell[j] + v) + dh * o * (T(1) - tanh_c * tanh_c);
            store<T>(gates[j] + v, dc * g * i * (T(1) - i));
            store<T>(gates[size + j] + v, dc * c * f * (T(1) - f));
            store<T>(gates[2 * size + j] + v, dh * tanh_c * o * (T(1) - o));
            store<T>(gates[3 * size + j] + v, dc * i * (T(1) - g * g));
            store<T>(d_cell[j] + v, dc * f);
        }
}

// out[column] = Σ_r W[r][column] dz[r] for `columns` columns; weight is [columns / 4][rows][4].
template <class T, int columns> inline void input_columns(const T* weight, int rows, Rows<T> dz, Rows<T> out) {
    Vec<T> acc[columns][kWide] = {};
    for (int r = 0; r < rows; ++r) {
        Vec<T> d[kWide];
        UNROLL
        for (int v = 0; v < kWide; ++v) d[v] = load<T>(dz[r] + v * Simd<T>::lanes);
        UNROLL
        for (int k = 0; k < columns; ++k)
            UNROLL
            for (int v = 0; v < kWide; ++v) acc[k][v] += weight[(k / 4 * (long)rows + r) * 4 + k % 4] * d[v];
    }
    UNROLL
    for (int k = 0; k < columns; ++k)
        UNROLL
        for (int v = 0; v < kWide; ++v) store<T>(out[k] + v * Simd<T>::lanes, acc[k][v]);
}

// out = Wᵀ dz: cotangents of the hidden units and, after them, of the inputs where they are wanted.
// Writes whole groups of 4 rows.
template <class T> inline void backward_inputs(const Layer<T>& layer, bool with_inputs, Rows<T> dz, Rows<T> out) {
    const int rows = 4 * layer.units, end = with_inputs ? layer.columns() : layer.units;
    int column = 0;
    for (; column + kColumns <= end; column += kColumns)
        input_columns<T, kColumns>(layer.backward + (long)column * rows, rows, dz, {out[column], out.stride});
    for (; column < end; column += 4)
        input_columns<T, 4>(layer.backward + (long)column * rows, rows, dz, {out[column], out.stride});
}

// sums[r·columns + k] += Σ_s rows[r][s] cols[k][s] over `length` contiguous numbers: products of whole sequences.
template <class T, int n_rows, int n_columns>
inline void add_outer(T* sums, const T* const* rows, const T* const* columns, long length) {
    Vec<T> acc[n_rows * n_columns];
    UNROLL
    for (int k = 0; k < n_rows * n_columns; ++k) acc[k] = Vec<T>{};
    for (long s = 0; s < length; s += Simd<T>::lanes) {
        Vec<T> right[n_columns];
        UNROLL
        for (int k = 0; k < n_columns; ++k) {
            right[k] = load<T>(columns[k] + s);
            asm("" : "+v"(right[k]));
        }
        UNROLL
        for (int r = 0; r < n_rows; ++r) {
            Vec<T> left = load<T>(rows[r] + s);
            asm("" : "+v"(left));  // in a register: as a memory operand of each product it would be loaded repeatedly
            UNROLL
            for (int k = 0; k < n_columns; ++k) acc[r * n_columns + k] += left * right[k];
        }
    }
    add_lane_sums<T, n_rows * n_columns>(sums, acc);
}

}  // namespace l2o
