import dataclasses

import numpy as np
import pytest

from refattn import costs, masks, use_backend
from refattn.costs import (
    DeltaNet,
    Experts,
    GatedSoftmax,
    Latent,
    Linformer,
    Mamba,
    Mamba2,
    Nystrom,
    Rwkv7,
    Softmax,
    Transformer,
)
from refattn.models.gpt import GPT, Config
from refattn.models.minilm import MiniLM
from refattn.models.tape import Tape
from refattn.models.train import initial, loss_and_gradients
from refattn.watch.clock import Clock, component_of
from refattn.watch.network import Network
from tests.models import tiny_bert

LATENT = {"kv_rank": 8, "rope_dim": 4, "nope_dim": 6, "value_dim": 5}
OPERATIONS = [
    "linear_attention", "performer_attention", "cosformer_attention", "retention", "lightning_attention", "simple_gla",
    "gated_linear_attention", "hgrn2", "delta_rule", "gated_delta_rule", "kda", "rwkv5", "gla", "gated_deltanet",
    "kimi_delta", "mamba", "mamba2", "s4d", "causal_conv1d", "rwkv4", "rwkv6", "rwkv7",
]  # fmt: skip
SIZED = [
    None, "window(3, 0)", Softmax(window=4), GatedSoftmax(), Latent(**LATENT), Latent(**LATENT, q_rank=7),
    DeltaNet(key_heads=2, value_heads=4), Mamba(state=8, dt_rank=3), Mamba2(state=8, groups=2),
]  # fmt: skip
CAUSAL = [*SIZED, *OPERATIONS]
WHOLE = [Linformer(12, 3), Nystrom(8)]  # see all tokens at once


def model(mechanism, **sizes):
    given = {"layers": 2, "d_model": 16, "heads": 4, "ffn": 24, "gated": True, "vocab": 11}
    return Transformer(**given | sizes, mechanism=mechanism)


def name_of(mechanism):
    return mechanism if isinstance(mechanism, str) else repr(mechanism)


def tokens(rng, m):
    return rng.integers(0, 11, (2, 12)) if m.vocab else rng.standard_normal((2, 12, m.d_model), np.float32)


class Products(Clock):
    """Counts the FLOPs of the matrices that really multiply."""

    def __init__(self):
        super().__init__()
        self.flops = {"projection": 0, "ffn": 0, "head": 0}

    def within(self, component, f, *args, **kwargs):
        if f.__name__ in ("linear", "head_linear"):
            x, w = args
            place = component_of(f) if component == "mixing" else component
            self.flops[place] += 2 * x.size * w.shape[-1]
        return super().within(component, f, *args, **kwargs)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


class TestRealModels:
    def test_the_gpt_is_the_gpt(self):
        gpt = GPT.bundled()
        ids = np.arange(300).reshape(1, 300) % len(gpt.config.vocabulary)  # beyond the window
        network = Network.from_gpt(gpt)
        np.testing.assert_array_equal(network(ids), gpt.logits(ids))
        assert network.sizes.params() == sum(x.size for x in gpt.parameters.values())

    @pytest.mark.parametrize("mixer", ["mamba2", "gated_linear_attention", "kda", "gla", "linformer_attention"])
    def test_a_gpt_with_another_mixer(self, mixer):
        sizes = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 24, "context": 12}
        gpt = initial(Config("abcd", **sizes, mixer=mixer))
        ids = np.arange(24).reshape(2, 12) % 4
        network = Network.from_gpt(gpt)
        np.testing.assert_allclose(network(ids), gpt.logits(ids), rtol=1e-5, atol=1e-5)
        assert network.sizes.params() == sum(x.size for x in gpt.parameters.values())

    def test_minilm_is_minilm(self, tmp_path):
        minilm = MiniLM.load(tiny_bert.write(tmp_path / "tiny"))
        network, ids = Network.from_minilm(minilm), np.arange(24).reshape(2, 12)
        whole, short = np.array([12, 12]), np.array([12, 5])
        np.testing.assert_allclose(network(ids), minilm.encode(ids, whole), atol=2e-6)
        padded = network(ids, mask=masks.padding(short))
        np.testing.assert_allclose(padded[1, :5], minilm.encode(ids, short)[1, :5], atol=2e-6)
        assert np.abs(padded - network(ids)).max() > 1e-3

    def test_gradients_are_those_of_training(self):
        gpt = initial(Config("abcd", layers=2, width=8, heads=2, kv_heads=1, head_dim=4, hidden=12), dtype=np.float64)
        ids = np.array([[0, 1, 2, 3, 1]])
        _, wanted = loss_and_gradients(gpt, ids)
        from refattn.models.layers import cross_entropy_vjp

        tape = Tape()
        logits = Network.from_gpt(gpt)(ids[:, :-1], tape)
        gradient = tape.gradients(logits, cross_entropy_vjp(1.0, logits, ids[:, 1:]))
        for name in ("layers.0.w_q", "layers.1.w_down", "layers.0.norm_1", "embedding"):
            np.testing.assert_allclose(gradient(gpt.parameters[name]), wanted[name], rtol=1e-9, atol=1e-12)

    def test_what_stands_in_for_its_mask(self):
        gpt = GPT.bundled()
        network = Network.from_gpt(gpt, "window(3, 0)")
        ids = np.arange(20)[None]
        assert network.sizes.mechanism[0].mask is not None
        assert np.abs(network(ids) - gpt.logits(ids)).max() > 0.1
        with pytest.raises(ValueError, match="mechanism is mamba; weights of softmax attention take a mask"):
            Network.from_gpt(gpt, "mamba")

    def test_a_gpt_of_rwkv_is_refused(self):
        gpt = initial(Config("ab", layers=1, width=8, heads=1, kv_heads=1, head_dim=8, hidden=8, mixer="rwkv4"))
        with pytest.raises(ValueError, match="mixer is rwkv4"):
            Network.from_gpt(gpt)


class TestRandom:
    @pytest.mark.parametrize("mechanism", [*CAUSAL, *WHOLE], ids=name_of)
    @pytest.mark.parametrize("sizes", [{}, {"vocab": 0, "gated": False, "kv_heads": None}], ids=["gated", "plain"])
    def test_it_has_the_parameters_and_products_that_costs_count(self, rng, mechanism, sizes):
        m = model(mechanism, **sizes)
        network = Network.random(m)
        assert network.nbytes == 4 * m.params()
        clock, x = Products(), tokens(rng, m)
        y = network(x, clock)
        counted = m.forward_flops(batch=2, seq=12)
        assert clock.flops == {"projection": counted["qkvo"], "ffn": counted["ffn"], "head": counted["head"]}
        assert y.dtype == np.float32 and np.isfinite(y).all()
        np.testing.assert_array_equal(y, network(x))

    @pytest.mark.parametrize("mechanism", CAUSAL, ids=name_of)
    def test_token_by_token_is_the_whole(self, rng, mechanism):
        m = model(mechanism)
        network, x = Network.random(m), tokens(rng, m)
        state = network.new_state(2, 0, room=12)
        steps = [network(x[:, t : t + 1], state=state, past=t) for t in range(12)]
        np.testing.assert_allclose(np.concatenate(steps, axis=1), network(x), atol=2e-4)

    @pytest.mark.parametrize("mechanism", [*CAUSAL, *WHOLE], ids=name_of)
    def test_every_parameter_has_a_gradient(self, rng, mechanism):
        m = model(mechanism, bias=not isinstance(mechanism, Linformer | Nystrom))
        network, tape = Network.random(m), Tape()
        y = network(tokens(rng, m), tape)
        gradient = tape.gradients(y, rng.standard_normal(y.shape, np.float32))
        still = [
            name
            for layer in network.layers
            for w in (layer.mixing, layer.feed)
            for name, x in w.items()
            if not np.any(gradient(x))
        ]
        assert [name for name in still if name != "b_k"] == []  # a bias of all keys moves no weight

    @pytest.mark.parametrize("sizes", [
        {"bias": True, "logits": False, "positions": 40, "types": 2, "gated": False},  # BERT
        {"norms": 1}, {"norms": 4, "qk_norm": True}, {"kv_heads": 2, "v_head_dim": 6, "tied": False}, {"ffn": 0},
    ], ids=str)  # fmt: skip
    def test_kinds_of_blocks(self, rng, sizes):
        m = model(None, **sizes)
        network = Network.random(m)
        held = 4 * m.params() - 4 * 16 * max(0, m.types - 1)  # one segment is enough
        assert network.nbytes == held
        clock = Products()
        y = network(rng.integers(0, 11, (1, 7)), clock)
        counted = m.forward_flops(seq=7, causal=network.causal)
        assert clock.flops == {"projection": counted["qkvo"], "ffn": counted["ffn"], "head": counted["head"]}
        assert y.shape == (1, 7, 11 if m.logits else 16)
        assert network.after == (m.positions > 0)

    def test_layers_may_differ_and_be_fewer(self, rng):
        m = model([None, "mamba", Softmax(window=3), "retention"], layers=4)
        network = Network.random(m, layers=3)
        assert [x.mechanism.name for x in network.layers] == ["softmax", "mamba", "softmax"]
        assert (network.sizes.layers, network.whole) == (3, 4)
        assert network(tokens(rng, m)).shape == (2, 12, 11)

    def test_rwkv7_hands_on_the_values_of_its_first_layer(self, rng):
        m = model(Rwkv7(value_rank=4))
        network, x = Network.random(m), tokens(rng, m)
        moved = dataclasses.replace(network, layers=[network.layers[0], network.layers[1]])
        moved.layers[1].mixing["v"] += 5
        before = Network.random(m)(x)
        assert np.abs(moved(x) - before).max() > 1e-4

    def test_a_window_hides_what_is_older(self, rng):
        m = model(Softmax(window=3), layers=1, vocab=0)
        network = Network.random(m)
        x = tokens(rng, m)
        changed = x.copy()
        changed[:, 0] += 1
        moved = np.abs(network(changed) - network(x)).max(axis=(0, 2)) > 1e-6
        assert moved.tolist() == [True] * 3 + [False] * 9

    def test_a_model_that_is_not_causal_sees_what_follows(self, rng):
        m = model(None, layers=1, vocab=0)
        x = tokens(rng, m)
        changed = x.copy()
        changed[:, -1] += 1
        for causal in (True, False):
            network = Network.random(m, causal=causal)
            assert (np.abs(network(changed)[:, 0] - network(x)[:, 0]).max() > 1e-6) is not causal

    def test_numba_gives_the_same(self, rng):
        pytest.importorskip("numba")
        for mechanism in (None, "gated_delta_rule"):
            m = model(mechanism)
            network, x = Network.random(m), tokens(rng, m)
            with use_backend("numba"):
                y = network(x)
            np.testing.assert_allclose(y, network(x), rtol=1e-4, atol=1e-4)

    def test_the_same_seed_gives_the_same_network(self, rng):
        m = model(None)
        x = tokens(rng, m)
        np.testing.assert_array_equal(Network.random(m, seed=3)(x), Network.random(m, seed=3)(x))
        assert np.abs(Network.random(m, seed=4)(x) - Network.random(m, seed=3)(x)).max() > 1e-3

    def test_progress_is_told(self):
        told = []
        Network.random(model(None), tick=lambda text, share: told.append((text, share)))
        assert told == [("layer 1 of 2", 0.0), ("layer 2 of 2", 0.5)]


class TestRefused:
    @pytest.mark.parametrize(("m", "why"), [
        (model(None, experts=Experts(count=4, active=2, ffn=8)), "layer 0 has experts"),
        (model(costs.Recurrent("retention", features=3)), "retention has features 3; only None can be run"),
        (model(costs.Gla(expand_k=1.0)), "gla has expand_k 1.0"),
        (model(Mamba(inner_norms=True)), "mamba has inner_norms True"),
        (model(Mamba(inner=40)), "mamba has inner 40; only 32"),
        (model(costs.S4D(state=8)), "s4d has state 8"),
        (model(Nystrom(4)), "nystrom_attention has landmarks 4"),
        (model(Nystrom(8), bias=True), "nystrom_attention has bias True"),
        (model("retention", v_head_dim=6), "retention has v_head_dim 6"),
        (model(None, norms=3), "norms is 3"),
    ])  # fmt: skip
    def test_sizes_that_cannot_run(self, m, why):
        with pytest.raises(ValueError, match=why):
            Network.random(m)

    @pytest.mark.parametrize("layers", [0, 3])
    def test_layers(self, layers):
        with pytest.raises(ValueError, match="layers"):
            Network.random(model(None), layers=layers)

    def test_more_tokens_than_positions(self):
        network = Network.random(model(None, positions=8))
        with pytest.raises(ValueError, match="9 tokens; the model has 8 positions"):
            network(np.zeros((1, 9), np.int64))
