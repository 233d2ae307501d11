"""The backward kernels: the weights come back from lse, tile by tile, and five products make the gradients.

An item of `backward` is a run of keys of one key head. It streams the tiles of queries of every head that reads them
past its keys, owns dK and dV of those keys, and leaves its share of dQ in a slice of its own, so nothing is added by
two threads and the order of every sum is fixed by the shapes alone. Tiles lie as in `forward`: keys in rows, queries
in columns. `backward_bias` goes over the tiles once more, only for calls that have a bias.
"""

import numpy as np
from numba import njit

from refattn_numba.forward import LOG2E, all_finite, bend, careful_product, drop, load_columns, run_of_tiles, seen_rows
from refattn_numba.layout import TILE_K
from refattn_numba.simd import exp2_columns, fetch_add, fma, hide, lanes_of, product
from refattn_numba.vectors import LANES


@njit(nogil=True)
def careful_outer(a, rows, b, b_at, b_row, c, c_at, c_row, D, height, words, at):
    """C[rows, D] += A[rows, height] · B[height, D] over the pairs (r, n) that the mask shows, however wild B is."""
    for r in range(rows):
        for n in range(height):
            if (words[at + r] >> np.uint64(n)) & np.uint64(1):
                for d in range(D):
                    c[c_at + r * c_row + d] = fma(a[r * LANES + n], b[b_at + n * b_row + d], c[c_at + r * c_row + d])


@njit(nogil=True)
def scores_gradient(
    st, ds, slope, dropped, qt, dot, base, delta, k, v, key, n_keys, D, Dv, width, height, factor, scale, softcap,
    plain, bias, plane, keep, keep_plane, keep_scale, i0, j0, at, words,
):  # fmt: skip
    """Fill st with P^T, dropped with what dropout leaves of it, and ds with dS^T = P ∘ (dP - delta), of one tile."""
    zero = st.dtype.type(0)
    product(k, key * D, D, 1, n_keys, qt, 0, LANES, st, 0, LANES, width, D, False)  # S^T = K Q^T
    if not plain:
        bend(st, slope, n_keys, scale, softcap, bias, plane, i0, height, j0)
    exp2_columns(st, n_keys, width, factor, base, dropped[:LANES])  # P^T; the sums are not needed
    product(v, key * Dv, Dv, 1, n_keys, dot, 0, LANES, ds, 0, LANES, width, Dv, False)  # dP^T = V dO^T
    if keep.shape[0] > 0:
        drop(ds, n_keys, keep, keep_plane, keep_scale, i0, height, j0)
    for r in range(n_keys):
        for n in range(width):
            ds[r * LANES + n] = st[r * LANES + n] * (ds[r * LANES + n] - delta[n])
    if at >= 0:
        hide(st, n_keys, width, words, at, zero)
        hide(ds, n_keys, width, words, at, zero)
    if keep.shape[0] > 0:
        dropped[: n_keys * LANES] = st[: n_keys * LANES]
        drop(dropped, n_keys, keep, keep_plane, keep_scale, i0, height, j0)


@njit(nogil=True)
def load_queries(head, i0, height, Tq, lse, delta_all, base, delta):
    """Fill, for a tile of queries, base with lse in powers of two (0 where nothing was seen) and delta.

    Beside scores of finfo.min lse has no room for what tells the weights apart: such a row counts as one without any.
    """
    least = -2e38 if base.itemsize == 4 else -1e308
    base[:] = 0
    delta[:] = 0
    for n in range(height):
        seen = lse[head * Tq + i0 + n]
        base[n] = 0 if seen < least else seen * LOG2E
        delta[n] = delta_all[head * Tq + i0 + n]


@njit(nogil=True, cache=True, error_model="numpy")
def backward(
    counter, items, space, chunks, careful, do, q, k, v, lse, delta_all, dq, dk, dv, Dp, Dvp, H, Hk, Tq, Tk, D, Dv,
    scale, softcap, all_visible, rows, columns, partial, words, mask_of, bias, bias_of, keep, keep_of, keep_scale,
):  # fmt: skip
    """Fill dq (chunks, heads, Tq, D), dk and dv (key heads, Tk, Dp or Dvp), all but the factor scale of dq and dk."""
    zero = space.dtype.type(0)
    qt, space = space[: D * LANES], space[D * LANES :]
    dot, space = space[: Dv * LANES], space[Dv * LANES :]
    dqt, space = space[: D * LANES], space[D * LANES :]
    st, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    ds, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    dropped, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    slope, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    base, delta = space[:LANES], space[LANES:]
    slope = slope if softcap > 0 else slope[:0]
    group, nq, nk = H // Hk, -(-Tq // LANES), -(-Tk // TILE_K)
    heads = mask_of.size
    plain = 0 < scale < 1e30 and softcap == 0 and bias.shape[0] == 0
    factor = space.dtype.type(scale * LOG2E if plain else LOG2E)
    lanes = lanes_of(qt)
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        kv_head, chunk = item // chunks, item % chunks
        for query in range(group * nq):
            head, a = kv_head * group + query // nq, query % nq
            i0 = a * LANES
            height = min(LANES, Tq - i0)
            width = -(-height // lanes) * lanes
            first, last = run_of_tiles(
                all_visible, rows, columns, mask_of[head] * nq + a, chunk * nk // chunks, (chunk + 1) * nk // chunks
            )
            if first == last:
                continue
            q_at, do_at = (head * Tq + i0) * Dp, (head * Tq + i0) * Dvp
            load_columns(q, q_at, height, Dp, D, qt)
            load_columns(do, do_at, height, Dvp, Dv, dot)
            load_queries(head, i0, height, Tq, lse, delta_all, base, delta)
            dqt[:] = 0
            for tile in range(first, last):
                j0 = (tile if all_visible else columns[tile]) * TILE_K
                bits = -1 if all_visible else partial[tile]
                n_keys = min(TILE_K, Tk - j0)
                at = bits * TILE_K
                if bits >= 0:
                    skipped, n_keys = seen_rows(words, at, n_keys)
                    at, j0 = at + skipped, j0 + skipped
                key = kv_head * Tk + j0
                scores_gradient(
                    st, ds, slope, dropped, qt, dot, base, delta, k, v, key, n_keys, D, Dv, width, height, factor,
                    scale, softcap, plain, bias, bias_of[head] if bias.shape[0] > 0 else -1, keep,
                    keep_of[head] if keep.shape[0] > 0 else -1, keep_scale, i0, j0, at, words,
                )  # fmt: skip
                for n in range(n_keys * LANES if softcap > 0 else 0):
                    ds[n] *= slope[n]
                if softcap > 0 and bits >= 0:
                    hide(ds, n_keys, width, words, at, zero)  # the slope of a hidden NaN is NaN
                p = dropped if keep.shape[0] > 0 else st
                if careful and bits >= 0:
                    careful_outer(p, n_keys, do, do_at, Dvp, dv, key * Dvp, Dvp, Dv, height, words, at)
                    careful_product(k, key * D, 1, D, D, ds, dqt, height, n_keys, words, at)
                    careful_outer(ds, n_keys, q, q_at, Dp, dk, key * Dp, Dp, D, height, words, at)
                else:
                    product(
                        p, 0, LANES, 1, n_keys, do, do_at, Dvp, dv, key * Dvp, Dvp, Dvp, height, True
                    )  # dV += P^T dO
                    product(k, key * D, 1, D, D, ds, 0, LANES, dqt, 0, LANES, width, n_keys, True)  # dQ^T += K^T dS^T
                    product(ds, 0, LANES, 1, n_keys, q, q_at, Dp, dk, key * Dp, Dp, Dp, height, True)  # dK += dS^T Q
            for n in range(height):
                for d in range(D):
                    dq[((chunk * heads + head) * Tq + i0 + n) * D + d] = dqt[d * LANES + n]


@njit(nogil=True, cache=True, error_model="numpy")
def backward_bias(
    counter, items, space, dbias, do, q, k, v, lse, delta_all, Dp, Dvp, H, Hk, Tq, Tk, D, Dv,
    scale, softcap, all_visible, rows, columns, partial, words, mask_of, bias, bias_of, keep, keep_of, keep_scale,
):  # fmt: skip
    """Add dS up into dbias (planes, Tq or 1, Tk or 1): an item is a plane, or one of its tiles of queries."""
    qt, space = space[: D * LANES], space[D * LANES :]
    dot, space = space[: Dv * LANES], space[Dv * LANES :]
    st, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    ds, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    dropped, space = space[: TILE_K * LANES], space[TILE_K * LANES :]
    base, delta, nothing = space[:LANES], space[LANES : 2 * LANES], space[:0]
    group, nq, nk = H // Hk, -(-Tq // LANES), -(-Tk // TILE_K)
    lanes = lanes_of(qt)
    per_plane = items // bias.shape[0]
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        plane, part = item // per_plane, item % per_plane
        for head in range(mask_of.size):
            if bias_of[head] != plane:
                continue
            for a in range(part * nq // per_plane, (part + 1) * nq // per_plane):
                i0 = a * LANES
                height = min(LANES, Tq - i0)
                width = -(-height // lanes) * lanes
                load_columns(q, (head * Tq + i0) * Dp, height, Dp, D, qt)
                load_columns(do, (head * Tq + i0) * Dvp, height, Dvp, Dv, dot)
                load_queries(head, i0, height, Tq, lse, delta_all, base, delta)
                first, last = run_of_tiles(all_visible, rows, columns, mask_of[head] * nq + a, 0, nk)
                for tile in range(first, last):
                    j0 = (tile if all_visible else columns[tile]) * TILE_K
                    n_keys = min(TILE_K, Tk - j0)
                    scores_gradient(
                        st, ds, nothing, dropped, qt, dot, base, delta, k, v, head // group * Tk + j0, n_keys, D, Dv,
                        width, height, space.dtype.type(LOG2E), scale, softcap, False, bias, plane, keep,
                        keep_of[head] if keep.shape[0] > 0 else -1, keep_scale, i0, j0,
                        -1 if all_visible or partial[tile] < 0 else partial[tile] * TILE_K, words,
                    )  # fmt: skip
                    for r in range(n_keys):
                        for n in range(height):
                            i = i0 + n if bias.shape[1] > 1 else 0
                            j = j0 + r if bias.shape[2] > 1 else 0
                            dbias[plane, i, j] += ds[r * LANES + n]


@njit(nogil=True)
def finite(x):
    """Return whether a flat array holds neither NaN nor infinities."""
    return all_finite(x, x.size // LANES, LANES) and all_finite(x[x.size // LANES * LANES :], 1, x.size % LANES)
