"""Two layers of a sparse pattern let every token reach every later one, at the square root of the price."""

import numpy as np

import refattn
from refattn import masks

T, size = 256, 16  # the square root of T
q = np.zeros((T, 1))  # equal scores: each layer takes the mean of what it sees


def strided(v):
    return refattn.strided_attention(q, q, v, local=size, stride=size)


def fixed(v):
    return refattn.fixed_attention(q, q, v, block=size, summary=1)


signals = np.eye(T)  # column j is 1 at token j and 0 elsewhere
every_pair = masks.causal().pairs(T, T)
for name, attend, mask in (
    ("strided", strided, masks.strided(size, size)),
    ("fixed", fixed, masks.fixed(size, 1)),
):
    once = attend(signals)
    twice = attend(once)
    pairs = mask.pairs(T, T)
    print(
        f"{name:<8} {pairs:>6} of {every_pair} pairs a layer; of them reached after one layer: "
        f"{np.count_nonzero(once) / every_pair:.1%}, after two: {np.count_nonzero(twice) / every_pair:.1%}"
    )
    assert np.count_nonzero(once) == pairs < every_pair / 4
    assert np.array_equal(twice > 0, masks.causal().dense(T, T))
