"""The coordinate-wise LSTM in Triton, backward: through the tape that `lstm_triton_forward.record_kernel` fills."""

# The bodies of kernels are Triton's language, which pyright takes for Python; and triton need not be installed.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportMissingImports=false

import triton
import triton.language as tl

from l2o.kernels.lstm_triton_forward import four_gates, weight_offset


@triton.jit
def _features_backward(g, d_features, P: tl.constexpr, FLOOR: tl.constexpr, LOG_EPS: tl.constexpr):
    if P is None:
        return d_features[0]
    else:
        size = tl.abs(g) + LOG_EPS
        slope = tl.where(g == 0, 0.0, tl.where(g < 0, -1.0, 1.0)) * d_features[0] / (P * size)
        ratio = g / FLOOR
        linear = tl.where((ratio < -1) | (ratio > 1), 0.0, d_features[1] / FLOOR)
        return tl.where(size < FLOOR, 0.0, slope) + linear


@triton.jit
def _add_transposed(sums, weight, i, f, o, g, ROWS: tl.constexpr):
    """sums[k] + Σ_gate weight[k, gate] · dz[gate]."""
    result = ()
    for k in tl.static_range(ROWS):
        w_i, w_f, w_o, w_g = four_gates(weight + 4 * k)
        result = result + (sums[k] + w_i * i + w_f * f + w_o * o + w_g * g,)
    return result


@triton.jit
def _zeros(like, COUNT: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(like),)
    return rows


@triton.jit
def _layer_backward(
    gates, tanh_cell, tape_stride, cell, cell_stride, d_hidden, d_cell, d_inputs, width,
    weight, output_weight, cotangent, mask,
    X: tl.constexpr, H: tl.constexpr, TOP: tl.constexpr, WITH_INPUTS: tl.constexpr,
):  # fmt: skip
    """Replace the recorded gates by the cotangents of z, d_hidden and d_cell by those of h and c; returns x's.

    The cotangent of h' is d_hidden plus what comes from above: w · cotangent in the top layer, else d_inputs.
    """
    d_h = _zeros(cotangent, H)
    d_x = _zeros(cotangent, X if WITH_INPUTS else 0)
    for j in range(H):
        i = tl.load(gates + j * tape_stride, mask, other=0.0)
        f = tl.load(gates + (H + j) * tape_stride, mask, other=0.0)
        o = tl.load(gates + (2 * H + j) * tape_stride, mask, other=0.0)
        g = tl.load(gates + (3 * H + j) * tape_stride, mask, other=0.0)
        tanh_c = tl.load(tanh_cell + j * tape_stride, mask, other=0.0)
        c = tl.load(cell + j * cell_stride, mask, other=0.0)
        dh = tl.load(d_hidden + j * width, mask, other=0.0)
        if TOP:
            dh += tl.load(output_weight + j) * cotangent
        else:
            dh += tl.load(d_inputs + j * width, mask, other=0.0)
        dc = tl.load(d_cell + j * width, mask, other=0.0) + dh * o * (1 - tanh_c * tanh_c)
        tl.store(d_cell + j * width, dc * f, mask)
        di, df = dc * g * i * (1 - i), dc * c * f * (1 - f)
        do, dg = dh * tanh_c * o * (1 - o), dc * i * (1 - g * g)
        tl.store(gates + j * tape_stride, di, mask)
        tl.store(gates + (H + j) * tape_stride, df, mask)
        tl.store(gates + (2 * H + j) * tape_stride, do, mask)
        tl.store(gates + (3 * H + j) * tape_stride, dg, mask)
        row = weight + 4 * j * (X + H)
        d_h = _add_transposed(d_h, row + 4 * X, di, df, do, dg, H)
        if WITH_INPUTS:
            d_x = _add_transposed(d_x, row, di, df, do, dg, X)
    tl.debug_barrier()  # all of d_hidden and d_inputs has been read
    for k in tl.static_range(H):
        tl.store(d_hidden + k * width, d_h[k], mask)
    return d_x


@triton.jit
def backward_kernel(
    grads, cotangents, theta, output_weight, gates, tanh_cell, cells, d_hidden, d_cell, d_inputs,
    d_grads, steps, m,
    LAYERS: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr, FLOOR: tl.constexpr,
    LOG_EPS: tl.constexpr, SCALE: tl.constexpr, FORGET_BIAS: tl.constexpr, BLOCK: tl.constexpr,
    D_GRADS: tl.constexpr,
):  # fmt: skip
    """Back through the tape: gates become cotangents of z; d_hidden and d_cell (layers, H, m) those of the first state.

    `cotangents` are scale · c_t, shape (steps, m); d_inputs is room for (H, m).
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < m
    width = tl.zeros((), tl.int64) + m
    tape_stride = steps * width
    stride = tape_stride + width
    for back in range(steps):
        t = steps - 1 - back
        now = t * width + at
        cotangent = tl.load(cotangents + now, mask, other=0.0)
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            state = layer * H * width + at
            d_x = _layer_backward(
                gates + 4 * layer * H * tape_stride + now, tanh_cell + layer * H * tape_stride + now, tape_stride,
                cells + layer * H * stride + now, stride, d_hidden + state, d_cell + state, d_inputs + at, width,
                theta + weight_offset(layer, F, H), output_weight, cotangent, mask,
                F if layer == 0 else H, H, layer == LAYERS - 1, layer > 0 or D_GRADS,
            )  # fmt: skip
            if layer > 0:
                for k in tl.static_range(H):
                    tl.store(d_inputs + k * width + at, d_x[k], mask)
            elif D_GRADS:
                g = tl.load(grads + t * width + at, mask, other=1.0)
                tl.store(d_grads + now, _features_backward(g, d_x, P, FLOOR, LOG_EPS), mask)
            tl.debug_barrier()  # other threads may read what this one has stored
