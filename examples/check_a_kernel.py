"""A kernel of your own, checked: it passes; a copy with its causal mask at the top left fails, and one reads why."""

import numpy as np

import refattn.testing as rt


def kernel(offset):
    """Return a flash kernel in which query i sees key j where j <= i + offset(Tq, Tk)."""

    def flash(q, k, v, *, causal=False, scale=None):
        Tq, Tk, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
        q = np.float32(q.shape[3] ** -0.5 if scale is None else scale) * q
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        i = np.arange(Tq)[:, None] + offset(Tq, Tk)
        m, l = np.full((*q.shape[:3], 1), -np.inf, np.float32), np.zeros((*q.shape[:3], 1), np.float32)
        o = np.zeros((*q.shape[:3], v.shape[3]), np.float32)
        for j in range(0, Tk, 64):
            s = q @ k[:, :, j : j + 64].swapaxes(-1, -2)
            if causal:
                s = np.where(i >= np.arange(j, j + s.shape[-1]), s, -np.inf)
            top = np.maximum(m, s.max(axis=-1, keepdims=True))
            safe = np.where(np.isneginf(top), 0, top)  # a row that has seen nothing so far
            p, old = np.exp(s - safe), np.exp(m - safe)
            l, o, m = old * l + p.sum(axis=-1, keepdims=True), old * o + p @ v[:, :, j : j + 64], top
        return o / np.where(l == 0, 1, l), (m + np.log(l))[..., 0]

    return flash


contract = rt.Contract(dtype="float32", nan=False)  # p @ v lets a hidden NaN through, so none is promised
right = rt.check(kernel(lambda Tq, Tk: Tk - Tq), contract, level="quick")
wrong = rt.check(kernel(lambda Tq, Tk: 0), contract, level="quick")
print(right.count("PASS"), "checks passed,", right.count("NOT RUN"), "are about options that it does not take")
print("of the copy,", len(wrong.failures), "failed:", ", ".join(result.check for result in wrong.failures))
print("most likely:", rt.diagnose(wrong)[0].sentence)
assert right.ok and not wrong.ok and "top left" in wrong.diagnoses[0].sentence
