"""Every mixer: pieces are the whole, gradients are those of differences, a step of training lowers the loss."""

import numpy as np
import pytest

from refattn.models import rwkv
from refattn.models.gpt import GPT, Config
from refattn.models.mixers import MIXERS, block
from refattn.models.tape import Tape
from refattn.models.train import AdamW, initial, taped_loss_and_gradients

VOCABULARY = "abcdefghij"
SIZES = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 24, "context": 24}
CAUSAL = [name for name, mixer in MIXERS.items() if mixer.causal]


def config_of(mixer):
    return Config(VOCABULARY, **SIZES, mixer=mixer)


def drawn(mixer, dtype=np.float64):
    """Return a layer's parameters, moved a little from where training begins: many begin at 0."""
    gpt = initial(config_of(mixer), 0, dtype)
    rng = np.random.default_rng(1)
    return {name: x + 0.05 * rng.normal(size=x.shape).astype(dtype) for name, x in gpt.layer(0).items()}


@pytest.mark.parametrize("mixer", CAUSAL)
def test_pieces_are_the_whole(mixer):
    w, config = drawn(mixer), config_of(mixer)
    x = np.random.default_rng(2).normal(size=(2, 11, 16))
    whole, _ = block(x, w, config)
    if mixer == "cosformer_attention":  # whose weights depend on where a token stands in its call
        return
    parts, state = [], None
    for ends in ((0, 5), (5, 6), (6, 7), (7, 11)):
        y, state = block(x[:, slice(*ends)], w, config, state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixer", CAUSAL)
def test_the_future_does_not_matter(mixer):
    w, config = drawn(mixer), config_of(mixer)
    x = np.random.default_rng(2).normal(size=(1, 11, 16))
    changed = x.copy()
    changed[:, 6:] = 9.0
    np.testing.assert_allclose(block(changed, w, config)[0][:, :6], block(x, w, config)[0][:, :6], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_gradients_are_those_of_differences(mixer):
    w, config = drawn(mixer), config_of(mixer)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 24, 16))
    tape = Tape()
    y, _ = block(x, w, config, call=tape)
    dy = rng.normal(size=y.shape)
    gradient = tape.gradients(y, dy)
    step, directions = 1e-6, {name: rng.normal(size=p.shape) for name, p in w.items()}
    dx = rng.normal(size=x.shape)

    def moved(s, only):
        there = {name: p + s * directions[name] * (only in (name, "all")) for name, p in w.items()}
        return block(x + s * dx * (only in ("x", "all")), there, config)[0]

    for only in ("all", "x", *w):
        left = (dy * (moved(step, only) - moved(-step, only))).sum() / (2 * step)
        terms = [gradient(p) * directions[name] for name, p in w.items() if only in (name, "all")]
        terms += [gradient(x) * dx] if only in ("x", "all") else []
        right, size = sum(t.sum() for t in terms), 1 + sum(abs(t).sum() for t in terms)
        assert abs(left - right) < 1e-6 * size, (only, left, right)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_training_lowers_the_loss(mixer, backend):
    from refattn.dispatch import use_backend

    gpt = initial(config_of(mixer))
    rng = np.random.default_rng(4)
    text = np.tile(rng.integers(0, 10, 6), 9)
    runs = np.stack([text[n : n + 25] for n in range(6)])
    inputs, targets = runs[:, :-1], runs[:, 1:]
    if not MIXERS[mixer].causal:  # sees everything: fills in what is hidden
        hidden = rng.random(inputs.shape) < 0.3
        inputs, targets = np.where(hidden, 0, inputs), inputs
    optimizer, losses = AdamW(gpt.parameters), []
    with use_backend(backend):
        for _ in range(4):
            loss, gradients = taped_loss_and_gradients(gpt, inputs, targets)
            losses.append(loss)
            optimizer.step(gradients, 3e-3)
    assert losses[1] < losses[0] and losses[3] < losses[1], losses
    assert gradients.keys() == gpt.parameters.keys() and all(g.dtype == np.float32 for g in gradients.values())


@pytest.mark.parametrize("mixer", ["gla", "mamba2", "rwkv7"])
def test_a_network_generates_and_is_saved(mixer, tmp_path):
    gpt = initial(config_of(mixer))
    text = gpt.generate("abc", tokens=5)
    assert len(text) == 5
    tokens = gpt.encode("abc" + text)
    cache = gpt.new_cache(8)
    step_by_step = [gpt.logits(tokens[n : n + 1], cache=cache) for n in range(len(tokens))]
    np.testing.assert_allclose(np.concatenate(step_by_step), gpt.logits(tokens), rtol=1e-4, atol=1e-4)
    gpt.save(tmp_path / "gpt.npz")
    assert GPT.load(tmp_path / "gpt.npz").config == gpt.config


def test_what_is_refused():
    with pytest.raises(ValueError, match="mixer is 'gpt'; wanted one of attention, linear_attention"):
        Config(VOCABULARY, mixer="gpt")
    with pytest.raises(ValueError, match="nystrom_attention is not causal"):
        initial(config_of("nystrom_attention")).generate("abc")
    with pytest.raises(ValueError, match="the mixer is gla; only attention has keys to show"):
        initial(config_of("gla")).attention_inputs(np.array([1, 2]), 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(o, w, eps=rwkv.EPS):
    """Each head's row to mean 0 and variance 1."""
    o = (o - o.mean(axis=-1, keepdims=True)) / np.sqrt(o.var(axis=-1, keepdims=True) + eps)
    return o.ravel() * w["norm"] + w["norm_b"]


def test_rwkv6_is_the_papers_equations():
    """A token and a head at a time, as Peng et al., 2024, eqs. 14-19, write them."""
    H, M, T = 2, 8, 7
    rng = np.random.default_rng(0)
    w = {name: x + 0.1 * rng.normal(size=x.shape) for name, x in rwkv.rwkv6_parameters(rng, M, heads=H).items()}
    x = rng.normal(size=(T, M))
    D, last, S, want = M // H, np.zeros(M), np.zeros((H, M // H, M // H)), []
    for t in range(T):
        mixed = x[t] + (last - x[t]) * w["mix_x"]
        token = {
            n: x[t] + (last - x[t]) * (w[f"mix_{n}"] + np.tanh(mixed @ w[f"mix_{n}1"]) @ w[f"mix_{n}2"])
            for n in "rkvgw"
        }
        r, k, v, g = (token[n] @ w[f"w_{n}"] for n in "rkvg")
        decay = np.exp(-np.exp(w["decay"] + np.tanh(token["w"] @ w["decay_1"]) @ w["decay_2"]))
        o = np.zeros((H, D))
        for h in range(H):
            own = slice(h * D, (h + 1) * D)
            new = np.outer(k[own], v[own])
            o[h] = r[own] @ (S[h] + w["u"][h][:, None] * new)
            S[h] = decay[own][:, None] * S[h] + new
        want.append((normed(o, w) * g * sigmoid(g)) @ w["w_o"])
        last = x[t]
    np.testing.assert_allclose(rwkv.rwkv6_time_mix(x, w, heads=H)[0], want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layer", [0, 1])
def test_rwkv7_is_the_papers_equations(layer):
    """A token and a head at a time, as Peng et al., 2025, section 4.1, write them; later layers mix in first values."""
    H, M, T, R = 2, 8, 7, 3
    rng = np.random.default_rng(0)
    w = {name: x + 0.1 * rng.normal(size=x.shape) for name, x in rwkv.rwkv7_parameters(rng, M, heads=H, rank=R).items()}
    w |= {"v": rng.normal(size=M), "v_1": rng.normal(size=(M, R)), "v_2": rng.normal(size=(R, M))}
    x, v_first = rng.normal(size=(T, M)), rng.normal(size=(T, M))
    D, last, S, want = M // H, np.zeros(M), np.zeros((H, M // H, M // H)), []
    for t in range(T):
        token = {n: x[t] + (last - x[t]) * w[f"mix_{n}"] for n in "rwkvag"}
        r, k, v = (token[n] @ w[f"w_{n}"] for n in "rkv")
        decay = np.exp(-np.exp(-0.5) * sigmoid(w["decay"] + np.tanh(token["w"] @ w["decay_1"]) @ w["decay_2"]))
        if layer:
            v = v + (v_first[t] - v) * sigmoid(w["v"] + token["v"] @ w["v_1"] @ w["v_2"])
        a = sigmoid(w["a"] + token["a"] @ w["a_1"] @ w["a_2"])
        g = sigmoid(token["g"] @ w["g_1"]) @ w["g_2"]
        kappa, k = k * w["removal"], k * (1 + (a - 1) * w["replacement"])
        o, bonus = np.zeros((H, D)), np.zeros((H, D))
        for h in range(H):
            own = slice(h * D, (h + 1) * D)
            direction = kappa[own] / np.linalg.norm(kappa[own])
            S[h] = (
                decay[own][:, None] * S[h] - np.outer(a[own] * direction, direction @ S[h]) + np.outer(k[own], v[own])
            )
            o[h], bonus[h] = r[own] @ S[h], (r[own] * w["bonus"][own] * k[own]).sum() * v[own]
        want.append(((normed(o, w) + bonus.ravel()) * g) @ w["w_o"])
        last = x[t]
    got = rwkv.rwkv7_time_mix(x, w, heads=H, v_first=v_first if layer else None)[0]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)
