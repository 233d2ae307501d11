"""Counts: published numbers, the formulas written out, and what must hold for any sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import costs, masks
from refattn.models.checkpoint import Config
from refattn.models.mixers import MIXERS

GPT3 = costs.Transformer(layers=96, d_model=12288, heads=96, vocab=50257, positions=2048, bias=True)
BERT_BLOCK = costs.Transformer(layers=1, d_model=768, heads=12)
sizes = st.builds(
    lambda layers, heads, group, d, dv, ffn, gated: costs.Transformer(
        layers=layers, d_model=8 * heads, heads=heads * group, kv_heads=heads, head_dim=d, v_head_dim=dv, ffn=ffn,
        gated=gated, vocab=11,
    ),
    *(st.integers(1, n) for n in (3, 3, 3, 9, 9, 40)),
    st.booleans(),
)  # fmt: skip
some_mask = st.one_of(
    st.just(masks.causal()),
    st.builds(masks.window, st.integers(0, 9), st.integers(0, 9)),
    st.builds(lambda n: masks.causal() & masks.window(n, 0), st.integers(0, 9)),
    st.builds(masks.strided, st.integers(1, 4), st.integers(1, 5)),
    st.builds(lambda n: masks.causal() & masks.global_tokens(range(n)), st.integers(0, 4)),
    st.builds(masks.chunked, st.integers(1, 6)),
)


class TestPublished:
    def test_matrix_of_a_thousand_tokens(self):
        assert BERT_BLOCK.attention_matrix_bytes(batch=1, seq=1000, dtype="float32") == 48_000_000
        one = costs.Transformer(layers=1, d_model=64, heads=1)
        assert one.attention_matrix_bytes(batch=1, seq=1000, dtype="float32") == 4_000_000

    def test_five_times_the_tokens(self):
        long, short = (BERT_BLOCK.forward_flops(seq=n, causal=False) for n in (10_000, 2_000))
        assert long["scores"] / short["scores"] == 25.0
        assert long["total"] / short["total"] == pytest.approx(11.05, abs=0.005)
        long, short = (GPT3.forward_flops(seq=n, causal=False) for n in (10_000, 2_000))
        block = [x["total"] - x["head"] for x in (long, short)]
        assert block[0] / block[1] == pytest.approx(5.53, abs=0.005)

    def test_gpt3(self):
        assert GPT3.params() == pytest.approx(174.6e9, rel=1e-4)
        assert 6 * GPT3.params() * 300e9 == pytest.approx(3.14e23, rel=2e-3)

    def test_minilm(self):
        m = costs.Transformer(
            layers=6, d_model=384, heads=12, ffn=1536, vocab=30522, positions=512, types=2, bias=True, pooler=True
        )
        assert m.params() == 22_713_216

    def test_dense_attention_of_64_tokens(self):
        found = BERT_BLOCK.forward_flops(batch=1, seq=64, causal=False)
        assert found["scores"] + found["values"] == 12_582_912

    def test_eight_times_the_width(self):
        m = costs.Transformer(layers=2, d_model=512, heads=8, ffn=2048, gated=True)
        found = m.forward_flops(seq=8 * 512, causal=False)
        assert found["scores"] + found["values"] == found["qkvo"] + found["ffn"]
        assert m.crossover_length(causal=False) == 8 * 512
        assert m.crossover_length() == 16 * 512 - 1  # (N + 1) / 2 pairs a query

    def test_kv_cache_of_a_token(self):
        opt = costs.Transformer(layers=40, d_model=5120, heads=40)
        assert opt.kv_cache_bytes(batch=1, seq=1, dtype="float16") == 819_200
        llama = costs.Transformer(layers=32, d_model=4096, heads=32, kv_heads=8, ffn=14336, gated=True)
        assert llama.kv_cache_bytes(batch=1, seq=1) == 128 * 1024

    def test_activations_of_a_layer(self):
        s, b, h, a = 2048, 4, 6144, 64  # Korthikanti et al., 2022, table 2
        m = costs.Transformer(layers=1, d_model=h, heads=a)
        for t in (1, 8):
            assert m.activation_bytes(b, s, "none", t) == s * b * (10 * h + 24 * h // t + 5 * a * s // t)
            assert m.activation_bytes(b, s, "none", t, True) == s * b * (34 * h + 5 * a * s) // t
            assert m.activation_bytes(b, s, "selective", t) == s * b * (10 * h + 24 * h // t)
            assert m.activation_bytes(b, s, "full", t) == 2 * s * b * h
            extra = m.activation_bytes(b, s, "attention", t) - m.activation_bytes(b, s, "selective", t)
            assert extra == 4 * a * s * b // t

    def test_mla_keeps_a_latent_vector(self):
        m = costs.Transformer(layers=60, d_model=5120, heads=128, mechanism=costs.Latent(q_rank=1536))
        assert m.kv_cache_bytes(seq=1, dtype="bfloat16") == 60 * (512 + 64) * 2


class TestPairs:
    @given(some_mask, st.integers(0, 24), st.integers(0, 24))
    def test_the_sum_of_the_mask(self, mask, Tq, Tk):
        assert costs.pairs(mask, Tq, Tk) == mask.dense(Tq, Tk).sum()
        assert costs.pairs(mask.dense(Tq, Tk), Tq, Tk) == mask.dense(Tq, Tk).sum()

    @given(some_mask, st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
    def test_tiles_that_hold_something(self, mask, Tq, Tk, block_q, block_k):
        seen, want = mask.dense(Tq, Tk), 0
        for i in range(0, Tq, block_q):
            for j in range(0, Tk, block_k):
                tile = seen[i : i + block_q, j : j + block_k]
                want += tile.size if tile.any() else 0
        found = costs.tile_pairs(mask, Tq, Tk, block_q, block_k)
        assert found == want >= costs.pairs(mask, Tq, Tk)

    @given(st.integers(1, 200), st.integers(1, 200))
    def test_formulas(self, N, w):
        w = min(w, N)
        assert costs.pairs(masks.causal(), N, N) == N * (N + 1) // 2
        assert costs.pairs(masks.causal() & masks.window(w - 1, 0), N, N) == N * w - w * (w - 1) // 2
        k = (w - 1) // 2
        assert costs.pairs(masks.window(k, k), N, N) == N * (2 * k + 1) - k * (k + 1)
        S = N + w
        assert costs.pairs(masks.causal(), N, S) == N * (S - N) + N * (N + 1) // 2

    @pytest.mark.parametrize(("mask", "Tq", "Tk", "error"), [
        (None, -1, 2, ValueError), (None, 2.0, 2, TypeError), (np.ones((2, 3), bool), 3, 3, ValueError),
        (np.ones((2, 2)), 2, 2, TypeError),
    ])  # fmt: skip
    def test_refused(self, mask, Tq, Tk, error):
        with pytest.raises(error):
            costs.pairs(mask, Tq, Tk)


class TestFlops:
    @given(sizes, st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
    def test_written_out(self, m, B, N, past):
        H, K, d, dv, D, F = m.heads, m.kv_heads, m.head_dim, m.v_head_dim, m.d_model, m.ffn
        seen = N * past + N * (N + 1) // 2
        found = m.forward_flops(B, N, past)
        assert found["qkvo"] == m.layers * 2 * B * N * D * (H * d + K * d + K * dv + H * dv)
        assert found["scores"] + found["values"] == m.layers * 2 * B * H * seen * (d + dv)
        assert found["softmax"] == m.layers * 5 * B * H * seen
        assert found["ffn"] == m.layers * (6 if m.gated else 4) * B * N * D * F
        assert found["head"] == 2 * B * N * D * m.vocab
        assert found["total"] == sum(found[p] for p in ("qkvo", "scores", "values", "scan", "ffn", "head"))

    @given(sizes, st.integers(1, 12))
    def test_decoding_adds_up_to_prefill(self, m, N):
        steps = [m.forward_flops(1, 1, past) for past in range(N)]
        assert {part: sum(step[part] for step in steps) for part in steps[0]} == m.forward_flops(1, N)

    @settings(deadline=None)
    @given(sizes, st.integers(1, 30), st.integers(1, 30))
    def test_longer_costs_more_and_wider_windows_too(self, m, N, w):
        total = lambda window, n: costs.Transformer(  # noqa: E731
            layers=1, d_model=m.d_model, heads=m.heads, head_dim=m.head_dim, mechanism=costs.Softmax(window=window)
        ).forward_flops(1, n)["total"]
        assert total(w, N) < total(w, N + 1)
        assert total(w, N) <= total(w + 1, N) <= total(None, N)
        assert total(max(w, N), N) == total(None, N)  # no jump where the window takes all in

    def test_all_heads_their_own_keys(self):
        a = costs.Transformer(layers=2, d_model=32, heads=4)
        b = costs.Transformer(layers=2, d_model=32, heads=4, kv_heads=4)
        assert a.forward_flops(seq=9) == b.forward_flops(seq=9)
        assert a.kv_cache_bytes(seq=9) == b.kv_cache_bytes(seq=9)
        assert costs.Transformer(layers=2, d_model=32, heads=4, kv_heads=1).kv_cache_bytes(
            seq=9
        ) * 4 == b.kv_cache_bytes(seq=9)

    def test_a_mask_beside_causal(self):
        m = costs.Transformer(layers=1, d_model=8, heads=2, head_dim=4)
        mask = masks.global_tokens([0]) | masks.window(1, 1)
        seen = (masks.causal() & mask).dense(7, 7).sum()
        assert m.forward_flops(seq=7, mask=mask)["scores"] == 2 * 2 * 4 * seen
        per_head = masks.from_array(np.stack([np.tri(7, dtype=bool), np.eye(7, dtype=bool)]))
        assert m.forward_flops(seq=7, causal=False, mask=per_head)["scores"] == 2 * 4 * (28 + 7)

    def test_backward(self):
        m = costs.Transformer(layers=2, d_model=32, heads=4, vocab=50)
        forward = m.forward_flops(2, 16)
        attention = forward["scores"] + forward["values"]
        rest = forward["total"] - attention
        factors = {"none": 3, "attention": 3.5, "selective": 4}
        for recompute, factor in factors.items():
            assert m.train_flops(2, 16, recompute=recompute)["total"] == 3 * rest + factor * attention
        assert m.train_flops(2, 16, recompute="full")["total"] == 4 * forward["total"]
        with pytest.raises(ValueError, match="wanted one of none"):
            m.train_flops(2, 16, recompute="some")

    def test_experts(self):
        dense = costs.Transformer(layers=3, d_model=8, heads=2, ffn=16, gated=True)
        e = costs.Experts(count=4, active=2, ffn=16, first=1)
        m = costs.Transformer(layers=3, d_model=8, heads=2, ffn=16, gated=True, experts=e)
        router, one = 8 * 4, 3 * 8 * 16
        assert m.params() == dense.params() + 2 * (router + 3 * one)
        assert m.active_params() == dense.params() + 2 * (router + one)
        assert m.forward_flops()["ffn"] == dense.forward_flops()["ffn"] + 2 * 2 * (router + one)

    def test_crossover_never_comes_with_a_window_or_a_state(self):
        assert (
            costs.Transformer(layers=1, d_model=64, heads=1, mechanism=costs.Softmax(window=16)).crossover_length()
            is None
        )
        assert costs.Transformer(layers=1, d_model=64, heads=1, mechanism="retention").crossover_length() is None

    def test_mla(self):
        latent = costs.Latent(kv_rank=16, rope_dim=4, nope_dim=8, value_dim=6)
        m = costs.Transformer(layers=1, d_model=32, heads=2, mechanism=latent)
        one = m.forward_flops(1, 1, past=9)
        assert one["scores"] + one["values"] == 2 * 2 * 10 * ((16 + 4) + 16)
        all_ = m.forward_flops(1, 10)
        assert all_["scores"] + all_["values"] == 2 * 55 * 2 * ((8 + 4) + 6)


class TestLinearTime:
    @pytest.mark.parametrize("name", sorted(MIXERS))
    def test_parameters_are_those_of_the_network(self, name):
        config = Config("abcdefgh", layers=1, width=64, heads=4, kv_heads=4, head_dim=16, context=32, mixer=name)
        drawn = {n: x.shape for n, x in config.draw_mixer(0).items()}
        mechanism = {
            "linformer_attention": costs.Linformer(32, 8), "nystrom_attention": costs.Nystrom(8),
            "rwkv6": costs.Rwkv6(8, 8), "rwkv7": costs.Rwkv7(8, 8, 8), "mamba2": costs.Mamba2(state=16),
        }.get(name, name)  # fmt: skip
        m = costs.Transformer(layers=1, d_model=64, heads=4, ffn=0, norms=0, more_norms=0, mechanism=mechanism)
        assert m.params() == sum(int(np.prod(shape)) for shape in drawn.values()), drawn

    @pytest.mark.parametrize("name", sorted(n for n in MIXERS if MIXERS[n].causal))
    def test_what_is_kept_is_the_state(self, name):
        from refattn.models.train import initial

        config = Config("abcdefgh", layers=1, width=64, heads=4, kv_heads=4, head_dim=16, context=32, mixer=name)
        gpt = initial(config)
        cache = gpt.new_cache(9)
        gpt.logits(np.arange(8), cache=cache)
        mechanism = {"mamba2": costs.Mamba2(state=16)}.get(name, name)
        m = costs.Transformer(layers=1, d_model=64, heads=4, ffn=0, mechanism=mechanism)
        state = cache[0].wkv if name in ("rwkv4", "rwkv6", "rwkv7") else cache[0]
        assert m.kv_cache_bytes(seq=8, dtype="float32") == 4 * _numbers(state)
        assert m.kv_cache_bytes(seq=8) == m.kv_cache_bytes(seq=8000)

    def test_work_of_a_token(self):
        m = costs.Transformer(layers=1, d_model=64, heads=4, mechanism="linear_attention")
        assert m.forward_flops()["scan"] == 4 * (4 * 16 * 16 + 2 * 16)
        chunked = costs.Transformer(
            layers=1, d_model=64, heads=4, mechanism=costs.Recurrent("linear_attention", chunk=64)
        )
        assert chunked.forward_flops()["scan"] == 4 * (4 * 16 * 16 + 65 * 32 + 2 * 16)
        mamba = costs.Transformer(layers=1, d_model=64, heads=1, ffn=0, mechanism="mamba")
        assert mamba.forward_flops()["scan"] == 9 * 128 * 16 + 2 * 4 * 128

    def test_layers_add_up(self):
        kinds = ["mamba", None, "window(7, 0)", "rwkv7"]
        each = [costs.Transformer(layers=1, d_model=64, heads=4, mechanism=kind) for kind in kinds]
        mixed = costs.Transformer(layers=4, d_model=64, heads=4, mechanism=kinds)
        for part, flops in mixed.forward_flops(2, 33).items():
            assert flops == sum(m.forward_flops(2, 33)[part] for m in each)
        assert mixed.kv_cache_bytes(2, 33) == sum(m.kv_cache_bytes(2, 33) for m in each)


def _numbers(state):
    if isinstance(state, np.ndarray):
        return state.size * (2 if state.dtype.kind == "c" else 1)
    return sum(_numbers(x) for x in state)
