import numpy as np
import pytest
from numba import njit
from refattn_numba import simd
from refattn_numba.threads import aligned
from refattn_numba.vectors import LANES

DTYPES = (np.float32, np.float64)


@njit
def call_product(a, a_row, a_step, rows, b, b_row, c, c_row, width, K, add):
    simd.product(a, 0, a_row, a_step, rows, b, 0, b_row, c, 0, c_row, width, K, add)


@njit
def call_maximum(tile, rows, width, top):
    simd.column_maximum(tile, rows, width, top)


@njit
def call_exp2(tile, rows, width, factor, shift, total):
    simd.exp2_columns(tile, rows, width, factor, shift, total)


@njit
def call_hide(tile, rows, width, words, value):
    simd.hide(tile, rows, width, words, 0, value)


@njit
def call_lanes(x):
    return simd.lanes_of(x)


def tile_of(rng, rows, width, dtype):
    tile = aligned(rows * width, dtype)
    tile[:] = rng.standard_normal(rows * width)
    return tile


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    ("rows", "K", "vectors"), [(1, 1, 1), (2, 3, 4), (5, 64, 5), (7, 5, 8), (13, 9, 3), (128, 33, 4)]
)
def test_product(dtype, add, rows, K, vectors):
    rng = np.random.default_rng(0)
    width = vectors * call_lanes(np.zeros(1, dtype))
    a, b, c = (
        rng.standard_normal((rows, K)).astype(dtype),
        tile_of(rng, K, width, dtype),
        tile_of(rng, rows, width, dtype),
    )
    want = a.astype(float) @ b.reshape(K, width).astype(float) + (c.reshape(rows, width) if add else 0)
    bound = 4 * (K + 1) * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b.reshape(K, width)) + 4)
    transposed = np.asfortranarray(a).T.ravel()
    for x, x_row, x_step in ((a.ravel(), K, 1), (transposed, 1, rows)):
        got = aligned(c.size, dtype)
        got[:] = c
        call_product(x, x_row, x_step, rows, b, width, got, width, width, K, add)
        assert (np.abs(got.reshape(rows, width) - want) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_stays_inside(dtype):
    """Neighbours of the result keep their values."""
    width = call_lanes(np.zeros(1, dtype))
    c = np.full((9, 3 * width), 7, dtype)
    a, b = np.ones((5, 2), dtype), np.ones((2, width), dtype)
    call_product(a.ravel(), 2, 1, 5, b.ravel(), width, c.reshape(-1)[width:], 3 * width, width, 2, False)
    assert (c[:5, width : 2 * width] == 2).all()
    c[:5, width : 2 * width] = 7
    assert (c == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 77])
def test_column_maximum(dtype, rows):
    rng = np.random.default_rng(1)
    tile, top = tile_of(rng, rows, LANES, dtype), np.full(LANES, -np.inf, dtype)
    want = tile.reshape(rows, LANES).max(axis=0)
    tile[3] = -np.inf
    call_maximum(tile, rows, LANES, top)
    columns = np.arange(LANES) != 3
    assert (top == want)[columns].all()
    call_maximum(np.full(rows * LANES, np.nan, dtype), rows, LANES, top)  # NaN is passed over: its weight tells
    assert (top == want)[columns].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_is_accurate(dtype):
    least = -124.0 if dtype is np.float32 else -1020.0
    x = np.concatenate([np.linspace(least, 0, 64 * 997), -np.logspace(-12, 2, 64 * 3)]).astype(dtype)
    tile = x.copy()
    rows = x.size // LANES
    call_exp2(tile, rows, LANES, dtype(1), np.zeros(LANES, dtype), np.zeros(LANES, dtype))
    want = np.exp2(x.astype(np.longdouble))
    error = np.abs(tile - want) / (want * np.finfo(dtype).eps)
    assert error.max() < 1.0  # ulps of 1: half of that is the last rounding


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_at_the_edges(dtype):
    tile = np.zeros(LANES, dtype)
    strange = np.array([np.nan], np.float32).view(np.uint32) | np.uint32(0x1FF)  # a NaN with a payload
    tile[:6] = [-np.inf, np.nan, -1e30, 0, -1, strange.view(np.float32)[0]]
    total = np.ones(LANES, dtype)
    call_exp2(tile, 1, LANES, dtype(1), np.zeros(LANES, dtype), total)
    np.testing.assert_array_equal(tile[:6], [0, np.nan, 0, 1, 0.5, np.nan])
    np.testing.assert_array_equal(total[:6], [1, np.nan, 1, 2, 1.5, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp2_scales_shifts_and_sums(dtype):
    rng = np.random.default_rng(2)
    tile, shift = tile_of(rng, 33, LANES, dtype), np.abs(rng.standard_normal(LANES)).astype(dtype) + 8
    want = np.exp2(1.5 * tile.reshape(33, LANES).astype(float) - shift)
    total = np.zeros(LANES, dtype)
    call_exp2(tile, 33, LANES, dtype(1.5), shift, total)
    np.testing.assert_allclose(tile.reshape(33, LANES), want, rtol=40 * np.finfo(dtype).eps)
    np.testing.assert_allclose(total, want.sum(axis=0), rtol=80 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hide(dtype):
    rng = np.random.default_rng(3)
    tile = tile_of(rng, 19, LANES, dtype)
    seen = rng.random((19, LANES)) < 0.5
    words = np.packbits(seen, axis=-1, bitorder="little").view("<u8").ravel()
    want = np.where(seen, tile.reshape(19, LANES), -np.inf)
    call_hide(tile, 19, LANES, words, dtype(-np.inf))
    np.testing.assert_array_equal(tile.reshape(19, LANES), want)
