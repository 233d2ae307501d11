"""What the scalings of rotary frequencies mean: which pairs stay, which are slowed down, and by how much."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn
from refattn import (
    dynamic_ntk_frequencies,
    linear_frequencies,
    llama3_frequencies,
    ntk_frequencies,
    yarn_frequencies,
)


def plain(D, theta=10000.0):
    return theta ** (-np.arange(0, D, 2) / D)


def test_rope_takes_the_frequencies_instead_of_theta(anywhere):
    x, t = np.random.default_rng(0).normal(size=(2, 3, 5, 8)), np.array([0, 1, 7, 100, 3])
    want = refattn.rope(x, t, theta=500.0, rotary_dim=6, backend=anywhere)
    got = refattn.rope(x, t, frequencies=plain(6, 500.0), rotary_dim=6, backend=anywhere)
    np.testing.assert_array_equal(got, want)
    back = refattn.rope_vjp(got, t, frequencies=plain(6, 500.0), rotary_dim=6, backend=anywhere)
    np.testing.assert_allclose(back, x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_derivative_with_frequencies_is_the_transpose(interleaved, anywhere):
    rng, t = np.random.default_rng(3), np.array([[0, 4, 9], [-3, 70, 2]])
    x, dy = rng.normal(size=(2, 2, 2, 3, 8))
    options = {"frequencies": rng.normal(size=3), "rotary_dim": 6, "interleaved": interleaved, "backend": anywhere}
    left, right = (dy * refattn.rope(x, t, **options)).sum(), (refattn.rope_vjp(dy, t, **options) * x).sum()
    assert math.isclose(left, right, rel_tol=1e-12)  # rope is linear in x


def test_frequencies_are_radians_per_position(anywhere):
    f = np.array([math.pi / 2, 0.0])
    y = refattn.rope(np.array([[1.0, 5.0, 0.0, 6.0]] * 3), np.array([1, 2, 3]), frequencies=f, backend=anywhere)
    np.testing.assert_allclose(y, [[0, 5, 1, 6], [-1, 5, 0, 6], [0, 5, -1, 6]], atol=1e-15)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"theta": 10000.0}, ValueError, "both theta and frequencies are given"),
        ({"frequencies": plain(8).astype(np.float32)}, TypeError, "frequencies has dtype float32; wanted float64"),
        ({"frequencies": [1.0] * 4}, TypeError, "frequencies must be an array, got list"),
        ({"frequencies": plain(6)}, ValueError, r"frequencies has shape \(3,\); wanted \(4,\)"),
        ({"frequencies": plain(8)[None]}, ValueError, r"frequencies has shape \(1, 4\)"),
        ({"rotary_dim": 6}, ValueError, r"frequencies has shape \(4,\); wanted \(3,\)"),
        ({"frequencies": plain(8) * np.nan}, ValueError, "frequencies holds NaN or inf"),
    ],
)
@pytest.mark.parametrize("operation", ["rope", "rope_vjp"])
def test_what_rope_refuses(operation, options, error, says, anywhere):
    options = {"frequencies": plain(8)} | options
    with pytest.raises(error, match=f"{operation}: .*{says}"):
        getattr(refattn, operation)(np.zeros((5, 8)), np.arange(5), **options, backend=anywhere)


def test_linear_is_the_rotation_of_positions_between_the_old_ones():
    x, f = np.random.default_rng(1).normal(size=(9, 8)), linear_frequencies(8, factor=4.0)
    new = refattn.rope(x, 4 * np.arange(9), frequencies=f.frequencies)
    np.testing.assert_allclose(new, refattn.rope(x, np.arange(9)), rtol=1e-12, atol=1e-14)
    assert f.attention_factor == 1.0


@pytest.mark.parametrize("D", [4, 6, 128])
def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest(D):
    f = ntk_frequencies(D, theta=1e4, factor=8.0).frequencies
    assert f[0] == 1.0
    np.testing.assert_allclose(f[-1], plain(D)[-1] / 8, rtol=1e-12)
    assert (np.diff(f / plain(D)) < 0).all()


def test_dynamic_ntk_begins_beyond_the_training():
    options = {"factor": 2.0, "original_max_position": 100}
    for length in (0, 1, 100):
        np.testing.assert_array_equal(dynamic_ntk_frequencies(16, length=length, **options).frequencies, plain(16))
    grown = dynamic_ntk_frequencies(16, length=300, **options).frequencies
    np.testing.assert_array_equal(grown, ntk_frequencies(16, factor=2 * 3 - 1).frequencies)


def test_yarn_keeps_what_turns_often_and_divides_what_hardly_turns():
    L, f, old = 4096, yarn_frequencies(128, factor=8.0, original_max_position=4096).frequencies, plain(128)
    turns = L * old / (2 * math.pi)
    stays, divided = turns > 32 * 1.2, turns < 1 / 1.2  # the borders are rounded to whole pairs
    assert stays.sum() > 10 and divided.sum() > 10
    np.testing.assert_allclose(f[stays], old[stays], rtol=1e-12)
    np.testing.assert_allclose(f[divided], old[divided] / 8, rtol=1e-12)
    assert ((old / 8 <= f * (1 + 1e-12)) & (f <= old * (1 + 1e-12))).all() and (np.diff(f) < 0).all()


def test_yarn_without_truncation_has_its_borders_at_the_betas():
    D, L, theta = 64, 2048, 1e4
    sharp = yarn_frequencies(D, factor=4.0, original_max_position=L, truncate=False).frequencies
    first, last = (D * math.log(L / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in (32, 1))
    mixed = np.flatnonzero((sharp < plain(D) * (1 - 1e-9)) & (sharp > plain(D) / 4 * (1 + 1e-9)))
    assert mixed[0] == math.floor(first) + 1 and mixed[-1] == math.ceil(last) - 1
    half = (mixed - first) / (last - first)
    np.testing.assert_allclose(sharp[mixed], plain(D)[mixed] * (1 - half + half / 4), rtol=1e-12)


def test_yarn_rounds_its_borders_outwards():
    D, L, theta = 64, 2048, 1e4
    first, last = (D * math.log(L / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in (32, 1))
    assert first % 1 > 0.01 and last % 1 < 0.99
    ramp = np.clip((np.arange(32) - math.floor(first)) / (math.ceil(last) - math.floor(first)), 0, 1)
    f = yarn_frequencies(D, factor=4.0, original_max_position=L).frequencies
    np.testing.assert_allclose(f, plain(D) * (1 - ramp + ramp / 4), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"factor": math.e}, 1.1),
        ({"factor": 0.5}, 1.0),
        ({"factor": math.e, "mscale": 2.0}, 1.2),
        ({"factor": math.e, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_yarn_attention_factor(options, want):
    f = yarn_frequencies(8, original_max_position=4096, **options)
    assert math.isclose(f.attention_factor, want, rel_tol=1e-12)


def test_the_attention_factor_is_a_scale():
    rng, t = np.random.default_rng(2), np.arange(6)
    q, k, v = rng.normal(size=(3, 6, 8))
    f, m = yarn_frequencies(8, factor=16.0, original_max_position=64)
    a = refattn.attention(*(refattn.rope(m * x, t, frequencies=f) for x in (q, k)), v)
    b = refattn.attention(*(refattn.rope(x, t, frequencies=f) for x in (q, k)), v, scale=m**2 / math.sqrt(8))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_llama3_mixes_between_its_two_wavelengths():
    old, L = plain(128, 500000.0), 8192
    f = llama3_frequencies(128, factor=8.0, original_max_position=L).frequencies
    turns = L * old / (2 * math.pi)
    np.testing.assert_allclose(f[turns > 4], old[turns > 4], rtol=1e-12)
    np.testing.assert_allclose(f[turns < 1], old[turns < 1] / 8, rtol=1e-12)
    between = (turns > 1) & (turns < 4)
    share = (turns[between] - 1) / 3
    assert between.sum() > 3
    np.testing.assert_allclose(f[between], old[between] * (share + (1 - share) / 8), rtol=1e-12)


SCALINGS = {
    "linear": lambda D, theta, s: linear_frequencies(D, theta=theta, factor=s),
    "ntk": lambda D, theta, s: ntk_frequencies(D, theta=theta, factor=s),
    "dynamic": lambda D, theta, s: dynamic_ntk_frequencies(
        D, theta=theta, factor=s, original_max_position=64, length=300
    ),
    "yarn": lambda D, theta, s: yarn_frequencies(D, theta=theta, factor=s, original_max_position=1024),
    "llama3": lambda D, theta, s: llama3_frequencies(D, theta=theta, factor=s, original_max_position=1024),
}


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.sampled_from(sorted(SCALINGS)), st.integers(2, 64), st.floats(100, 1e6), st.floats(1, 64))
def test_no_pair_becomes_faster_and_the_order_stays(name, half, theta, s):
    f, m = SCALINGS[name](2 * half, theta, s)
    old = plain(2 * half, theta)
    assert f.dtype == np.float64 and f.shape == (half,) and isinstance(m, float) and m >= 1
    assert (f > 0).all() and (f <= old * (1 + 1e-9)).all() and (np.diff(f) < 0).all()


@pytest.mark.parametrize("name", sorted(SCALINGS))
def test_a_factor_of_one_changes_nothing(name):
    if name == "dynamic":
        f = dynamic_ntk_frequencies(16, factor=1.0, original_max_position=64, length=64)
    else:
        f = SCALINGS[name](16, 10000.0, 1.0)
    np.testing.assert_allclose(f.frequencies, plain(16), rtol=1e-12)
    assert f.attention_factor == 1.0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: linear_frequencies(7, factor=2.0), ValueError, "linear_frequencies: rotary_dim is 7; wanted an even"),
        (lambda: linear_frequencies(8.0, factor=2.0), TypeError, "linear_frequencies: rotary_dim must be an integer"),
        (lambda: linear_frequencies(8, factor=0.0), ValueError, "factor is 0.0; wanted a finite number above 0"),
        (lambda: linear_frequencies(8, factor=2.0, theta=-1.0), ValueError, "theta is -1.0"),
        (lambda: ntk_frequencies(2, factor=2.0), ValueError, "ntk_frequencies: rotary_dim is 2; wanted at least 4"),
        (lambda: ntk_frequencies(8, factor="2"), TypeError, "ntk_frequencies: factor must be a number"),
        (
            lambda: dynamic_ntk_frequencies(8, factor=2.0, original_max_position=0, length=3),
            ValueError,
            "dynamic_ntk_frequencies: original_max_position is 0",
        ),
        (
            lambda: dynamic_ntk_frequencies(8, factor=2.0, original_max_position=4, length=-1),
            ValueError,
            "dynamic_ntk_frequencies: length is -1",
        ),
        (
            lambda: yarn_frequencies(8, factor=2.0, original_max_position=64, beta_fast=1.0),
            ValueError,
            "yarn_frequencies: beta_fast is 1.0; wanted it above beta_slow = 1.0",
        ),
        (
            lambda: yarn_frequencies(8, factor=2.0, original_max_position=6),
            ValueError,
            "yarn_frequencies: no pair turns 1.0 times in 6 positions",
        ),
        (lambda: yarn_frequencies(8, factor=2.0, original_max_position=64, theta=1.0), ValueError, "theta is 1.0"),
        (
            lambda: llama3_frequencies(8, factor=2.0, original_max_position=64, high_freq_factor=1.0),
            ValueError,
            "llama3_frequencies: high_freq_factor is 1.0; wanted a finite number above 1",
        ),
        (lambda: llama3_frequencies(8, factor=2.0, original_max_position=64.0), TypeError, "must be an integer"),
    ],
)
def test_what_the_scalings_refuse(make, error, says):
    with pytest.raises(error, match=says):
        make()


PARAMETERS = {  # what stands in a configuration -> the call here
    "linear": ({"factor": 4.0}, lambda D, theta: linear_frequencies(D, theta=theta, factor=4.0)),
    "dynamic": (
        {"factor": 2.0},
        lambda D, theta: dynamic_ntk_frequencies(D, theta=theta, factor=2.0, original_max_position=2048, length=5000),
    ),
    "yarn": (
        {"factor": 8.0, "original_max_position_embeddings": 512},
        lambda D, theta: yarn_frequencies(D, theta=theta, factor=8.0, original_max_position=512),
    ),
    "yarn untruncated": (
        {"factor": 8.0, "original_max_position_embeddings": 512, "truncate": False, "beta_fast": 20, "beta_slow": 2},
        lambda D, theta: yarn_frequencies(
            D, theta=theta, factor=8.0, original_max_position=512, beta_fast=20, beta_slow=2, truncate=False
        ),
    ),
    "yarn of DeepSeek": (
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 0.5},
        lambda D, theta: yarn_frequencies(
            D, theta=theta, factor=40.0, original_max_position=4096, mscale=0.707, mscale_all_dim=0.5
        ),
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        lambda D, theta: llama3_frequencies(D, theta=theta, factor=8.0, original_max_position=8192),
    ),
}


@pytest.mark.peers
@pytest.mark.parametrize(("D", "theta"), [(64, 10000.0), (128, 500000.0)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers(name, D, theta):
    pytest.importorskip("torch", reason="torch is not installed")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is not installed")
    from transformers import LlamaConfig

    parameters, call = PARAMETERS[name]
    kind = name.split()[0]
    config = LlamaConfig(
        hidden_size=4 * D,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": kind, "rope_theta": theta} | parameters,
    )
    theirs, factor = rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=5000)
    ours = call(D, theta)
    np.testing.assert_allclose(ours.frequencies, theirs.numpy(), rtol=1e-6, atol=0)
    assert math.isclose(ours.attention_factor, factor, rel_tol=1e-6)
