import numpy as np
import pytest

from refattn.watch import functions

SHAPES = {
    "gelu": [(2, 3)],
    "rotate": [(2, 3, 4)],
    "join": [(2, 3, 4), (1, 3, 2)],
    "head_linear": [(5, 2, 3, 4), (2, 4, 6)],
}
MORE = {"rotate": (np.array([3, 5, 8]), 100.0)}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_derivatives_are_those_of_differences(name):
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(shape) for shape in SHAPES[name]]
    f, vjp, more = getattr(functions, name), getattr(functions, f"{name}_vjp"), MORE.get(name, ())
    dy = rng.standard_normal(f(*arrays, *more).shape)
    pulled = vjp(dy, *arrays, *more)
    pulled = pulled if isinstance(pulled, tuple) else (pulled,)
    for n, (x, dx) in enumerate(zip(arrays, pulled, strict=True)):
        assert dx.shape == x.shape
        step = 1e-6 * rng.standard_normal(x.shape)
        ends = [f(*arrays[:n], x + sign * step, *arrays[n + 1 :], *more) for sign in (1, -1)]
        assert np.vdot(dx, 2 * step) == pytest.approx(np.vdot(dy, ends[0] - ends[1]), rel=1e-6)
