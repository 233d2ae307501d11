"""First parameters that every mixer draws alike."""

import math

import numpy as np

from refattn.arrays import Array


def draw_matrix(rng: np.random.Generator, n: int, m: int) -> Array:
    """Return a matrix (n, m) that keeps the size of what it multiplies: normal, of variance 1 / n."""
    return rng.normal(0, n**-0.5, (n, m))


def draw_step_biases(rng: np.random.Generator, n: int) -> Array:
    """Return biases (n,) that softplus turns into steps between 0.001 and 0.1, evenly in their logarithm."""
    steps = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), n))
    return np.asarray(steps + np.log(-np.expm1(-steps)))  # the inverse of softplus
