"""The kernel for few queries: every number of K and V is fetched once for all the queries of its key head.

An item is a run of SPLIT keys of one key head, and up to ROWS of the H / Hk * Tq rows of queries that read it. Per tile
of TILE keys: S = Q K^T, its running maximum m and sum l along the rows, P in place, O += P V. With 4 rows that is 4
multiply-adds per number fetched, so memory sets the pace, and the registers are filled with what memory delivers: the
columns of K and V. `join` adds up the runs of each query, in order.

A row sees one interval of keys, start <= j < stop. Keys that no row sees are not fetched; in a tile that some row sees
in part, each row takes its own keys of V alone. So what is hidden is never multiplied, whatever it holds.
"""

import math

import numpy as np
from numba import njit

from refattn_numba.forward import LOG2E
from refattn_numba.simd import fetch_add, fma, lanes_of, product
from refattn_numba.simd_rows import as_floats, exp2_row, row_maximum, scores

TILE = 64
SPLIT = 512
ROWS = 32


@njit(nogil=True)
def weigh(st, rows, left, right, low, high, scale, softcap, factor, plain, o, at, Dv, m, l):
    """Turn a tile of products into weights of the keys low_r <= n < high_r, and take m, l and o to the new maximum."""
    for r in range(rows):
        first = r * TILE
        a, b = max(left, low[r]), min(right, high[r])
        if not plain:
            for n in range(first + a, first + b):
                st[n] = scale * st[n] if softcap == 0 else softcap * math.tanh(scale * st[n] / softcap)
        if b - a < TILE:
            st[first : first + max(a, 0)] = -math.inf
            st[first + max(a, b, 0) : first + TILE] = -math.inf
        old = m[at + r]
        new = max(old, factor * row_maximum(st, first, TILE))
        if new != old:
            shrink = st.dtype.type(2.0 ** (old - new))
            m[at + r] = new
            l[at + r] *= shrink
            for d in range((at + r) * Dv, (at + r + 1) * Dv):
                o[d] *= shrink
        l[at + r] += exp2_row(st, first, TILE, factor, st.dtype.type(0) if new == -math.inf else new)


@njit(nogil=True)
def add_values(st, first, rows, v, v_at, v_row, n_keys, o, at, Dv):
    """O[r] += sum over n < n_keys of st[first + r * TILE + n] · v[n], key after key."""
    width = Dv // lanes_of(o) * lanes_of(o)
    product(st, first, TILE, 1, rows, v, v_at, v_row, o, at * Dv, Dv, width, n_keys, True)
    for r in range(rows if width < Dv else 0):
        for n in range(n_keys):
            for d in range(width, Dv):
                o[(at + r) * Dv + d] = fma(st[first + r * TILE + n], v[v_at + n * v_row + d], o[(at + r) * Dv + d])


@njit(nogil=True, cache=True, error_model="numpy")
def few_queries(
    counter, items, space, sequence_of, split_of, q, k, v, halves, k_page, v_page, page_size, k_head, k_row, v_head,
    v_row, start, stop, span_of, H, Hk, Tq, D, Dv, scale, softcap, o, m, l,
):  # fmt: skip
    """Fill o (parts, H * Tq, Dv), m and l (parts, H * Tq): sums relative to 2^m of each run of keys that is not empty.

    Key j of head h of sequence b begins at k_page[b, j // page_size] + h * k_head + j % page_size * k_row.
    """
    st, space = space[: ROWS * TILE], space[ROWS * TILE :]
    low, high = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    group = H // Hk * Tq
    blocks = -(-group // ROWS)
    plain = 0 < scale < 1e30 and softcap == 0
    factor = st.dtype.type(scale * LOG2E if plain else LOG2E)
    while True:
        item = fetch_add(counter)
        if item >= items:
            break
        part, h, r0 = item // blocks // Hk, item // blocks % Hk, item % blocks * ROWS
        b, rows = sequence_of[part], min(ROWS, group - r0)
        at = part * H * Tq + h * group + r0
        first, last = (split_of[part] + 1) * SPLIT, 0
        for r in range(rows):
            row = h * group + r0 + r
            span = span_of[b * H + row // Tq]
            low[r] = max(start[span, row % Tq], split_of[part] * SPLIT)
            high[r] = min(stop[span, row % Tq], (split_of[part] + 1) * SPLIT)
            if low[r] < high[r]:
                first, last = min(first, low[r]), max(last, high[r])
            m[at + r], l[at + r] = -math.inf, 0
        if first >= last:
            continue
        o[at * Dv : (at + rows) * Dv] = 0
        q_at = (b * H * Tq + h * group + r0) * D
        for j0 in range(first // TILE * TILE, last, TILE):
            left, right = max(first, j0), min(last, j0 + TILE)
            j = left
            while j < right:  # the tile's keys, page after page
                page = j // page_size
                n_keys = min(right, (page + 1) * page_size) - j
                begin = k_page[b, page] + h * k_head + (j - page * page_size) * k_row
                x, x_at, x_row = as_floats(k, begin, k_row, n_keys, D, halves, space)
                begin = v_page[b, page] + h * v_head + (j - page * page_size) * v_row
                after = min(j + n_keys, last - 1)
                ahead = k_page[b, after // page_size] + h * k_head + after % page_size * k_row
                scores(q, q_at, rows, x, x_at, x_row, n_keys, D, st, j - j0, TILE, v, begin, v_row, k, ahead, k_row)
                j += n_keys
            whole = True
            for r in range(rows):
                low[r] -= j0
                high[r] -= j0
                whole = whole and low[r] <= left - j0 and high[r] >= right - j0
            weigh(
                st, rows, left - j0, right - j0, low, high, scale, softcap, factor, plain, o, at, Dv, m, l
            )  # fmt: skip
            j = left
            while j < right:
                page = j // page_size
                n_keys = min(right, (page + 1) * page_size) - j
                begin = v_page[b, page] + h * v_head + (j - page * page_size) * v_row
                x, x_at, x_row = as_floats(v, begin, v_row, n_keys, Dv, halves, space)
                if whole:
                    add_values(st, j - j0, rows, x, x_at, x_row, n_keys, o, at, Dv)
                for r in range(0 if whole else rows):
                    a, e = max(j - j0, low[r]), min(j - j0 + n_keys, high[r])
                    if a < e:
                        add_values(st, r * TILE + a, 1, x, x_at + (a - j + j0) * x_row, x_row, e - a, o, at + r, Dv)
                j += n_keys
            for r in range(rows):
                low[r] += j0
                high[r] += j0


@njit(nogil=True, cache=True, error_model="numpy")
def join(counter, items, space, part_of, parts_o, parts_m, parts_l, sinks, o, lse, H, Tq, Dv):
    """Fill o (B, H, Tq, Dv) and lse (B, H, Tq) from the parts part_of[b] <= p < part_of[b + 1] of each sequence b."""
    zero = space.dtype.type(0)
    while True:
        head = fetch_add(counter)
        if head >= items:
            break
        b, h = head // H, head % H
        for i in range(Tq):
            out = head * Tq + i
            top = space.dtype.type(sinks[h] * LOG2E if sinks.size > 0 else -math.inf)
            total = top
            for p in range(part_of[b], part_of[b + 1]):
                top = max(top, parts_m[(p * H + h) * Tq + i])
            total = zero if total == -math.inf else space.dtype.type(2.0 ** (total - top))
            for p in range(part_of[b], part_of[b + 1]):
                part = (p * H + h) * Tq + i
                if parts_l[part] == 0:
                    continue  # it saw nothing, and its o holds nothing
                weight = space.dtype.type(2.0 ** (parts_m[part] - (zero if top == -math.inf else top)))
                total += weight * parts_l[part]
                for d in range(Dv):
                    o[out * Dv + d] = fma(weight, parts_o[part * Dv + d], o[out * Dv + d])
            lse[out] = (top + math.log2(total)) / LOG2E if total != 0 else -math.inf
            inverse = 1 / total if total != 0 else zero
            for d in range(Dv):
                o[out * Dv + d] *= inverse
