"""The scans on other machines' vector registers: narrower ones, and half as many."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import llvmlite.binding
import numba
real = llvmlite.binding.get_host_cpu_features
class Features(dict):
    def flatten(self):  # what Numba itself compiles for stays the truth
        return real().flatten()
llvmlite.binding.get_host_cpu_features = lambda: Features({features})
import numpy as np
from refattn_numba.vectors import REGISTERS, VECTOR_BYTES
assert (VECTOR_BYTES, REGISTERS) == {want}
from tests.backends.test_numba_scan import OPERATIONS, numba, parts, problem
import refattn
for operation in OPERATIONS:
    for dtype in (np.float32, np.float64):
        arrays, _ = problem(operation, 70, 33, 50, dtype)
        got = numba(operation, arrays)
        want = getattr(refattn, operation + "_recurrent")(*(x.astype(float) for x in arrays))
        for x, y in zip([got.o, *parts(got.state)], [want.o, *parts(want.state)]):
            assert np.abs(x - y).max() < 100 * np.finfo(dtype).eps * max(1, np.abs(y).max()), operation
"""


@pytest.mark.slow  # each compiles the kernels anew
@pytest.mark.parametrize(("features", "want"), [({"avx2": True}, (32, 16)), ({"neon": True}, (16, 32)), ({}, (16, 16))])
def test_kernels(features, want, tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = PROGRAM.format(features=features, want=want)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
