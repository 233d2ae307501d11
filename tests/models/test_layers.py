import numpy as np
import pytest

from refattn.models import layers

rng = np.random.default_rng(0)
TOKENS = np.array([[2, 0, 2], [1, 3, 2]])


def normal(*shape):
    return rng.normal(size=shape)


# name -> (function, vjp, inputs): the vjp takes (dy, *inputs) and returns one gradient per input
CASES = {
    "linear": (layers.linear, layers.linear_vjp, (normal(2, 3, 4), normal(4, 5))),
    "linear, one row": (layers.linear, layers.linear_vjp, (normal(4), normal(4, 5))),
    "rms_norm": (layers.rms_norm, layers.rms_norm_vjp, (normal(2, 3, 4), normal(4))),
    "rms_norm, near zero": (layers.rms_norm, layers.rms_norm_vjp, (1e-3 * normal(3, 4), normal(4))),
    "swiglu": (layers.swiglu, layers.swiglu_vjp, (3 * normal(2, 3, 4), normal(2, 3, 4))),
    "embedding": (
        lambda table: layers.embedding(TOKENS, table),
        lambda dy, table: layers.embedding_vjp(dy, TOKENS, table),
        (normal(4, 5),),
    ),
    "cross_entropy": (
        lambda logits: layers.cross_entropy(logits, TOKENS),
        lambda dy, logits: layers.cross_entropy_vjp(dy, logits, TOKENS),
        (3 * normal(2, 3, 4),),
    ),
}


def pulled(case):
    function, vjp, inputs = CASES[case]
    dy = rng.normal(size=np.shape(function(*inputs)))
    gradients = vjp(dy if dy.shape else float(dy), *inputs)
    return function, inputs, dy, gradients if isinstance(gradients, tuple) else (gradients,)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_central_differences(case):
    function, inputs, dy, gradients = pulled(case)
    assert len(gradients) == len(inputs)
    for n, (x, dx) in enumerate(zip(inputs, gradients, strict=True)):
        assert dx.shape == x.shape and dx.dtype == x.dtype
        expected = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[place] = 1e-6
            up, down = (np.sum(dy * function(*inputs[:n], x + s, *inputs[n + 1 :])) for s in (step, -step))
            expected[place] = (up - down) / 2e-6
        np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-8 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("case", CASES)
def test_dot_products_agree(case):
    """<dy, J dx> = <J^T dy, dx> for a random direction in all inputs at once."""
    function, inputs, dy, gradients = pulled(case)
    directions = [rng.normal(size=x.shape) * np.abs(x).mean() for x in inputs]
    up, down = (function(*(x + s * d for x, d in zip(inputs, directions, strict=True))) for s in (1e-5, -1e-5))
    forwards = np.sum(dy * (up - down)) / 2e-5
    backwards = sum(np.vdot(g, d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(forwards, backwards, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32_and_inputs_stay_as_they_are(case):
    function, vjp, inputs = CASES[case]
    inputs = tuple(x.astype(np.float32) for x in inputs)
    before = [x.copy() for x in inputs]
    for x in inputs:
        x.flags.writeable = False
    y = function(*inputs)
    dy = np.ones_like(y) if np.ndim(y) else 1.0
    gradients = vjp(dy, *inputs)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert np.ndim(y) == 0 or y.dtype == np.float32
    assert [g.dtype for g in gradients] == [np.float32] * len(inputs)
    assert all(np.array_equal(x, old) for x, old in zip(inputs, before, strict=True))


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient():
    zeros = np.zeros((2, 4))
    dx, dgain = layers.rms_norm_vjp(np.ones((2, 4)), zeros, np.ones(4))
    assert not layers.rms_norm(zeros, np.ones(4)).any()
    assert np.isfinite(dx).all() and not dgain.any()


def test_swiglu_saturates_without_overflow():
    gate = np.array([-1e4, 1e4], np.float32)
    assert layers.swiglu(gate, np.ones(2, np.float32)).tolist() == [0, 1e4]
    dgate, dup = layers.swiglu_vjp(np.ones(2, np.float32), gate, np.ones(2, np.float32))
    assert dgate.tolist() == [0, 1] and dup.tolist() == [0, 1e4]


def test_cross_entropy_does_not_mind_large_logits():
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    assert layers.cross_entropy(logits, np.array([0, 0])) == 500
    assert layers.cross_entropy_vjp(1.0, logits, np.array([0, 0])).tolist() == [[0, 0], [-0.5, 0.5]]


def test_heads_split_and_merge():
    x = normal(2, 3, 8)
    heads = layers.split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert np.array_equal(heads[:, 1], x[..., 2:4])
    assert np.array_equal(layers.merge_heads(heads), x)
