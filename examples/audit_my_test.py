"""Test a test: which wrong kernels does it notice, and which more once it also looks at masks and at lse?"""

import numpy as np

import refattn
import refattn.testing as rt

rng = np.random.default_rng(0)
q = rng.standard_normal((2, 4, 40, 32)).astype(np.float32)
k, v = (rng.standard_normal((2, 2, 72, 32)).astype(np.float32) for _ in range(2))
cache = {}  # what does not depend on the kernel is computed once


def test_close(kernel):
    """What many suites do: one shape, one tolerance."""
    o, _ = kernel(q, k, v)
    np.testing.assert_allclose(o, refattn.attention(q, k, v), atol=1e-3, rtol=1e-3)


def test_mask_and_lse(kernel):
    """The same under a causal mask, fewer queries than keys, and with lse compared too."""
    wanted = refattn.attention(q, k, v, mask=refattn.masks.causal(), return_lse=True)
    for got, want in zip(kernel(q, k, v, causal=True), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3, rtol=1e-3)


def test_with_the_kit(kernel):
    """What the kit does, until something fails."""
    assert rt.check(kernel, level="quick", fail_fast=True, cache=cache).ok


reports = [rt.audit(test, groups=["masks"]) for test in (test_close, test_mask_and_lse, test_with_the_kit)]
for report in reports:
    print(report.headline)
missed = reports[1].survived[0]
print(f"the second misses, for example: {missed.name}", missed.diff, sep="\n")
killed = [len(report.killed) for report in reports]
assert killed[0] < killed[1] < killed[2] and reports[2].ok
