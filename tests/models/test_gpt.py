import dataclasses
import hashlib
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.models import corpus
from refattn.models.block import block, block_vjp
from refattn.models.gpt import GPT, Config
from refattn.models.sampling import pick
from refattn.models.train import AdamW, held_out_loss, initial, learning_rate, loss_and_gradients, windows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = Config("abcdefg", layers=2, width=8, heads=4, kv_heads=2, head_dim=4, hidden=6, context=5, theta=100.0)


@pytest.fixture(scope="module")
def bundled():
    return GPT.bundled()


def tiny(dtype=np.float64, **changes):
    """A small network whose gains are not all one."""
    gpt = initial(dataclasses.replace(TINY, **changes), seed=3, dtype=dtype)
    rng = np.random.default_rng(4)
    for x in gpt.parameters.values():
        if x.ndim == 1:
            x += rng.normal(0, 0.3, x.shape)
    return gpt


def some_tokens(*shape, seed=5, high=7):
    return np.random.default_rng(seed).integers(0, high, shape)


# gradients


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_gradient_is_central_differences(tied):
    gpt, tokens = tiny(tied=tied), some_tokens(2, 8)  # longer than the context: the window's border counts
    loss, gradients = loss_and_gradients(gpt, tokens)
    assert loss == pytest.approx(gpt.loss(tokens), rel=1e-12)
    assert gradients.keys() == gpt.parameters.keys()
    for name, x in gpt.parameters.items():
        expected = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            kept = x[place]
            x[place] = kept + 1e-5
            up = gpt.loss(tokens)
            x[place] = kept - 1e-5
            expected[place] = (up - gpt.loss(tokens)) / 2e-5
            x[place] = kept
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_block_and_its_derivative_agree_in_dot_products():
    gpt, rng = tiny(), np.random.default_rng(6)
    w, positions, x = gpt.layer(0), np.arange(7), rng.normal(size=(2, 7, 8))
    y, saved = block(x, w, gpt.config, positions)
    dy = rng.normal(size=y.shape)
    dx, dw = block_vjp(dy, saved, w, gpt.config, positions)
    direction = {name: rng.normal(size=a.shape) for name, a in w.items()}
    along = rng.normal(size=x.shape)
    step = 1e-6
    ends = [
        block(x + s * along, {n: a + s * direction[n] for n, a in w.items()}, gpt.config, positions)[0]
        for s in (step, -step)
    ]
    forwards = np.vdot(dy, (ends[0] - ends[1]) / (2 * step))
    backwards = np.vdot(dx, along) + sum(np.vdot(dw[n], direction[n]) for n in w)
    assert forwards == pytest.approx(backwards, rel=1e-7)


def test_gradients_in_float32_are_those_in_float64():
    tokens = some_tokens(2, 8)
    _, exact = loss_and_gradients(tiny(), tokens)
    _, single = loss_and_gradients(tiny(np.float32), tokens)
    for name, g in single.items():
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, exact[name], rtol=1e-3, atol=1e-5, err_msg=name)


# inference


@pytest.mark.parametrize("parts", [[8], [1] * 8, [3, 5], [7, 1]])
def test_decoding_with_a_cache_is_one_pass(parts):
    gpt, tokens = tiny(), some_tokens(2, 8)
    cache = gpt.new_cache(8, batch=(2,))
    pieces = np.split(tokens, np.cumsum(parts)[:-1], axis=-1)
    parted = np.concatenate([gpt.logits(piece, cache=cache) for piece in pieces], axis=-2)
    np.testing.assert_allclose(parted, gpt.logits(tokens), rtol=1e-12, atol=1e-12)
    assert [len(layer) for layer in cache] == [8, 8]


def test_a_token_sees_neither_the_future_nor_beyond_the_layers_windows():
    gpt, tokens = tiny(layers=1), some_tokens(10)
    changed = tokens.copy()
    changed[4] = (changed[4] + 1) % 7
    differs = (gpt.logits(tokens) != gpt.logits(changed)).any(axis=-1)
    assert differs.tolist() == [False] * 4 + [True] * 5 + [False]  # 4 to 8 look back to 4


def test_only_distances_matter():
    """Rotary positions: a text further on in a longer one, out of the windows' reach, gives the same logits."""
    gpt, tokens = tiny(), some_tokens(30)
    last = gpt.logits(tokens)[-1]
    np.testing.assert_allclose(gpt.logits(tokens[-9:])[-1], last, rtol=1e-10)  # 2 layers reach back 2 * 4
    assert not np.allclose(gpt.logits(tokens[-8:])[-1], last, rtol=1e-10)


def test_batches_are_independent():
    gpt, tokens = tiny(), some_tokens(3, 6)
    np.testing.assert_allclose(gpt.logits(tokens)[1], gpt.logits(tokens[1]), rtol=1e-12)


def test_every_operation_of_attention_goes_to_the_backend():
    class Loop:
        def __init__(self):
            self.called = []

        def __getattr__(self, name):
            if name not in ("attention", "attention_vjp", "rope", "rope_vjp"):
                raise AttributeError(name)

            def call(*args, **kwargs):
                self.called.append(name)
                return getattr(refattn, name)(*args, backend="numpy", **kwargs)

            return call

    gpt, tokens, loop = tiny(), some_tokens(6), Loop()
    refattn.register("loop", loop)
    try:
        np.testing.assert_array_equal(gpt.logits(tokens, backend="loop"), gpt.logits(tokens))
        assert loop.called == ["rope", "rope", "attention"] * 2
        with refattn.use_backend("loop"):
            assert gpt.loss(tokens) == gpt.loss(tokens, backend="numpy")
        assert len(loop.called) == 12
        loss_and_gradients(gpt, tokens, backend="loop")
        assert loop.called[18:] == ["attention_vjp", "rope_vjp", "rope_vjp"] * 2
        assert gpt.generate("abc", 4, backend="loop") == gpt.generate("abc", 4)
    finally:
        refattn.unregister("loop")


@pytest.mark.skipif("numba" not in refattn.backends(), reason="the numba backend is not installed")
def test_numba_computes_the_same(bundled):
    tokens = bundled.encode(corpus.text()[:301])
    np.testing.assert_allclose(bundled.logits(tokens, backend="numba"), bundled.logits(tokens), rtol=1e-3, atol=1e-3)
    loss, gradients = loss_and_gradients(bundled, tokens[:101])
    other, others = loss_and_gradients(bundled, tokens[:101], backend="numba")
    assert other == pytest.approx(loss, rel=1e-5)
    for name, g in gradients.items():
        np.testing.assert_allclose(others[name], g, rtol=1e-2, atol=1e-4 * np.abs(g).max(), err_msg=name)


def test_attention_inputs_are_what_attention_receives(bundled):
    received = []

    class Ear:
        rope = staticmethod(lambda *args, **kwargs: refattn.rope(*args, backend="numpy", **kwargs))

        @staticmethod
        def attention(q, k, v, **kwargs):
            received.append((q, k, v))
            return refattn.attention(q, k, v, backend="numpy", **kwargs)

    tokens = bundled.encode(corpus.text()[:40])
    refattn.register("ear", Ear)
    try:
        bundled.logits(tokens, backend="ear")
    finally:
        refattn.unregister("ear")
    for layer, inputs in enumerate(received):
        given = bundled.attention_inputs(tokens, layer)
        assert all(np.array_equal(x, y) and x.dtype == np.float32 for x, y in zip(given, inputs, strict=True))
    c = bundled.config
    assert len(received) == c.layers
    assert [x.shape for x in given] == [(n, 40, c.head_dim) for n in (c.heads, c.kv_heads, c.kv_heads)]


# generation


def test_greedy_takes_the_likeliest(bundled):
    prompt = "def attention("
    written = bundled.generate(prompt, 30)
    expected = bundled.logits(bundled.encode(prompt + written))[len(prompt) - 1 : -1].argmax(axis=-1)
    assert written == bundled.decode(expected)
    assert written == bundled.generate(prompt, 30, seed=1) == bundled.generate(prompt, 30, temperature=0.7, top_k=1)


def test_a_seed_gives_one_text(bundled):
    texts = [bundled.generate("# ", 40, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 40


def test_generation_goes_on_beyond_the_context():
    gpt, seen = tiny(np.float32), []
    written = gpt.generate("abc", 20, temperature=1.0, on_character=seen.append)
    assert written == "".join(seen) and len(written) == 20
    z = gpt.logits(gpt.encode("abc" + written))
    assert np.isfinite(z).all()
    assert gpt.generate("abc", 0) == ""


def test_more_than_the_cache_holds_is_refused_and_changes_nothing():
    gpt, tokens = tiny(), some_tokens(7)
    cache = gpt.new_cache(6)
    gpt.logits(tokens[:4], cache=cache)
    with pytest.raises(ValueError, match="3 tokens do not fit: 4 of 6 places are taken"):
        gpt.logits(tokens[4:], cache=cache)
    assert [len(layer) for layer in cache] == [4, 4]
    np.testing.assert_allclose(gpt.logits(tokens[4:6], cache=cache), gpt.logits(tokens[:6])[4:], rtol=1e-12)


def test_sampling_follows_the_softmax():
    z, rng = np.log(np.array([0.5, 0.1, 0.4])), np.random.default_rng(0)
    drawn = np.bincount([pick(z, 1.0, None, rng) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.1, 0.4], atol=0.03)
    cold = np.bincount([pick(z, 0.5, 2, rng) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(cold, [25 / 41, 0, 16 / 41], atol=0.03)  # squared, and the rarest is out


# bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g: g.generate(""), ValueError, "prompt '';"),
        (lambda g: g.generate("a€"), ValueError, r"character '€' \(EURO SIGN\) at 1 is not in the vocabulary"),
        (lambda g: g.generate("a\0"), ValueError, r"character '\\x00' \(unnamed\) at 1"),
        (lambda g: g.generate("a", -1), ValueError, "tokens is -1; wanted at least 0"),
        (lambda g: g.generate("a", 1.5), TypeError, "tokens must be an integer, got float"),
        (lambda g: g.generate("a", temperature=-1.0), ValueError, "temperature is -1.0"),
        (lambda g: g.generate("a", temperature=float("nan")), ValueError, "temperature is nan"),
        (lambda g: g.generate("a", top_k=0), ValueError, "top_k is 0; wanted at least 1"),
        (lambda g: g.generate("a", seed=-1), ValueError, "seed is -1; wanted at least 0"),
        (lambda g: g.generate("a", backend="nowhere"), LookupError, "no backend 'nowhere'"),
        (lambda g: g.logits(np.array([0, 7])), ValueError, "logits: tokens reach from 0 to 7; wanted 0 to 6"),
        (lambda g: g.logits(np.array([-1, 3])), ValueError, "logits: tokens reach from -1 to 3"),
        (lambda g: g.logits(np.array([0.0])), TypeError, "logits: tokens must be an integer array"),
        (lambda g: g.logits([1, 2]), TypeError, "logits: tokens must be an integer array"),
        (lambda g: g.logits(np.array(1)), TypeError, "of one axis at least"),
        (lambda g: g.logits(np.array([1]), cache=g.new_cache(3)[:1]), ValueError, "cache has 1 layers; wanted 2"),
        (lambda g: g.decode(np.array([9])), ValueError, "decode: tokens reach from 9 to 9"),
        (lambda g: g.loss(np.array([1])), ValueError, r"loss: tokens has shape \(1,\); wanted at least 2"),
        (lambda g: loss_and_gradients(g, np.array([1])), ValueError, r"tokens has shape \(1,\); wanted at least 2"),
        (lambda g: g.attention_inputs(np.array([1]), 2), ValueError, "layer is 2; wanted one below 2"),
        (lambda g: g.attention_inputs(np.array([1]), -1), ValueError, "layer is -1; wanted at least 0"),
        (lambda g: loss_and_gradients(g, np.array([1, -1])), ValueError, "tokens reach from -1 to 1"),
        (lambda g: held_out_loss(g, np.zeros(5, int)), ValueError, "there are 5 tokens; wanted more than 5"),
        (lambda g: windows(np.zeros(5, int), 1, 6, None), ValueError, "there are 5 tokens; wanted 6 at least"),
        (lambda g: dataclasses.replace(TINY, kv_heads=3), ValueError, "heads is 4, kv_heads 3"),
        (lambda g: dataclasses.replace(TINY, head_dim=3), ValueError, "head_dim 3; wanted .* an even head_dim"),
        (lambda g: dataclasses.replace(TINY, layers=0), ValueError, "layers is 0; wanted at least 1"),
        (lambda g: dataclasses.replace(TINY, vocabulary="aa"), ValueError, "vocabulary must be a string of different"),
        (lambda g: GPT(g.config, {}), ValueError, "parameters are missing"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(tiny())


def test_an_empty_text_has_no_logits():
    gpt = tiny()
    assert gpt.encode("").shape == (0,)
    assert gpt.logits(gpt.encode("")).shape == (0, 7)


# checkpoints


def test_a_checkpoint_comes_back(tmp_path):
    gpt = tiny(np.float32)
    gpt.record = {"steps": 3}
    gpt.save(tmp_path / "some name")
    again = GPT.load(str(tmp_path / "some name"))
    assert again.config == gpt.config and again.record == gpt.record
    for name, x in gpt.parameters.items():
        assert np.array_equal(again.parameters[name], x.astype(np.float16).astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["some name"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_what_float16_cannot_hold_is_not_saved_over_the_old_file(tmp_path, value):
    gpt = tiny(np.float32)
    gpt.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    gpt.parameters["norm"][0] = value
    with pytest.raises(ValueError, match="norm has entries that float16 cannot hold"):
        gpt.save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def stored(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def changed_config(arrays, **changes):
    return {**arrays, "config": np.array(json.dumps({**json.loads(str(arrays["config"])), **changes}))}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: changed_config(a, vocabulary="abcdefgh"), r"embedding has shape \(7, 8\); wanted \(8, 8\)"),
        (lambda a: changed_config(a, vocabulary="abcdefa"), "vocabulary must be a string of different characters"),
        (lambda a: changed_config(a, vocabulary=7), "vocabulary must be a string"),
        (lambda a: changed_config(a, layers=3), "parameters are missing.*layers.2"),
        (lambda a: changed_config(a, layers=1), "or unknown.*layers.1"),
        (lambda a: changed_config(a, colour="red"), "no checkpoint.*colour"),
        (lambda a: {**a, "config": np.array("{")}, "no checkpoint of a GPT, or a damaged one"),
        (lambda a: {**a, "config": np.array("[]")}, "no checkpoint of a GPT, or a damaged one"),
        (lambda a: {**a, "record": np.array("7")}, "no checkpoint of a GPT, or a damaged one"),
        (lambda a: {name: x for name, x in a.items() if name != "config"}, "no checkpoint of a GPT"),
        (lambda a: {name: x for name, x in a.items() if name != "norm"}, "parameters are missing.*norm"),
        (lambda a: {**a, "norm": a["norm"][:3]}, r"norm has shape \(3,\); wanted \(8,\)"),
        (lambda a: {**a, "norm": a["norm"] * np.float16(np.nan)}, "norm holds NaN or infinity"),
        (lambda a: {**a, "norm": a["norm"].astype(str)}, "norm has dtype <U32; wanted float16"),
        (lambda a: {**a, "norm": a["norm"] + 1j}, "norm has dtype complex64; wanted float16"),
    ],
)
def test_a_wrong_checkpoint_is_refused(tmp_path, damage, message):
    path = tmp_path / "a.npz"
    tiny(np.float32).save(path)
    arrays = damage(stored(path))
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        GPT.load(path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    tiny(np.float32).save(path)
    whole = path.read_bytes()
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="is no checkpoint of a GPT, or a damaged one"):
            GPT.load(path)
    for n in range(60, len(whole), 97):  # a flipped bit is found, or it changes nothing that is read
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0x10]) + whole[n + 1 :])
        try:
            again = GPT.load(path)
        except ValueError:
            continue
        assert all(np.array_equal(again.parameters[m], x.astype(np.float16)) for m, x in tiny().parameters.items())
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is no checkpoint of a GPT"):
        GPT.load(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        GPT.load(tmp_path / "absent.npz")


def test_the_bundled_checkpoint_beats_both_baselines(bundled):
    text = corpus.text()
    assert bundled.record["corpus_sha256"] == hashlib.sha256(text.encode()).hexdigest(), "train again after freezing"
    assert bundled.config.vocabulary == corpus.vocabulary(text)
    train, held_out = corpus.split(text)
    asked = held_out[:20_000]
    loss = held_out_loss(bundled, bundled.encode(asked))
    assert len(asked) > 10_000
    assert loss < 0.8 * corpus.bigram_loss(train, asked) < corpus.unigram_loss(train, asked)
    assert loss == pytest.approx(bundled.record["held_out"], rel=0.2)  # which is of all that was held out


def test_the_bundled_checkpoint_is_small():
    path = Path(refattn.__file__).parent / "models" / "data" / "gpt.npz"
    assert path.stat().st_size <= 1_500_000
    assert {x.dtype.name for name, x in stored(path).items() if name not in ("config", "record")} == {"float16"}


# training


def test_adamw_is_the_papers_recurrence():
    rng = np.random.default_rng(0)
    x = {"w": rng.normal(size=(2, 3)), "gain": rng.normal(size=3)}
    expected = {name: a.copy() for name, a in x.items()}
    m, v = ({name: np.zeros_like(a) for name, a in x.items()} for _ in range(2))
    optimizer = AdamW(x, betas=(0.8, 0.9), eps=1e-3, decay=0.1, clip=1e9)
    for n in range(1, 6):
        g = {name: rng.normal(size=a.shape) for name, a in x.items()}
        optimizer.step(g, 0.01 * n)
        for name, decay in (("w", 0.1), ("gain", 0.0)):
            m[name] = 0.8 * m[name] + 0.2 * g[name]
            v[name] = 0.9 * v[name] + 0.1 * g[name] ** 2
            move = m[name] / (1 - 0.8**n) / (np.sqrt(v[name] / (1 - 0.9**n)) + 1e-3)
            expected[name] = expected[name] - 0.01 * n * (move + decay * expected[name])
    for name in x:
        np.testing.assert_allclose(x[name], expected[name], rtol=1e-12)


def test_large_gradients_are_scaled_to_the_clip():
    x, y = {"w": np.ones((1, 2))}, {"w": np.ones((1, 2))}
    AdamW(x, eps=1.0, clip=1.0).step({"w": np.array([[30.0, 40.0]])}, 0.1)
    AdamW(y, eps=1.0, clip=1e9).step({"w": np.array([[0.6, 0.8]])}, 0.1)
    np.testing.assert_allclose(x["w"], y["w"], rtol=1e-12)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(p, peak=2.0, warm_up=0.1, floor=0.1) for p in np.linspace(0, 1.2, 121)]
    assert rates[0] == 0 and max(rates) == rates[10] == 2.0
    assert np.all(np.diff(rates[10:101]) < 0)
    np.testing.assert_allclose(rates[100:], 0.2)


def test_held_out_loss_asks_for_each_token_once():
    gpt, tokens = tiny(), some_tokens(18)  # three runs of five, and a remainder
    by_hand = np.mean([gpt.loss(tokens[n : n + 6]) for n in (0, 5, 10)])
    assert held_out_loss(gpt, tokens, batch=2) == pytest.approx(by_hand, rel=1e-12)


def run_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_training_example_learns_and_can_be_repeated(tmp_path, capsys):
    example = run_example("train_gpt")
    options = ["--steps", "8", "--batch", "1", "--backend", "numpy", "--asked", "1000"]
    losses = [example.main([*options, "--out", str(tmp_path / name)]) for name in ("1.npz", "2.npz")]
    assert losses[0]["held_out"] < losses[0]["before"] - 0.5
    assert losses[0] == losses[1]
    out = capsys.readouterr().out
    assert all(word in out for word in ("unigram", "bigram", "8 steps"))
    first, second = (GPT.load(tmp_path / name) for name in ("1.npz", "2.npz"))
    assert all(np.array_equal(x, second.parameters[name]) for name, x in first.parameters.items())
    assert first.record["steps"] == 8


def test_the_training_example_stops_in_time_and_at_ctrl_c(tmp_path, monkeypatch, capsys):
    example = run_example("train_gpt")
    options = ["--batch", "1", "--backend", "numpy", "--asked", "1000", "--out", str(tmp_path / "a.npz")]
    start = time.monotonic()
    example.main(["--seconds", "1", *options])
    assert time.monotonic() - start < 30
    calls, gradients = [], loss_and_gradients

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return gradients(*args, **kwargs)

    monkeypatch.setattr(example, "loss_and_gradients", interrupted)
    example.main(options)
    assert "interrupted after 4 steps" in capsys.readouterr().out
    assert GPT.load(tmp_path / "a.npz").record["steps"] == 4


def test_the_generation_example_runs():
    example = run_example("generate_text")
    assert len(example.drawn) == 80
