"""Every bad argument is refused before anything is computed: one error that names it, the same on every backend."""

import re

import numpy as np
import pytest

import refattn
from refattn import dispatch, masks
from refattn.models.files import Tensors
from refattn.models.gpt import GPT
from refattn.models.minilm import MiniLM
from refattn.models.wordpiece import WordPiece
from tests.models import tiny_bert
from tests.refused import delta, features, gated, latent, packed, rwkv, selected, sparse, ssm


def x(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


NAN, INF = float("nan"), float("inf")
Q, K, V = x(2, 4, 5, 8), x(2, 2, 7, 8), x(2, 2, 7, 6)  # 4 heads over 2, 5 queries, 7 keys
O, LSE = x(2, 4, 5, 6), x(2, 4, 5)
SEVEN = [0, 0, 0, 1, 1, 1, 1]

# what is wrong: (arguments that replace good ones, error, what the message says)
ATTENTION = {
    "q is a list": ({"q": [[0.0]]}, TypeError, "q must be an array, got list"),
    "q is None": ({"q": None}, TypeError, "q must be an array, got NoneType"),
    "q is int": ({"q": x(2, 4, 5, 8, dtype=np.int64)}, TypeError, "q has dtype int64; wanted one of float16"),
    "q is bool": ({"q": x(2, 4, 5, 8, dtype=bool)}, TypeError, "q has dtype bool"),
    "q is complex": ({"q": x(2, 4, 5, 8, dtype=complex)}, TypeError, "q has dtype complex128"),
    "q is object": ({"q": x(2, 4, 5, 8, dtype=object)}, TypeError, "q has dtype object"),
    "q is longdouble": ({"q": x(2, 4, 5, 8, dtype=np.longdouble)}, TypeError, "q has dtype"),
    "q has one axis": ({"q": x(8)}, ValueError, r"q has shape \(8,\); wanted at least 2 axes"),
    "k is int": ({"k": x(2, 2, 7, 8, dtype=np.int32)}, TypeError, "k has dtype int32"),
    "v is a number": ({"v": 1.0}, TypeError, "v must be an array, got float"),
    "dtypes differ": ({"k": x(2, 2, 7, 8, dtype=np.float32)}, TypeError, "dtypes differ.*'k': 'float32'"),
    "axes differ": ({"q": x(4, 5, 8)}, ValueError, "q, k, v have 3, 4 and 4 axes"),
    "batches differ": ({"q": x(3, 4, 5, 8)}, ValueError, "batch axes .* differ"),
    "D differs": ({"k": x(2, 2, 7, 9)}, ValueError, r"one D >= 1: q \(2, 4, 5, 8\), k \(2, 2, 7, 9\)"),
    "D is 0": ({"q": x(2, 4, 5, 0), "k": x(2, 2, 7, 0)}, ValueError, "one D >= 1"),
    "Tk of k and v differ": ({"v": x(2, 2, 6, 6)}, ValueError, "k has 7 keys and v has 6 values"),
    "heads of k and v differ": ({"v": x(2, 4, 7, 6)}, ValueError, "k and v must have the same number of heads"),
    "Hk does not divide H": ({"q": x(2, 3, 5, 8)}, ValueError, "3 query heads cannot share 2 key heads"),
    "more key heads": ({"q": x(2, 1, 5, 8)}, ValueError, "1 query heads cannot share 2"),
    "no query heads": ({"q": x(2, 0, 5, 8)}, ValueError, "0 query heads cannot share 2"),
    "no key heads": ({"k": x(2, 0, 7, 8), "v": x(2, 0, 7, 6)}, ValueError, "4 query heads cannot share 0"),
    "mask is float": ({"mask": x(5, 7)}, TypeError, r"mask is float64; wanted .*floats go to bias="),
    "mask is int": ({"mask": x(5, 7, dtype=np.int8)}, TypeError, "mask is int8"),
    "mask is a list": ({"mask": [[True] * 7] * 5}, TypeError, "mask is list"),
    "mask is text": ({"mask": "causal()"}, TypeError, "mask is str"),
    "mask is a function": ({"mask": masks.causal}, TypeError, "mask is function"),
    "mask has another shape": (
        {"mask": x(5, 6, dtype=bool)},
        ValueError,
        r"mask has shape \(5, 6\); wanted .*\(2, 4, 5, 7\)",
    ),
    "mask is transposed": ({"mask": x(7, 5, dtype=bool)}, ValueError, r"mask has shape \(7, 5\)"),
    "mask has one axis": ({"mask": x(7, dtype=bool)}, ValueError, r"mask has shape \(7,\)"),
    "mask has an axis too many": ({"mask": x(1, 2, 4, 5, 7, dtype=bool)}, ValueError, "mask has shape"),
    "mask for other heads": ({"mask": x(3, 5, 7, dtype=bool)}, ValueError, r"mask has shape \(3, 5, 7\)"),
    "mask for other sequences": ({"mask": masks.padding([1, 2, 3])}, ValueError, r"mask has shape \(3, 1, 5, 7\)"),
    "padding beyond the keys": ({"mask": masks.padding([7, 8])}, ValueError, "a length is 8, but there are 7 keys"),
    "documents of other length": ({"mask": masks.document([0] * 6)}, ValueError, "ids has 6 entries, .* 7 keys"),
    "query documents of other length": (
        {"mask": masks.causal() & masks.document(SEVEN, [0, 0])},
        ValueError,
        "there are 5 queries, but ids for 2",
    ),
    "array mask inside a combination": ({"mask": ~masks.from_array(x(5, 6, dtype=bool))}, ValueError, r"\(5, 6\)"),
    "bias is int": ({"bias": x(5, 7, dtype=np.int64)}, TypeError, "bias has dtype int64"),
    "bias is bool": ({"bias": x(5, 7, dtype=bool)}, TypeError, "bias has dtype bool"),
    "bias is a list": ({"bias": [0.0]}, TypeError, "bias must be an array"),
    "bias has another shape": ({"bias": x(4, 5, 6)}, ValueError, r"bias has shape \(4, 5, 6\)"),
    "bias has an axis too many": ({"bias": x(1, 1, 1, 1, 1)}, ValueError, "bias has shape"),
    "scale is NaN": ({"scale": NAN}, ValueError, "scale is nan; wanted a finite number"),
    "scale is beyond all floats": ({"scale": 10**400}, ValueError, "scale is an integer beyond the range of floats"),
    "scale is inf": ({"scale": INF}, ValueError, "scale is inf"),
    "scale is text": ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    "scale is a bool": ({"scale": True}, TypeError, "scale must be a number, got bool"),
    "scale is an array": ({"scale": x(4)}, TypeError, "scale must be a number, got ndarray"),
    "softcap is 0": ({"softcap": 0.0}, ValueError, "softcap is 0.0; wanted a finite number above 0"),
    "softcap is negative": ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
    "softcap is NaN": ({"softcap": NAN}, ValueError, "softcap is nan"),
    "softcap is inf": ({"softcap": INF}, ValueError, "softcap is inf"),
    "sinks of other heads": ({"sinks": x(2)}, ValueError, r"sinks has shape \(2,\); wanted \(4,\)"),
    "sinks is int": ({"sinks": x(4, dtype=int)}, TypeError, "sinks has dtype int"),
    "sinks is a number": ({"sinks": 1.0}, TypeError, "sinks must be an array"),
    "sinks has no axis": ({"sinks": x()}, ValueError, r"sinks has shape \(\)"),
    "dropout without its mask": ({"dropout_p": 0.5}, ValueError, "dropout_p is 0.5 without a dropout_mask"),
    "dropout of everything": ({"dropout_p": 1.0, "dropout_mask": x(5, 7, dtype=bool)}, ValueError, "dropout_p is 1.0"),
    "dropout_p is negative": ({"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
    "dropout_p is NaN": ({"dropout_p": NAN}, ValueError, "dropout_p is nan"),
    "dropout_p is None": ({"dropout_p": None}, TypeError, "dropout_p must be a number"),
    "dropout_mask is float": ({"dropout_mask": x(5, 7)}, TypeError, "dropout_mask must be a bool array"),
    "dropout_mask is a list": ({"dropout_mask": [True]}, TypeError, "dropout_mask must be a bool array"),
    "dropout_mask has another shape": ({"dropout_mask": x(7, 7, dtype=bool)}, ValueError, "dropout_mask has shape"),
}
COTANGENT = {
    "do has another shape": ({"do": x(2, 4, 5, 8)}, ValueError, r"do has shape .*wanted \(2, 4, 5, 6\)"),
    "do has another dtype": ({"do": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "do is int": ({"do": x(2, 4, 5, 6, dtype=int)}, TypeError, "do has dtype int"),
    "dlse has another shape": ({"dlse": x(2, 4, 5, 1)}, ValueError, r"dlse has shape .*wanted \(2, 4, 5\)"),
    "dlse is int": ({"dlse": x(2, 4, 5, dtype=int)}, TypeError, "dlse has dtype int"),
}
RESULTS = {
    "o has another shape": ({"o": x(2, 4, 5, 8)}, ValueError, "o has shape"),
    "o has another dtype": ({"o": x(2, 4, 5, 6, dtype=np.float32)}, TypeError, "dtypes differ"),
    "lse has another shape": ({"lse": x(2, 4, 5, 1)}, ValueError, "lse has shape"),
    "lse is a number": ({"lse": 0.0}, TypeError, "lse must be an array"),
}
TILES = {
    "tile_q is 0": ({"tile_q": 0}, ValueError, "tile_q is 0; wanted at least 1"),
    "tile_k is negative": ({"tile_k": -64}, ValueError, "tile_k is -64"),
    "tile_q is a float": ({"tile_q": 64.0}, TypeError, "tile_q must be an integer, got float"),
    "tile_k is a bool": ({"tile_k": True}, TypeError, "tile_k must be an integer, got bool"),
}
SPLITS = {
    "num_splits is 0": ({"num_splits": 0}, ValueError, "num_splits is 0"),
    "num_splits is text": ({"num_splits": "4"}, TypeError, "num_splits must be an integer"),
}
ROPE = {
    "x is int": ({"x": x(3, 4, dtype=int)}, TypeError, "x has dtype int"),
    "x has one axis": ({"x": x(4)}, ValueError, "x has shape"),
    "positions are floats": ({"positions": np.arange(5.0)}, TypeError, "positions is float64; wanted integers"),
    "positions are a list": ({"positions": [0, 1, 2, 3, 4]}, TypeError, "positions is list; wanted integers"),
    "positions are bools": ({"positions": x(5, dtype=bool)}, TypeError, "positions is bool"),
    "positions are too few": ({"positions": np.arange(4)}, ValueError, r"positions has shape \(4,\); wanted \(5,\)"),
    "positions of other sequences": ({"positions": np.zeros((3, 5), int)}, ValueError, r"positions has shape \(3, 5\)"),
    "theta is 0": ({"theta": 0.0}, ValueError, "theta is 0.0; wanted a finite number above 0"),
    "theta is NaN": ({"theta": NAN}, ValueError, "theta is nan"),
    "theta is None": ({"theta": None}, TypeError, "theta must be a number"),
    "rotary_dim is odd": ({"rotary_dim": 3}, ValueError, "rotary_dim is 3; wanted an even number up to D = 8"),
    "rotary_dim is too large": ({"rotary_dim": 10}, ValueError, "rotary_dim is 10"),
    "rotary_dim is negative": ({"rotary_dim": -2}, ValueError, "rotary_dim is -2"),
    "rotary_dim is a float": ({"rotary_dim": 4.0}, TypeError, "rotary_dim must be an integer"),
    "D is odd": ({"x": x(2, 4, 5, 7)}, ValueError, "rotary_dim is 7"),
}
HEADS = {
    "heads is 0": ({"heads": 0}, ValueError, "heads is 0"),
    "heads is a float": ({"heads": 4.0}, TypeError, "heads must be an integer"),
    "heads do not divide": (
        {"heads": 3},
        ValueError,
        r"w_q has shape \(12, 16\); wanted \(12, a multiple of 3 heads\)",
    ),
    "kv_heads is negative": ({"kv_heads": -1}, ValueError, "kv_heads is -1"),
    "kv_heads is 0": ({"kv_heads": 0}, ValueError, "kv_heads is 0"),
    "kv_heads do not divide H": ({"kv_heads": 3, "w_k": x(12, 12), "w_v": x(12, 12)}, ValueError, "4 query heads"),
    "x has one axis": ({"x": x(12)}, ValueError, "x has shape"),
    "x is int": ({"x": x(2, 5, 12, dtype=int)}, TypeError, "x has dtype int"),
    "w_q has another height": ({"w_q": x(11, 16)}, ValueError, r"w_q has shape \(11, 16\)"),
    "w_q has three axes": ({"w_q": x(1, 12, 16)}, ValueError, "w_q has shape"),
    "w_k of another D": ({"w_k": x(12, 20)}, ValueError, "one D >= 1"),
    "w_o has another height": ({"w_o": x(12, 9)}, ValueError, r"w_o has shape \(12, 9\)"),
    "w_o has one axis": ({"w_o": x(16)}, ValueError, "w_o has shape"),
    "w_v has another dtype": ({"w_v": x(12, 16, dtype=np.float32)}, TypeError, "dtypes differ"),
    "b_q has another length": ({"b_q": x(12)}, ValueError, r"b_q has shape \(12,\); wanted \(16,\)"),
    "b_o is int": ({"b_o": x(9, dtype=int)}, TypeError, "b_o has dtype int"),
    "context of other sequences": ({"context": x(3, 7, 12)}, ValueError, "differ in their batch axes"),
    "context of another width": ({"context": x(2, 7, 10)}, ValueError, "w_k has shape"),
    "context has one axis": ({"context": x(12)}, ValueError, "context has shape"),
    "context has another number of axes": ({"context": x(7, 12)}, ValueError, "differ in their batch axes"),
    "mask has another shape": ({"mask": x(5, 6, dtype=bool)}, ValueError, r"mask has shape \(5, 6\)"),
    "sinks of other heads": ({"sinks": x(3)}, ValueError, "sinks has shape"),
}
DO_OF_HEADS = {
    "do has another width": ({"do": x(2, 5, 12)}, ValueError, r"do has shape \(2, 5, 12\); wanted \(2, 5, 9\)"),
    "do is int": ({"do": x(2, 5, 9, dtype=int)}, TypeError, "do has dtype int"),
}

QKV = {"q": Q, "k": K, "v": V}
DO = {"do": x(2, 4, 5, 6)}
HEADS_GOOD = {"x": x(2, 5, 12), "w_q": x(12, 16), "w_k": x(12, 16), "w_v": x(12, 16), "w_o": x(16, 9), "heads": 4}
OPERATIONS = {  # operation -> (good arguments, the tables of what may be wrong with them)
    "attention": (QKV, [ATTENTION]),
    "attention_vjp": (DO | QKV, [ATTENTION, COTANGENT]),
    "flash_attention": (
        QKV,
        [ATTENTION, TILES, {"on_tile": ({"on_tile": 3}, TypeError, "on_tile must be a function")}],
    ),
    "flash_attention_vjp": (DO | QKV | {"o": O, "lse": LSE}, [ATTENTION, COTANGENT, RESULTS, TILES]),
    "attention_split_kv": (QKV, [ATTENTION, SPLITS]),
    "rope": ({"x": Q, "positions": np.arange(5)}, [ROPE]),
    "rope_vjp": ({"dy": Q, "positions": np.arange(5)}, [ROPE]),
    "multi_head_attention": (HEADS_GOOD, [HEADS]),
    "multi_head_attention_vjp": ({"do": x(2, 5, 9)} | HEADS_GOOD, [HEADS, DO_OF_HEADS]),
}
for kind in (sparse, selected, packed, latent, gated, delta, features, ssm, rwkv):
    OPERATIONS |= kind.OPERATIONS
CALLS = [
    pytest.param(operation, good, *entry, id=f"{operation}: {what}")
    for operation, (good, tables) in OPERATIONS.items()
    for table in tables
    for what, entry in table.items()
]


def refusal(operation, arguments, error, backend):
    with pytest.raises(error) as caught:
        getattr(refattn, operation)(**arguments, backend=backend)
    return str(caught.value)


@pytest.mark.parametrize(("operation", "good", "bad", "error", "says"), CALLS)
def test_refused_the_same_on_every_backend(operation, good, bad, error, says, loopback):
    if operation == "rope_vjp" and "x" in bad:
        bad, says = {"dy": bad["x"]}, says.replace("x has", "(x|dy) has")
    wanted = refusal(operation, good | bad, error, "numpy")
    assert wanted.startswith(f"{operation}: ")
    assert re.search(says, wanted), wanted
    for backend in dispatch.backends():
        assert refusal(operation, good | bad, error, backend) == wanted
    assert loopback.calls == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_good_arguments_are_good(operation):
    good, _ = OPERATIONS[operation]
    result = getattr(refattn, operation)(**good)
    assert result is not None


def test_every_operation_has_its_bad_inputs():
    assert set(dispatch.OPERATIONS) == {*OPERATIONS, "merge_attention"}


@pytest.mark.parametrize("backend", dispatch.backends())
@pytest.mark.parametrize(
    ("parts", "sinks", "error", "says"),
    [
        ((), None, ValueError, "there are no parts"),
        ((O,), None, TypeError, r"part 0 is ndarray; wanted a pair \(o, lse\)"),
        (((O, LSE), (O,)), None, TypeError, "part 1 is tuple"),
        (((O, LSE), (x(2, 4, 5, 7), LSE)), None, ValueError, r"parts\[1\].o has shape \(2, 4, 5, 7\)"),
        (((O, LSE), (O, x(2, 4, 6))), None, ValueError, r"parts\[1\].lse has shape \(2, 4, 6\)"),
        (((O, LSE), (O.astype(np.float32), LSE)), None, TypeError, "dtypes differ"),
        (((O.astype(int), LSE),), None, TypeError, r"parts\[0\].o has dtype int64"),
        (((O, 0.0),), None, TypeError, r"parts\[0\].lse must be an array"),
        (((O, LSE),), x(3), ValueError, r"sinks has shape \(3,\); wanted \(4,\)"),
        (((O, LSE),), x(4, dtype=int), TypeError, "sinks has dtype int"),
    ],
)
def test_merge_refuses(parts, sinks, error, says, backend):
    with pytest.raises(error, match=says) as caught:
        refattn.merge_attention(*parts, sinks=sinks, backend=backend)
    assert str(caught.value).startswith("merge_attention: ")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: masks.window(-1, 0), ValueError, "window: left is -1; wanted at least 0"),
        (lambda: masks.window(0, -3), ValueError, "window: right is -3"),
        (lambda: masks.window(1.5, 0), TypeError, "window: left must be an integer, got float"),
        (lambda: masks.window(True, 0), TypeError, "window: left must be an integer, got bool"),
        (lambda: masks.causal(0.5), TypeError, "causal: offset has dtype float64; wanted integers"),
        (lambda: masks.causal("0"), TypeError, "causal: offset has dtype"),
        (lambda: masks.padding([3, -1]), ValueError, "padding: lengths holds -1; wanted 0 or more"),
        (lambda: masks.padding([0.5]), TypeError, "padding: lengths has dtype float64"),
        (lambda: masks.document(3), ValueError, r"document: ids has shape \(\); wanted at least 1 axes"),
        (lambda: masks.document([0.5]), TypeError, "document: ids has dtype float64"),
        (lambda: masks.document([[0, 1]], [0]), ValueError, "document: ids .* and query_ids .* differ in batch"),
        (lambda: masks.global_tokens([-1]), ValueError, "global_tokens: indices is"),
        (lambda: masks.global_tokens([[1]]), ValueError, "global_tokens: indices is"),
        (lambda: masks.global_tokens([1.0]), TypeError, "global_tokens: indices has dtype float64"),
        (lambda: masks.from_array([[1, 0]]), TypeError, "mask has dtype int64; wanted bool"),
        (lambda: masks.from_array([[0.0]]), TypeError, "floats go to bias="),
        (lambda: masks.from_array([True]), ValueError, r"mask has shape \(1,\)"),
        (lambda: masks.from_function(3), TypeError, "from_function: wanted a function"),
        (lambda: masks.causal() & True, TypeError, "unsupported operand"),
        (lambda: masks.causal() | np.ones((2, 2), bool), TypeError, "."),
        (lambda: masks.causal().blocks(4, 4, 0, 4), ValueError, "block_q is 0"),
        (lambda: masks.causal().blocks(4, 4, 4, 2.0), TypeError, "block_k must be an integer"),
        (lambda: masks.causal().picture(4, 4, width=0), ValueError, "width is 0"),
        (lambda: masks.padding([1]).to_scipy(2, 2), ValueError, "leading axes"),
        (lambda: masks.from_function(lambda i, j: i - j).dense(2, 2), TypeError, "the function returned int64"),
        (lambda: masks.from_function(lambda i, j: j <= i.T).dense(2, 3), ValueError, "from_function: "),
        (lambda: refattn.alibi_slopes(0), ValueError, "alibi_slopes: heads is 0"),
        (lambda: refattn.alibi_slopes(8.0), TypeError, "alibi_slopes: heads must be an integer"),
        (lambda: refattn.alibi_bias(np.array([1]), 2, 2), TypeError, "alibi_bias: slopes has dtype int64"),
        (lambda: refattn.alibi_bias(x(), 2, 2), ValueError, r"alibi_bias: slopes has shape \(\)"),
        (lambda: refattn.alibi_bias(x(2, 2), 2, 2), ValueError, "alibi_bias: slopes has shape"),
        (lambda: refattn.alibi_bias(x(2), -1, 2), ValueError, "alibi_bias: Tq is -1"),
        (lambda: refattn.KVCache((), 0, 4, 2), ValueError, "KVCache: kv_heads is 0"),
        (lambda: refattn.KVCache((), 1, 4.0, 2), TypeError, "KVCache: capacity must be an integer"),
        (lambda: refattn.KVCache((), 1, 4, 2, dtype=int), TypeError, "KVCache: .*dtype"),
    ],
)
def test_values_are_refused_where_they_are_made(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.fixture
def model(tmp_path):
    return tiny_bert.write(tmp_path / "model")


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_good_model_loads(model):
    assert MiniLM.load(model).embed(["hello"]).shape == (1, 12)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_cut_safetensors_file_is_refused(model, share):
    cut(model / "model.safetensors", share)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file, or cut short"):
        MiniLM.load(model)


def test_noise_instead_of_safetensors_is_refused(tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(ValueError, match="noise: not a safetensors file"):
        Tensors(tmp_path / "noise")


def test_a_cut_tokenizer_is_refused(tmp_path, model):
    (model / "vocab.txt").write_text("\n".join(tiny_bert.VOCABULARY[:3]))
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        WordPiece.load(model)
    (model / "vocab.txt").unlink()
    (model / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "[UN')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not JSON, or cut short"):
        WordPiece.load(model)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_cut_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "gpt.npz"
    GPT.bundled().save(path)
    assert GPT.load(path).config == GPT.bundled().config
    cut(path, share)
    with pytest.raises(ValueError, match=r"gpt\.npz is no checkpoint of a GPT, or a damaged one"):
        GPT.load(path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04" + bytes(50)])
def test_a_corrupt_npz_is_refused_by_the_command(tmp_path, capsys, content):
    from refattn.cli import main

    path = tmp_path / "inputs.npz"
    path.write_bytes(content)
    assert main(["compare", "--npz", str(path)]) == 2
    assert "inputs.npz" in capsys.readouterr().err
