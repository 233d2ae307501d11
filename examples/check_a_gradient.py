"""Hold a derivative against the function: central differences along a random direction, with every option in use."""

import numpy as np

import refattn
from refattn.masks import causal, window

rng = np.random.default_rng(0)
H, Hk, Tq, Tk, D = 4, 2, 70, 90, 8
shapes = {"q": (H, Tq, D), "k": (Hk, Tk, D), "v": (Hk, Tk, D), "bias": (1, Tq, Tk), "sinks": (H,)}
x = {name: rng.normal(size=shape) for name, shape in shapes.items()}  # float64
do, dlse = rng.normal(size=(H, Tq, D)), rng.normal(size=(H, Tq))
keep = rng.random((H, Tq, Tk)) < 0.8
options = {"mask": causal() & window(40, 0), "softcap": 2.0, "dropout_mask": keep, "dropout_p": 0.2}


def loss(x):
    o, lse = refattn.attention(**x, **options, return_lse=True)
    return (do * o).sum() + (dlse * lse).sum()  # L = <do, o> + <dlse, lse>


print("backend  input   along the gradient  by differences  relative error")
for backend in ("numpy", "numba"):
    gradients = refattn.attention_vjp(do, **x, **options, dlse=dlse, backend=backend)
    for name, gradient in zip(shapes, gradients, strict=True):  # dq, dk, dv, dbias, dsinks
        u = rng.normal(size=shapes[name])
        h = 1e-5
        difference = (loss(x | {name: x[name] + h * u}) - loss(x | {name: x[name] - h * u})) / (2 * h)
        along = (gradient * u).sum()  # <dx, u>
        error = abs(along - difference) / np.linalg.norm(gradient)
        print(f"{backend:<8} {name:<7} {along:>18.10f} {difference:>15.10f} {error:>15.1e}")
        assert error < 1e-7
