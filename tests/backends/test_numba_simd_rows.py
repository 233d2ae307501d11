import ml_dtypes
import numpy as np
import pytest
from numba import njit
from refattn_numba import simd_rows
from refattn_numba.simd import lanes_of
from refattn_numba.threads import aligned

DTYPES = (np.float32, np.float64)


@njit
def call_scores(q, q_at, rows, k, k_at, k_row, n_keys, D, out, out_at, out_row):
    simd_rows.scores(q, q_at, rows, k, k_at, k_row, n_keys, D, out, out_at, out_row, k, k_at, k_row, k, k_at, k_row)


@njit
def call_maximum(x, at, size):
    return simd_rows.row_maximum(x, at, size)


@njit
def call_exp2(x, at, size, factor, shift):
    return simd_rows.exp2_row(x, at, size, factor, shift)


@njit
def call_lanes(x):
    return lanes_of(x)


def row_of(values, dtype):
    row = aligned(len(values), dtype)
    row[:] = values
    return row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "n_keys", "D"), [(1, 1, 1), (1, 40, 64), (2, 9, 33), (3, 17, 100), (7, 64, 128)])
def test_scores(dtype, rows, n_keys, D):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((rows, D)).astype(dtype), rng.standard_normal((n_keys, D + 3)).astype(dtype)
    out = np.full(5 + rows * 70, 7, dtype)
    call_scores(q.ravel(), 0, rows, k.ravel(), 0, D + 3, n_keys, D, out, 5, 70)
    got = out[5:].reshape(rows, 70)
    want = q.astype(float) @ k[:, :D].T.astype(float)
    bound = D * np.finfo(dtype).eps * (np.abs(q) @ np.abs(k[:, :D]).T)
    assert (np.abs(got[:, :n_keys] - want) <= bound).all()
    assert (got[:, n_keys:] == 7).all()
    assert (out[:5] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_has_the_same_bits_in_any_block(dtype):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((7, 80)).astype(dtype), rng.standard_normal((37, 80)).astype(dtype)
    together, alone = np.zeros((7, 37), dtype), np.zeros((7, 37), dtype)
    call_scores(q.ravel(), 0, 7, k.ravel(), 0, 80, 37, 80, together.reshape(-1), 0, 37)
    for r in range(7):
        for n in range(37):
            call_scores(q.ravel(), r * 80, 1, k.ravel(), n * 80, 80, 1, 80, alone.reshape(-1), r * 37 + n, 37)
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_maximum(dtype):
    size = 4 * call_lanes(np.zeros(1, dtype))
    for place in range(size):
        x = row_of(-np.arange(1.0, size + 1), dtype)
        x[place] = 3
        x[(place + 1) % size] = np.nan
        assert call_maximum(x, 0, size) == 3
    assert call_maximum(row_of([np.nan] * size, dtype), 0, size) == -np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_row(dtype):
    size = 4 * call_lanes(np.zeros(1, dtype))
    values = np.linspace(-40, 0, 3 * size)
    x = row_of(values, dtype)
    x[size] = -np.inf
    want = 2.0 ** (0.5 * x.astype(float) - 1)
    total = call_exp2(x, size, size, dtype(0.5), dtype(1))
    inside = slice(size, 2 * size)
    np.testing.assert_allclose(x[inside], want[inside], rtol=4 * np.finfo(dtype).eps)
    assert x[size] == 0
    np.testing.assert_array_equal(x[:size], values[:size].astype(dtype))
    np.testing.assert_array_equal(x[2 * size :], values[2 * size :].astype(dtype))
    np.testing.assert_allclose(total, want[inside].sum(), rtol=size * np.finfo(dtype).eps)


@pytest.mark.parametrize("by_instruction", [True, False])
@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_all_numbers_of_16_bits(monkeypatch, kind, by_instruction):
    if by_instruction and not simd_rows.CONVERTS_HALVES:
        pytest.skip("this processor has no instruction for float16")
    monkeypatch.setattr(simd_rows, "CONVERTS_HALVES", by_instruction)

    @njit
    def call_widen(x, at, size, halves, out, out_at):
        simd_rows.widen(x, at, size, halves, out, out_at)

    bits = np.arange(65536, dtype=np.uint16)
    out = np.full(65536 + 2, 7, np.float32)
    call_widen(bits, 0, 65536, kind is np.float16, out, 1)
    want = bits.view(kind).astype(np.float32)
    np.testing.assert_array_equal(out[1:-1], want)
    np.testing.assert_array_equal(np.signbit(out[1:-1])[~np.isnan(want)], np.signbit(want)[~np.isnan(want)])
    assert (out[[0, -1]] == 7).all()
    for size in range(70):  # a tail of any length
        out[:] = 7
        call_widen(bits, 100, size, kind is np.float16, out, 3)
        np.testing.assert_array_equal(out[3 : 3 + size], want[100 : 100 + size])
        assert (out[3 + size :] == 7).all()
