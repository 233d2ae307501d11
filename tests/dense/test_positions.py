"""RoPE and ALiBi: what their papers say about them."""

import numpy as np
import pytest

import refattn
from refattn.testing import case

RNG = np.random.default_rng(0)


def test_rope_is_the_rotation_of_the_paper():
    x = RNG.normal(size=(3, 6))
    y = refattn.rope(x, np.array([0, 1, 5]))
    for t, position in enumerate((0, 1, 5)):
        for n in range(3):
            angle = position * 10000.0 ** (-2 * n / 6)
            a, b = x[t, n], x[t, n + 3]
            np.testing.assert_allclose(y[t, n], a * np.cos(angle) - b * np.sin(angle), rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(y[t, n + 3], a * np.sin(angle) + b * np.cos(angle), rtol=1e-12, atol=1e-15)


def test_interleaved_rope_is_a_permutation_of_the_other():
    x, positions = RNG.normal(size=(2, 9, 8)), RNG.integers(0, 100, 9)
    halves = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])
    want = refattn.rope(x[..., halves], positions)
    np.testing.assert_allclose(refattn.rope(x, positions, interleaved=True)[..., halves], want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 0, 2, 6])
def test_rope_keeps_norms_and_what_does_not_rotate(interleaved, rotary_dim):
    x = RNG.normal(size=(2, 4, 9, 8))
    y = refattn.rope(x, np.arange(9), rotary_dim=rotary_dim, interleaved=interleaved)
    np.testing.assert_allclose((y**2).sum(axis=-1), (x**2).sum(axis=-1), rtol=1e-12)
    n = 8 if rotary_dim is None else rotary_dim
    np.testing.assert_array_equal(y[..., n:], x[..., n:])
    if n:
        assert (y[..., 1:, :n] != x[..., 1:, :n]).any()
    np.testing.assert_array_equal(y[..., 0, :], x[..., 0, :])  # position 0 turns nothing


@pytest.mark.parametrize("shift", [1, 17, 1000, -5])
def test_products_know_only_the_distance(shift):
    q, k, positions = RNG.normal(size=(5, 8)), RNG.normal(size=(5, 8)), RNG.integers(0, 50, 5)
    here = refattn.rope(q, positions) @ refattn.rope(k, positions).T
    there = refattn.rope(q, positions + shift) @ refattn.rope(k, positions + shift).T
    np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-11)


def test_turning_twice_adds_positions():
    x, a, b = RNG.normal(size=(6, 8)), RNG.integers(0, 50, 6), RNG.integers(0, 50, 6)
    np.testing.assert_allclose(refattn.rope(refattn.rope(x, a), b), refattn.rope(x, a + b), rtol=1e-10, atol=1e-12)


def test_the_vjp_turns_back():
    x, positions = RNG.normal(size=(2, 3, 6, 8)), RNG.integers(0, 1000, (2, 6))
    y = refattn.rope(x, positions, rotary_dim=6)
    np.testing.assert_allclose(refattn.rope_vjp(y, positions, rotary_dim=6), x, rtol=1e-10, atol=1e-12)


def test_positions_per_sequence():
    x, positions = RNG.normal(size=(2, 3, 6, 8)), RNG.integers(0, 1000, (2, 6))
    y = refattn.rope(x, positions)
    for b in range(2):
        np.testing.assert_array_equal(y[b], refattn.rope(x[b], positions[b]))


def test_far_positions_keep_their_angle_in_float32():
    """The angle is computed in float64: at position 1,000,000 float32 would know it to 0.06 only."""
    x = RNG.normal(size=(4, 8))
    positions = np.array([10**6, 10**6 + 1, 2**24 + 1, 123_456_789])
    want = refattn.rope(x.astype(np.float32).astype(np.float64), positions)
    np.testing.assert_allclose(refattn.rope(x.astype(np.float32), positions), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64])
def test_positions_of_every_integer_type(dtype):
    x = RNG.normal(size=(3, 4))
    positions = np.array([0, 1, 200]).astype(dtype) if dtype != np.int16 else np.array([0, 1, 200], dtype)
    np.testing.assert_array_equal(refattn.rope(x, positions), refattn.rope(x, positions.astype(np.int64)))
    np.testing.assert_array_equal(refattn.rope_vjp(x, positions), refattn.rope_vjp(x, positions.astype(np.int64)))


def test_rope_does_not_write_to_its_input():
    (x, positions), _ = case("rope/plain/float64").call()
    before = x.copy()
    refattn.rope(x, positions)
    np.testing.assert_array_equal(x, before)


def test_slopes_of_a_power_of_two_are_those_of_the_paper():
    np.testing.assert_allclose(refattn.alibi_slopes(8), [2.0**-n for n in range(1, 9)], rtol=1e-15)
    np.testing.assert_allclose(refattn.alibi_slopes(16), [2.0 ** (-n / 2) for n in range(1, 17)], rtol=1e-15)
    np.testing.assert_allclose(refattn.alibi_slopes(1), [2.0**-8])


def test_slopes_of_other_numbers_borrow_from_twice_as_many():
    """The paper's code: those of the power of two below, then every second one of the next."""
    twelve = [*(2.0**-n for n in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    np.testing.assert_allclose(refattn.alibi_slopes(12), twelve, rtol=1e-15)
    np.testing.assert_allclose(refattn.alibi_slopes(3), [2.0**-4, 2.0**-8, 2.0**-2], rtol=1e-15)


@pytest.mark.parametrize("heads", range(1, 70))
def test_slopes_are_positive_and_different(heads):
    slopes = refattn.alibi_slopes(heads)
    assert slopes.shape == (heads,)
    assert (slopes > 0).all() and (slopes < 1).all()
    assert len(set(slopes.tolist())) == heads


@pytest.mark.parametrize(("Tq", "Tk"), [(4, 4), (2, 5), (5, 2), (1, 7), (0, 3)])
def test_bias_is_the_distance_from_the_end(Tq, Tk):
    slopes = np.array([0.5, 0.25], np.float32)
    bias = refattn.alibi_bias(slopes, Tq, Tk)
    assert bias.dtype == np.float32 and bias.shape == (2, Tq, Tk)
    for h, i, j in np.ndindex(2, Tq, Tk):
        assert bias[h, i, j] == -slopes[h] * abs(i + Tk - Tq - j)
