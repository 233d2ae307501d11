"""Bytes: what an implementation really allocates, what must be moved at least, and what is refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn
from refattn import costs, masks

GQA = costs.Transformer(layers=2, d_model=256, heads=8, kv_heads=2, ffn=512, gated=True, vocab=100)


def peak(call):
    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        assert result is not None
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("batch", "H", "Hk", "T", "D", "Dv"), [(1, 4, 4, 512, 64, 64), (2, 6, 2, 300, 32, 48)])
@pytest.mark.parametrize("causal", [False, True])
def test_peak_is_what_tracemalloc_sees(backend, dtype, batch, H, Hk, T, D, Dv, causal):
    if backend == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    rng = np.random.default_rng(0)
    shapes = ((batch, H, T, D), (batch, Hk, T, D), (batch, Hk, T, Dv))
    q, k, v = (rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)
    mask = masks.causal() if causal else None
    measured = peak(lambda: refattn.attention(q, k, v, mask=mask, backend=backend))
    m = costs.Transformer(layers=1, d_model=H * D, heads=H, kv_heads=Hk, head_dim=D, v_head_dim=Dv)
    counted = m.peak_attention_bytes(batch, T, dtype, backend, causal)
    idle = 0 if backend == "numpy" else 2 * 8 * 64 * (D + Dv + 132)  # threads that were not at work at the same time
    assert counted * 0.99 - idle <= measured <= counted * 1.01 + (0 if backend == "numpy" else 20_000)


def test_numpy_holds_five_matrices_and_numba_none():
    matrix = GQA.attention_matrix_bytes(1, 2048)
    assert 5 <= GQA.peak_attention_bytes(1, 2048) / matrix < 5.2
    assert GQA.peak_attention_bytes(1, 2048, backend="numba") < matrix / 20


class TestMoved:
    @given(
        st.integers(1, 3),
        st.integers(1, 300),
        st.sampled_from(["prefill", "decode", "train"]),
        st.sampled_from(["materialised", "flash"]),
    )
    def test_no_less_than_what_must_be_read_and_written(self, batch, seq, phase, algorithm):
        found = GQA.bytes_moved(batch, seq, phase, algorithm)
        assert found["total"] == sum(n for part, n in found.items() if part != "total")
        new = 1 if phase == "decode" else seq
        assert found["weights"] >= 2 * GQA.params()
        kept = GQA.kv_cache_bytes(batch, seq)
        assert found["k"] + found["v"] >= kept
        assert found["q"] >= 2 * GQA.layers * batch * new * 256 and found["o"] == found["q"]

    def test_the_matrix_moves_four_times(self):
        found = GQA.bytes_moved(1, 512, "prefill", "materialised", "float32")
        assert found["scores"] == 4 * 2 * GQA.attention_matrix_bytes(1, 512, "float32")
        assert GQA.bytes_moved(1, 512, "prefill", "flash")["scores"] == 0

    def test_flash_reads_keys_once_a_tile_of_queries(self):
        dense = GQA.bytes_moved(1, 1024, "prefill", "flash", "float32", causal=False)
        assert dense["k"] == GQA.layers * 2 * (1024 // 128) * 1024 * 32 * 4
        causal = GQA.bytes_moved(1, 1024, "prefill", "flash", "float32")
        assert dense["k"] / 2 < causal["k"] < dense["k"]

    def test_many_tokens_read_all_experts(self):
        e = costs.Experts(count=8, active=2, ffn=16)
        m = costs.Transformer(layers=2, d_model=32, heads=4, experts=e)
        read = [m.bytes_moved(1, seq, dtype="float32")["weights"] // 4 for seq in (1, 3, 4, 100)]
        assert read[0] == m.active_params() and read[2] == read[3] == m.params()
        assert read[2] - read[1] == 2 * 2 * 2 * 32 * 16

    def test_training_moves_three_times_as_much(self):
        once, thrice = (GQA.bytes_moved(1, 64, phase)["total"] for phase in ("prefill", "train"))
        assert thrice == 3 * once

    def test_a_state_is_read_and_written(self):
        m = costs.Transformer(layers=1, d_model=64, heads=4, mechanism="retention")
        assert m.bytes_moved(1, 10, "decode", dtype="float32")["state"] == 2 * m.kv_cache_bytes(1, 10, "float32")


def test_optimizer_states():
    assert GQA.training_state_bytes() == 16 * GQA.params()
    assert GQA.training_state_bytes("adam-8bit") == 10 * GQA.params()


M = {"layers": 1, "d_model": 64, "heads": 4}


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda: costs.Transformer(layers=0, d_model=64, heads=4), ValueError, "layers is 0"),
    (lambda: costs.Transformer(**M, kv_heads=3), ValueError, "kv_heads that divide"),
    (lambda: costs.Transformer(layers=1, d_model=65, heads=4), ValueError, "give head_dim"),
    (lambda: costs.Transformer(**M, ffn=-1), ValueError, "ffn is -1"),
    (lambda: costs.Transformer(**M, vocab=1.5), TypeError, "vocab must be an integer"),
    (lambda: costs.Transformer(**M, mechanism="retenton"), LookupError, "did you mean retention"),
    (lambda: costs.Transformer(**M, mechanism=["mamba"] * 2), ValueError, "one for each of 1"),
    (lambda: costs.Transformer(**M, mechanism=7), TypeError, "wanted a Mechanism"),
    (lambda: costs.Transformer(**M, experts=3), TypeError, "must be Experts"),
    (lambda: costs.Experts(count=2, active=3, ffn=4), ValueError, "no more than there are"),
    (lambda: costs.Softmax(window=0), ValueError, "window is 0"),
    (lambda: costs.Recurrent("softmax"), ValueError, "wanted one of"),
    (lambda: GQA.forward_flops(seq=0), ValueError, "seq is 0"),
    (lambda: GQA.forward_flops(batch=-1), ValueError, "batch is -1"),
    (lambda: GQA.forward_flops(past=-1), ValueError, "past is -1"),
    (lambda: GQA.forward_flops(seq=3, mask=np.ones((2, 2), bool)), ValueError, "mask"),
    (lambda: GQA.kv_cache_bytes(seq=1, dtype="bfloat61"), LookupError, "did you mean bfloat16"),
    (lambda: GQA.attention_matrix_bytes(seq=0), ValueError, "seq is 0"),
    (lambda: GQA.peak_attention_bytes(1, 4, backend="nunpy"), LookupError, "did you mean numpy"),
    (lambda: GQA.peak_attention_bytes(1, 4, dtype="int4"), LookupError, "dtype"),
    (lambda: GQA.activation_bytes(1, 4, "sometimes"), ValueError, "recompute is 'sometimes'"),
    (lambda: GQA.activation_bytes(1, 4, tensor_parallel=0), ValueError, "tensor_parallel is 0"),
    (lambda: GQA.training_state_bytes("adamm-fp32"), LookupError, "did you mean adam-fp32"),
    (lambda: GQA.bytes_moved(1, 4, "prefil"), ValueError, "phase is 'prefil'"),
    (lambda: GQA.bytes_moved(1, 4, algorithm="flush"), ValueError, "algorithm is 'flush'"),
])  # fmt: skip
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
