"""The tape, and the derivative of every small function that mixers are made of."""

import inspect

import numpy as np
import pytest

import refattn
from refattn.models import elementwise, layers, norms
from refattn.models.tape import Tape

STEP = 1e-6
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


ARGUMENTS = {  # function -> arguments
    "add": (normal(2, 3, 4), normal(4)),
    "multiply": (normal(2, 3, 4), normal(3, 1)),
    "sigmoid": (normal(3, 4),),
    "silu": (normal(3, 4),),
    "softplus": (normal(3, 4),),
    "log_sigmoid": (normal(3, 4),),
    "exp": (normal(3, 4),),
    "tanh": (normal(3, 4),),
    "unit": (normal(3, 4),),
    "part": (normal(3, 4), 1, 3),
    "swap": (normal(2, 3, 4),),
    "shift": (normal(2, 3, 4), normal(2, 4)),
    "layer_norm": (normal(2, 3, 4), normal(4), normal(4)),
    "group_norm": (normal(2, 3, 6), normal(6), normal(6), 2),
    "lerp": (normal(2, 3, 4), normal(2, 3, 4), normal(4)),
    "row_sum": (normal(3, 4),),
    "relu_squared": (normal(3, 4),),
    "minus_exp": (normal(3, 4),),
    "scaled": (normal(3, 4), -2.5),
    "linear": (normal(2, 3, 4), normal(4, 5)),
    "rms_norm": (normal(2, 3, 4), normal(4)),
    "swiglu": (normal(3, 4), normal(3, 4)),
    "split_heads": (normal(2, 3, 4), 2),
    "merge_heads": (normal(2, 2, 3, 4),),
}
FUNCTIONS = {name: f for module in (layers, norms, elementwise) for name, f in vars(module).items()}


def test_every_function_with_a_derivative_is_tried():
    own = {
        name.removesuffix("_vjp")
        for module in (elementwise, norms)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and name.endswith("_vjp")
    }
    assert own <= ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_derivative_is_that_of_differences(name):
    f, arguments = FUNCTIONS[name], ARGUMENTS[name]
    tape = Tape()
    y = tape(f, *arguments)
    dy = RNG.normal(size=y.shape)
    gradient = tape.gradients(y, dy)
    before = [np.copy(x) for x in arguments]
    for n, x in enumerate(arguments):
        if not isinstance(x, np.ndarray):
            continue
        dx = RNG.normal(size=x.shape)
        ends = [f(*(a + s * STEP * dx if m == n else a for m, a in enumerate(arguments))) for s in (1, -1)]
        left, right = (dy * (ends[0] - ends[1])).sum() / (2 * STEP), (gradient(x) * dx).sum()
        assert abs(left - right) < 1e-7 * (1 + abs(right)), n
        assert gradient(x).shape == x.shape
    assert all(np.array_equal(x, y) for x, y in zip(arguments, before, strict=True))


def test_what_is_used_twice_adds_up():
    tape, x = Tape(), np.array([3.0])
    y = tape(elementwise.multiply, x, x)
    assert tape.gradients(y, np.ones(1))(x) == [6.0]


def test_what_does_not_matter_has_the_gradient_zero():
    tape, x, other = Tape(), np.array([3.0]), np.array([5.0])
    y = tape(elementwise.exp, x)
    tape(elementwise.exp, other)
    gradient = tape.gradients(y, np.ones(1))
    assert gradient(other) == [0.0] and gradient(np.zeros((2, 2))).shape == (2, 2)


def test_operations_with_a_state_in_any_form():
    q, k, v = normal(3, 2, 5, 4)
    g = -RNG.exponential(size=(2, 5))
    want = refattn.simple_gla_vjp(np.ones((2, 5, 4)), q, k, v, g)
    for form in (refattn.simple_gla, refattn.simple_gla_recurrent, refattn.simple_gla_chunked):
        tape = Tape()
        o, _ = tape(form, q, k, v, log_decay=g)
        gradient = tape.gradients(o, np.ones_like(o))
        np.testing.assert_array_equal(gradient(g), want.dlog_decay)
        np.testing.assert_array_equal(gradient(k), want.dk)


def test_a_function_without_a_derivative_is_named():
    tape, x = Tape(), np.ones(2)

    def cube(x):
        return x**3

    y = tape(cube, x)
    with pytest.raises(LookupError, match="Tape: cube has no derivative cube_vjp"):
        tape.gradients(y, x)
