"""What ONNX's preview of FlexAttention does that `refattn.attention` does not."""

import numpy as np
import pytest

import refattn
from refattn.dialects.onnx import FlexAttention

RNG = np.random.default_rng(0)


def arrays(dtype=np.float64):
    return tuple(RNG.standard_normal(shape).astype(dtype) for shape in ((2, 4, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6)))


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-13, rtol=1e-12)


def test_without_subgraphs_it_is_ours(anywhere):
    Q, K, V = arrays()
    close(FlexAttention(Q, K, V, backend=anywhere), refattn.attention(Q, K, V))
    close(FlexAttention(Q, K, V, scale=0.3, backend=anywhere), refattn.attention(Q, K, V, scale=0.3))


def test_score_mod_comes_between_scale_and_softmax(anywhere):
    Q, K, V = arrays()
    bias = RNG.standard_normal((3, 5))
    got = FlexAttention(Q, K, V, score_mod=lambda s: 2 * np.tanh(s / 2) + bias, backend=anywhere)
    close(got, refattn.attention(Q, K, V, softcap=2.0, bias=bias))


def test_prob_mod_comes_after_the_softmax(anywhere):
    Q, K, V = arrays()
    keep = RNG.random((2, 4, 3, 5)) < 0.7
    got = FlexAttention(Q, K, V, prob_mod=lambda p: np.where(keep, p / 0.7, 0), backend=anywhere)
    close(got, refattn.attention(Q, K, V, dropout_mask=keep, dropout_p=0.3))


@pytest.mark.parametrize("prob_mod", [None, lambda p: 1 * p])
def test_a_query_that_sees_nothing_gets_nan(anywhere, prob_mod):
    Q, K, V = arrays()
    hide = np.zeros((3, 5), bool)
    hide[1], hide[2, 3:] = True, True
    Y = FlexAttention(
        Q, K, V, score_mod=lambda s: np.where(hide, -np.inf, s), prob_mod=prob_mod, backend=anywhere
    )  # as a mask, but for the row of nothing
    assert np.isnan(Y[:, :, 1]).all()
    close(Y[:, :, [0, 2]], refattn.attention(Q, K, V, mask=~hide)[:, :, [0, 2]])


def test_nan_in_a_hidden_value_spreads():
    Q, K, V = arrays()
    V[:, :, 4, 0] = np.nan
    Y = FlexAttention(Q, K, V, score_mod=lambda s: np.where(np.arange(5) < 4, s, -np.inf))
    assert np.isnan(Y[..., 0]).all() and np.isfinite(Y[..., 1:]).all()


def test_subgraphs_get_float32_or_float64():
    seen = []

    def note(x):
        seen.append(x.dtype)
        return x

    for dtype, precision in ((np.float16, None), (np.float32, None), (np.float32, 11), (np.float64, None)):
        Y = FlexAttention(*arrays(dtype), score_mod=note, prob_mod=note, softmax_precision=precision)
        assert Y.dtype == dtype
    assert seen == [np.float32] * 4 + [np.float64] * 4


def test_a_negative_scale_has_no_root():
    assert np.isnan(FlexAttention(*arrays(), scale=-1.0)).all()


def refused():
    Q, K, V = arrays()
    yield "Q has shape", (Q[0], K[0], V[0]), {}
    yield "Q has 5 axes", (Q[None], K[None], V[None]), {}
    yield "4 query heads cannot share 3 key heads", (Q, *[np.zeros((2, 3, 5, 4))] * 2), {}
    yield "softmax_precision is 7", (Q, K, V), {"softmax_precision": 7}
    yield "score_mod returned float64 ", (Q, K, V), {"score_mod": lambda s: s[..., :4]}
    yield "prob_mod returned float32 ", (Q, K, V), {"prob_mod": lambda p: p.astype(np.float32)}
    yield "prob_mod returned float", (Q, K, V), {"prob_mod": lambda p: 1.0}


@pytest.mark.parametrize(("reason", "arguments", "options"), list(refused()), ids=[case[0] for case in refused()])
def test_what_is_refused(reason, arguments, options):
    with pytest.raises((TypeError, ValueError), match=rf"^FlexAttention: .*{reason}"):
        FlexAttention(*arguments, **options)
