"""The checker of derivatives: it accepts right ones, finds wrong ones, and says clearly what it cannot check."""

import math
import warnings

import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing.gradcheck import gradcheck


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def softmax_matmul(a, b):
    e = np.exp(a - a.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p @ b, np.log(e.sum(-1))


def softmax_matmul_vjp(do, dl, a, b):
    e = np.exp(a - a.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    dp = do @ b.T
    # np.log(e.sum) is lse - max: the largest entry has one derivative more
    top = np.zeros_like(a)
    top[np.arange(len(a)), a.argmax(-1)] = 1
    return p * (dp - (p * dp).sum(-1, keepdims=True)) + dl[:, None] * (p - top), p.T @ do


A, B = normal(5, 4), normal(4, 3, seed=1)


def test_right_gradients_pass_by_complex_steps():
    check = gradcheck(softmax_matmul, (A, B), softmax_matmul_vjp)
    assert check and check.ok and check.method == "complex"
    assert len(check.errors) == 2 and max(*check.errors, check.joint) < 1e-13
    assert str(check).startswith("the gradients agree with complex steps: the largest error is")


def test_right_gradients_pass_by_differences():
    check = gradcheck(softmax_matmul, (A, B), softmax_matmul_vjp, method="differences")
    assert check.ok and check.method == "differences"
    assert max(*check.errors, check.joint) < 1e-9


@pytest.mark.parametrize("method", ["complex", "differences"])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 2.0, 1 + 1e-4])
def test_a_wrong_gradient_is_found_and_named(method, factor):
    def wrong(do, dl, a, b):
        da, db = softmax_matmul_vjp(do, dl, a, b)
        return da, factor * db

    check = gradcheck(softmax_matmul, [A, B], wrong, method=method)
    assert not check and not check.ok
    assert check.errors[0] < 1e-6 < check.errors[1] and check.joint > 1e-6
    assert check.message.startswith("input 1: <do, J dx> is") and "all inputs together:" in check.message
    assert "input 0" not in check.message


def test_one_wrong_number_among_many_is_found():
    x = normal(100, 100)

    def wrong(do, x):
        g = do * np.cos(x)
        g[17, 3] *= 1.01
        return g

    assert gradcheck(np.sin, [x], lambda do, x: do * np.cos(x))
    assert not gradcheck(np.sin, [x], wrong)


def test_a_missing_term_of_one_result_is_found():
    def wrong(do, dl, a, b):
        return softmax_matmul_vjp(do, 0 * dl, a, b)

    assert not gradcheck(softmax_matmul, (A, B), wrong)


def test_swapped_gradients_of_equal_shape_are_found():
    def product(a, b):
        return a * b * b

    x, y = normal(3), normal(3, seed=1)
    assert gradcheck(product, (x, y), lambda do, a, b: (do * b * b, do * 2 * a * b))
    assert not gradcheck(product, (x, y), lambda do, a, b: (do * 2 * a * b, do * b * b))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("method", ["complex", "differences"])
def test_the_scale_of_the_inputs_does_not_matter(scale, method):
    x = scale * np.abs(normal(20)) + scale
    assert gradcheck(np.log, [x], lambda do, x: do / x, method=method)
    assert not gradcheck(np.log, [x], lambda do, x: 1.001 * do / x, method=method)


def test_steep_functions_get_smaller_steps():
    x = normal(5)
    check = gradcheck(lambda x: np.sin(300 * x), [x], lambda do, x: 300 * do * np.cos(300 * x), method="differences")
    assert check, check.message


def test_wide_steps_may_leave_the_domain():
    x = np.array([1e-3, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradcheck(np.sqrt, [x], lambda do, x: do / (2 * np.sqrt(x)), method="differences")


def test_an_input_without_influence_has_no_gradient():
    def first(a, b):
        return 3 * a

    assert gradcheck(first, (A, B), lambda do, a, b: (3 * do, 0 * b))
    assert gradcheck(first, (A, B), lambda do, a, b: (3 * do, 0 * b), method="differences")
    assert not gradcheck(first, (A, B), lambda do, a, b: (3 * do, 1e-3 + 0 * b))


@pytest.mark.parametrize(
    ("f", "vjp", "why"),
    [
        (lambda x: x * np.abs(x), lambda do, x: 2 * do * np.abs(x), "f is not analytic"),
        (np.abs, lambda do, x: do * np.sign(x), "result 0 of f is float64"),
        (lambda x: x.astype(np.float64) ** 2, lambda do, x: 2 * do * x, "Casting complex values to real"),
        (lambda x: np.heaviside(x, 0) * x, lambda do, x: do * (x > 0), "heaviside"),
    ],
)
def test_auto_falls_back_to_differences_and_says_why(f, vjp, why):
    check = gradcheck(f, [A], vjp)
    assert check.ok and check.method == "differences"
    assert "no complex steps: " in check.message and why in check.message


def test_complex_steps_on_demand_refuse_what_is_real():
    with pytest.raises(TypeError, match="method is 'complex', and f does not take complex input: result 0 of f"):
        gradcheck(np.abs, [A], method="complex")


def test_without_vjp_the_derivative_must_exist():
    check = gradcheck(softmax_matmul, [A, B])
    assert check.ok and check.message.startswith("f has a derivative by complex steps")
    assert gradcheck(lambda a, b: np.abs(a) + b, [A, A + 1]).method == "differences"
    noisy = np.random.default_rng(3)
    check = gradcheck(lambda x: x + 1e-3 * noisy.normal(size=x.shape), [A])
    assert not check.ok and "does not settle" in check.message


def test_directions_that_do_not_add_up_are_no_derivative():
    check = gradcheck(lambda a, b: np.cbrt(a * a * b), [np.zeros(4), np.zeros(4)])
    assert not check.ok and check.errors == (0.0, 0.0) and check.message.startswith("all inputs together:")
    assert gradcheck(lambda a, b: np.maximum(a, b) - np.minimum(a, b), [A, A + 1])  # no kink where it is


def test_numbers_and_lists_of_results():
    assert gradcheck(lambda x: float(np.sum(x.real**2)), [A], lambda do, x: 2 * do * x)
    assert gradcheck(lambda x: [np.sin(x), x.sum()], [A], lambda do, ds, x: do * np.cos(x) + ds)


def test_narrow_inputs_are_taken_as_float64_and_nothing_is_written():
    x = A.astype(np.float32)
    x.flags.writeable = False
    seen = []

    def f(a):
        seen.append(a.dtype)
        a += 1  # its own copy
        return a * a

    assert gradcheck(f, [x], lambda do, a: 2 * do * (a + 1))
    assert set(map(str, seen)) <= {"float64", "complex128"}


def test_empty_inputs_are_right():
    assert gradcheck(lambda a, b: a @ b, (np.zeros((0, 4)), B), lambda do, a, b: (do @ b.T, a.T @ do))


def test_the_seed_decides():
    first, second, other = (gradcheck(np.sin, [A], lambda do, x: 2 * do, seed=seed) for seed in (0, 0, 1))
    assert first == second != other


def one(do, x):
    return do


@pytest.mark.parametrize(
    ("f", "inputs", "vjp", "options", "kind", "message"),
    [
        (np.sin, A, one, {}, TypeError, "inputs must be a list or a tuple of arrays, got ndarray"),
        (np.sin, [], one, {}, ValueError, "inputs is empty"),
        (np.sin, [np.arange(3)], one, {}, TypeError, "input 0 has dtype int64; wanted real floats"),
        (np.sin, [A + 0j], one, {}, TypeError, "input 0 has dtype complex128"),
        (np.sin, [np.array([1.0, np.nan])], one, {}, ValueError, r"input 0 is nan at \(1,\)"),
        (np.sin, [A], one, {"method": "magic"}, ValueError, "method is 'magic'; wanted one of auto, complex"),
        (np.sin, [A], one, {"rtol": 0}, ValueError, "rtol is 0"),
        (lambda x: x.astype("f4"), [A], one, {}, TypeError, "result 0 of f is float32 for float64 inputs"),
        (lambda x: (), [A], one, {}, ValueError, "f returned an empty tuple"),
        (lambda x: None, [A], one, {}, TypeError, "result 0 of f is object"),
        (lambda x: x * np.nan, [A], one, {}, ValueError, r"result 0 of f is nan at \(0, 0\)"),
        (np.sin, [A], lambda do, x: (do, do), {}, ValueError, "vjp returned 2 gradients for 1 inputs"),
        (np.sin, [A], lambda do, x: None, {}, TypeError, "gradient 0 of vjp is NoneType"),
        (
            np.sin,
            [A],
            lambda do, x: do.T,
            {},
            ValueError,
            r"gradient 0 of vjp has shape \(4, 5\); input 0 has \(5, 4\)",
        ),
        (np.sin, [A], lambda do, x: do.astype("f4"), {}, TypeError, "gradient 0 of vjp is float32"),
        (np.sin, [A], lambda do, x: do * np.inf, {}, ValueError, "gradient 0 of vjp is -?inf at"),
        (lambda x: x[x > A[0, 0]], [A], None, {"method": "differences"}, ValueError, "f returned shapes"),
    ],
)
def test_what_cannot_be_checked_is_refused(f, inputs, vjp, options, kind, message):
    with pytest.raises(kind, match=f"gradcheck: {message}"):
        gradcheck(f, inputs, vjp, **options)


Q, K, V = normal(2, 4, 5, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 3, seed=2)


def attention(q, k, v):
    return refattn.attention(q, k, v, mask=masks.causal(), softcap=2.0, return_lse=True)


def attention_vjp(do, dlse, q, k, v):
    return refattn.attention_vjp(do, q, k, v, mask=masks.causal(), softcap=2.0, dlse=dlse)


def test_attention():
    check = gradcheck(attention, (Q, K, V), attention_vjp)
    assert check.ok and check.method == "differences"
    assert "no complex steps" in check.message and "complex" in check.message
    assert max(*check.errors, check.joint) < 1e-8


@pytest.mark.parametrize("wrong", range(3))
def test_attention_with_a_wrong_gradient(wrong):
    def vjp(do, dlse, q, k, v):
        gradients = list(attention_vjp(do, dlse, q, k, v)[:3])
        gradients[wrong] = gradients[wrong] * (1 + 1e-3)
        return gradients

    check = gradcheck(attention, (Q, K, V), vjp)
    assert [error > 1e-6 for error in check.errors] == [i == wrong for i in range(3)]


def test_gradcheck_of_all_inputs_reports_floats():
    check = gradcheck(attention, (Q, K, V), attention_vjp)
    assert all(isinstance(error, float) and math.isfinite(error) for error in (*check.errors, check.joint))
