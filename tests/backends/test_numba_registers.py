"""The kernels on other machines' vector registers: narrower ones, and half as many."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import llvmlite.binding
import numba
import numpy as np
import refattn
from refattn import masks
real = llvmlite.binding.get_host_cpu_features
class Features(dict):
    def flatten(self):  # what Numba itself compiles for stays the truth
        return real().flatten()
llvmlite.binding.get_host_cpu_features = lambda: Features({features})
from refattn_numba.vectors import REGISTERS, VECTOR_BYTES
assert (VECTOR_BYTES, REGISTERS) == {want}
for dtype in (np.float32, np.float64):
    rng = np.random.default_rng(0)
    q, k, v, do = (rng.standard_normal((h, 150, 20)).astype(dtype) for h in (4, 2, 2, 4))
    exact = [x.astype(float) for x in (q, k, v)]
    for mask in (None, masks.causal() & masks.window(70, 0)):
        o = refattn.attention(q, k, v, mask=mask, backend="numba")
        assert np.abs(o - refattn.attention(*exact, mask=mask)).max() < 30 * np.finfo(dtype).eps
        grads = refattn.attention_vjp(do, q, k, v, mask=mask, backend="numba")
        for got, right in zip(grads[:3], refattn.attention_vjp(do.astype(float), *exact, mask=mask)[:3]):
            assert np.abs(got - right).max() < 100 * np.finfo(dtype).eps
for dtype, bound in ((np.float64, 1e-14), (np.float32, 4e-6), (np.float16, 2e-3)):
    q, k, v = (rng.standard_normal((h, T, 20)).astype(dtype) for h, T in ((14, 3), (2, 600), (2, 600)))
    o = refattn.attention(q, k, v, mask=masks.causal(), backend="numba")
    assert np.abs(o - refattn.attention(*(x.astype(float) for x in (q, k, v)), mask=masks.causal())).max() < bound
"""


@pytest.mark.slow  # each compiles the kernels anew
@pytest.mark.parametrize(
    ("features", "want"),
    [({"avx2": True}, (32, 16)), ({"neon": True}, (16, 32)), ({}, (16, 16)), ({"avx512f": True}, (64, 32))],
)
def test_kernels(features, want, tmp_path):
    if want[0] == 64 and not _wide():
        pytest.skip("this processor has no 512-bit registers")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    program = PROGRAM.format(features=features, want=want)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def _wide():
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
