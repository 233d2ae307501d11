"""The forward kernel: scores of TILE_K keys by LANES queries at a time, keys in rows, queries in columns.

An item is one tile of queries of one head; it streams past the tiles of keys that the mask lets through. Per tile:
S^T = K Q^T, its running maximum m and sum l down the columns, P^T in place, O^T += V^T P^T. Weights are powers of two:
the scale and log2(e) are one factor inside the exponent's FMA, and m is kept as it was rounded there. Of a tile that
the mask cuts, the keys before the first and after the last that some query sees are left out. At D = 64 a tile
is 4·64·64·128 FLOPs on 64 KiB of keys and values that stay in L2, so the two products set the pace.
"""

import math

import numpy as np
from numba import njit

from refattn_numba.layout import TILE_K
from refattn_numba.simd import column_maximum, exp2_columns, fetch_add, fma, hide, lanes_of, product
from refattn_numba.vectors import LANES

LOG2E = math.log2(math.e)


@njit(nogil=True)
def load_columns(x, at, height, stride, D, tile):
    """tile[d, n] = x[at + n * stride + d] for n < height, d < D; the columns after those are 0."""
    for d in range(D):
        for n in range(height):
            tile[d * LANES + n] = x[at + n * stride + d]
        for n in range(height, LANES):
            tile[d * LANES + n] = 0


@njit(nogil=True)
def bend(tile, slope, rows, scale, softcap, bias, plane, i0, height, j0):
    """Scale the products, cap them, add the bias; where `slope` is not empty it takes the soft cap's derivative.

    A finite score below `floor` would be -inf in powers of two: a row of finfo.min, which some add to hide a pair, is
    one of equal scores.
    """
    floor = -2.2e38 if tile.itemsize == 4 else -1.2e308
    for r in range(rows):
        for n in range(height):
            s = scale * tile[r * LANES + n]
            if softcap > 0:
                t = math.tanh(s / softcap)
                s = softcap * t
                if slope.size > 0:
                    slope[r * LANES + n] = 1 - t * t
            if plane >= 0:
                i = i0 + n if bias.shape[1] > 1 else 0
                j = j0 + r if bias.shape[2] > 1 else 0
                s += bias[plane, i, j]
                if -math.inf < s < floor:
                    s = floor
            tile[r * LANES + n] = s


@njit(nogil=True)
def drop(tile, rows, keep, plane, scale, i0, height, j0):
    """Zero the weights that the dropout mask drops, and scale the others."""
    for r in range(rows):
        for n in range(height):
            i = i0 + n if keep.shape[1] > 1 else 0
            j = j0 + r if keep.shape[2] > 1 else 0
            tile[r * LANES + n] = tile[r * LANES + n] * scale if keep[plane, i, j] else 0


@njit(nogil=True)
def careful_product(a, a_at, a_row, a_step, rows, b, c, height, K, words, at):
    """C[rows, height] += A[rows, K] · B[K, height] over the pairs (k, n) that the mask shows, however wild A is.

    Where A is finite, the bits are those of `product`.
    """
    for k in range(K):
        for n in range(height):
            if (words[at + k] >> np.uint64(n)) & np.uint64(1):
                for r in range(rows):
                    c[r * LANES + n] = fma(a[a_at + r * a_row + k * a_step], b[k * LANES + n], c[r * LANES + n])


@njit(nogil=True)
def all_finite(tile, rows, height):
    """Return whether the first `height` columns of `rows` rows hold neither NaN nor infinities."""
    for r in range(rows):
        for n in range(height):
            if not math.isfinite(tile[r * LANES + n]):
                return False
    return True


@njit(nogil=True)
def rescale(m, m_new, l, shrink, ot, Dv, width):
    """Take the sums to the new maximum: l and O^T shrink by 2^(m - m_new), in the columns where it moved."""
    moved = False
    for n in range(width):
        top = 0 if m_new[n] == -math.inf else m_new[n]  # nothing seen yet: keep 2^-inf, not 2^nan
        shrink[n] = 1 if m[n] == m_new[n] else 2.0 ** (m[n] - top)
        moved = moved or m[n] != m_new[n]
        m[n] = m_new[n]
        m_new[n] = top
    if moved:
        for n in range(width):
            l[n] *= shrink[n]
        for d in range(Dv):
            for n in range(width):
                ot[d * LANES + n] *= shrink[n]


@njit(nogil=True)
def run_of_tiles(all_visible, rows, columns, row, first, last):
    """Return which of a row's tiles lie among the tiles of keys first <= column < last, as a range."""
    if all_visible:
        return first, last
    start = rows[row]
    while start < rows[row + 1] and columns[start] < first:
        start += 1
    stop = start
    while stop < rows[row + 1] and columns[stop] < last:
        stop += 1
    return start, stop


@njit(nogil=True)
def seen_rows(words, at, n_keys):
    """Return the first key of a partial tile that some query sees, and how many there are up to the last one."""
    first, last = 0, n_keys
    while last > first and words[at + last - 1] == 0:
        last -= 1
    while first < last and words[at + first] == 0:
        first += 1
    return first, last - first


@njit(nogil=True, cache=True, error_model="numpy")
def forward(
    counter, items, space, order, splits, q, k, v, o, lse, H, Hk, Tq, Tk, D, Dv, scale, softcap, sinks,
    all_visible, rows, columns, partial, words, mask_of, bias, bias_of, keep, keep_of, keep_scale,
):  # fmt: skip
    """Fill o (splits, heads, Tq, Dv) and lse (splits, heads, Tq); each split attends to its run of the keys alone."""
    zero = space.dtype.type(0)
    qt, space = space[: D * LANES], space[D * LANES :]
    st, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    ot, space = space[: Dv * LANES], space[Dv * LANES :]
    m, m_new, l, shrink = space[:LANES], space[LANES : 2 * LANES], space[2 * LANES : 3 * LANES], space[3 * LANES :]
    nothing = space[:0]
    nq, nk = -(-Tq // LANES), -(-Tk // TILE_K)
    plain = 0 < scale < 1e30 and softcap == 0 and bias.shape[0] == 0
    factor = space.dtype.type(scale * LOG2E if plain else LOG2E)
    lanes = lanes_of(qt)
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        head, a, split = order[item // splits] // nq, order[item // splits] % nq, item % splits
        kv_head = head // (H // Hk)
        i0 = a * LANES
        height = min(LANES, Tq - i0)
        width = -(-height // lanes) * lanes
        first, last = run_of_tiles(
            all_visible, rows, columns, mask_of[head] * nq + a, split * nk // splits, (split + 1) * nk // splits
        )
        load_columns(q, (head * Tq + i0) * D, height, D, D, qt)
        careful = False
        while True:
            ot[:] = 0
            for n in range(LANES):
                m[n] = sinks[head % H] * LOG2E if sinks.size > 0 and split == 0 else -math.inf
                l[n] = 0 if m[n] == -math.inf else 1
            patchy = False
            for tile in range(first, last):
                j0 = (tile if all_visible else columns[tile]) * TILE_K
                bits = -1 if all_visible else partial[tile]
                n_keys = min(TILE_K, Tk - j0)
                at = bits * TILE_K
                if bits >= 0:
                    skipped, n_keys = seen_rows(words, at, n_keys)
                    at, j0 = at + skipped, j0 + skipped
                key = kv_head * Tk + j0
                product(k, key * D, D, 1, n_keys, qt, 0, LANES, st, 0, LANES, width, D, False)  # S^T = K Q^T
                if not plain:
                    plane = bias_of[head] if bias.shape[0] > 0 else -1
                    bend(
                        st,
                        nothing,
                        n_keys,
                        scale,
                        softcap,
                        bias,
                        plane,
                        i0,
                        height,
                        j0,
                    )
                if bits >= 0:
                    hide(st, n_keys, width, words, at, zero - math.inf)
                    patchy = True
                m_new[:] = -math.inf
                column_maximum(st, n_keys, width, m_new)
                for n in range(LANES):
                    m_new[n] = max(m[n], factor * m_new[n])
                rescale(m, m_new, l, shrink, ot, Dv, width)
                exp2_columns(st, n_keys, width, factor, m_new, l)  # P^T, and l += its column sums
                if keep.shape[0] > 0:
                    drop(st, n_keys, keep, keep_of[head], keep_scale, i0, height, j0)
                if careful and bits >= 0:
                    careful_product(v, key * Dv, 1, Dv, Dv, st, ot, height, n_keys, words, at)
                else:
                    product(v, key * Dv, 1, Dv, Dv, st, 0, LANES, ot, 0, LANES, width, n_keys, True)  # O^T += V^T P^T
            if careful or not patchy or all_finite(ot, Dv, height):
                break
            careful = True  # 0 · NaN is NaN: a hidden value may have leaked, so go again and look at every pair
        out = (split * mask_of.size + head) * Tq + i0
        for n in range(height):
            inverse = 1 / l[n] if l[n] != 0 else zero
            lse[out + n] = (m[n] + math.log2(l[n])) / LOG2E if l[n] != 0 else -math.inf
            for d in range(Dv):
                o[(out + n) * Dv + d] = ot[d * LANES + n] * inverse
