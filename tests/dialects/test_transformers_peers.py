"""The dialect of Transformers against the installed transformers, on random options and at the edges."""

import inspect
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from refattn.dialects import transformers as dialect

pytestmark = pytest.mark.peers

BACKENDS = ("numpy", "numba")
TOLERANCE = {"float64": 1e-6, "float32": 3e-6, "float16": 5e-3}  # the library's softmax is float32 at best
MODELS = {
    "llama": dialect.eager_attention_forward,
    "gemma2": dialect.gemma2_eager_attention_forward,
    "gpt_oss": dialect.gpt_oss_eager_attention_forward,
}


@pytest.fixture(scope="module")
def theirs():
    """The library's functions by model, its masking module, and torch."""
    torch = pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")
    pytest.importorskip("transformers", reason="transformers is not installed: python -m pip install transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library's imports deprecate
        from transformers import masking_utils
        from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
        from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss
        from transformers.models.llama.modeling_llama import eager_attention_forward as llama
        from transformers.models.llama.modeling_llama import repeat_kv
    return SimpleNamespace(
        llama=llama, gemma2=gemma2, gpt_oss=gpt_oss, repeat_kv=repeat_kv, masks=masking_utils, torch=torch
    )


def same(theirs, model, module, arrays, options, tolerance=3e-6):
    """Hold output and weights of each backend against the library's."""
    torch = theirs.torch
    tensors = [None if x is None else torch.from_numpy(x) for x in arrays]
    sinks = None if module.sinks is None else torch.from_numpy(module.sinks)
    layer = SimpleNamespace(
        num_key_value_groups=module.num_key_value_groups, head_dim=module.head_dim, sinks=sinks, training=False
    )
    want = [x.numpy() for x in getattr(theirs, model)(layer, *tensors, **options)]
    for backend in BACKENDS:
        ours = MODELS[model](module, *arrays, **options, backend=backend)
        for got, expected in zip(ours, want, strict=True):
            assert got.shape == expected.shape and got.dtype == expected.dtype
            np.testing.assert_allclose(
                got.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=backend
            )


def draw(seed, dtype, model):
    """Random arrays, a random mask of the library's kind, a layer."""
    rng = np.random.default_rng(seed)
    B, Hk, G, D, Dv = (int(rng.integers(1, n)) for n in (4, 4, 4, 17, 17))
    Tq, Tk = int(rng.integers(1, 40)), int(rng.integers(1, 40))
    q, k, v = (
        rng.standard_normal((B, h, t, d)).astype(dtype) for h, t, d in ((Hk * G, Tq, D), (Hk, Tk, D), (Hk, Tk, Dv))
    )
    lowest = np.finfo(dtype).min
    masks = [None, np.where(rng.random((B, 1, Tq, Tk)) < 0.4, 0, lowest), rng.standard_normal((1, Hk * G, 1, Tk))]
    mask = masks[seed % 3]
    sinks = rng.standard_normal(Hk * G).astype(dtype) if model == "gpt_oss" else None
    options = {"scaling": float(rng.uniform(-0.4, 0.4))}  # beyond scores of 16, float16 rounds them beside -65504
    if model == "gemma2":
        options = {"softcap": 2.0, "scaling": None if seed % 2 else options["scaling"]}
    module = dialect.Module(num_key_value_groups=G, head_dim=7, sinks=sinks)
    return module, (q, k, v, None if mask is None else mask.astype(dtype)), options


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(12))
def test_random_options(theirs, seed, model, dtype):
    module, arrays, options = draw(seed, dtype, model)
    same(theirs, model, module, arrays, options, TOLERANCE[dtype])


def edge_cases():
    rng = np.random.default_rng(5)
    for dtype in (np.float64, np.float32, np.float16):
        q, k, v = (rng.standard_normal((1, 2, t, 4)).astype(dtype) for t in (2, 3, 3))
        lowest = np.finfo(dtype).min
        for name, row in (("lowest", [lowest] * 3), ("-inf", [-np.inf] * 3), ("some", [lowest, -np.inf, lowest])):
            yield f"{np.dtype(dtype)} {name}", (q, k, v, np.array([row, [0, lowest, 0]], dtype)[None, None])
        hidden = np.array([0, 0, lowest], dtype)[None, None, None]
        for place, value in (("v", np.nan), ("v", np.inf), ("k", np.nan)):
            arrays = {"q": q, "k": k.copy(), "v": v.copy()}
            arrays[place][0, :, 2, 0] = value
            yield f"{np.dtype(dtype)} hidden {place} is {value}", (*arrays.values(), hidden)
        yield f"{np.dtype(dtype)} bool", (q, k, v, np.array([True, False, True])[None, None, None])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arrays", [arrays for _, arrays in edge_cases()], ids=[name for name, _ in edge_cases()])
def test_edges(theirs, arrays, model):
    dtype = arrays[0].dtype
    module = dialect.Module(head_dim=4, sinks=np.array([0.5, -1], dtype) if model == "gpt_oss" else None)
    options = {"scaling": 0.5} | ({"softcap": 3.0} if model == "gemma2" else {})
    same(theirs, model, module, arrays, options, TOLERANCE[str(dtype)])


MASKS = {
    "causal": (lambda m: m.causal_mask_function, {}),
    "causal with a cache": (lambda m: m.causal_mask_function, {"q_offset": 4}),
    "keys from the middle": (lambda m: m.causal_mask_function, {"q_offset": 6, "kv_offset": 2}),
    "sliding": (lambda m: m.sliding_window_causal_mask_function(3), {"q_offset": 1}),
    "both sides": (lambda m: m.sliding_window_bidirectional_mask_function(2), {}),
    "padded": (lambda m: m.causal_mask_function, {"attention_mask": np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]) == 1}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("mask", MASKS)
def test_eager_mask(theirs, mask, dtype):
    choose, options = MASKS[mask]
    given = {name: theirs.torch.from_numpy(x) if hasattr(x, "dtype") else x for name, x in options.items()}
    want = theirs.masks.eager_mask(
        2, 5, 7, **given, mask_function=choose(theirs.masks), dtype=getattr(theirs.torch, dtype)
    )
    got = dialect.eager_mask(2, 5, 7, **options, mask_function=choose(dialect), dtype=dtype)
    np.testing.assert_array_equal(got, want.numpy(), strict=True)


def test_lowest_of_bfloat16(theirs):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    mask = dialect.eager_mask(1, 1, 2, dtype=ml_dtypes.bfloat16)
    assert float(mask[0, 0, 0, 1]) == theirs.torch.finfo(theirs.torch.bfloat16).min


def test_repeat_kv(theirs):
    x = np.arange(48.0).reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(dialect.repeat_kv(x, 2), theirs.repeat_kv(theirs.torch.from_numpy(x), 2).numpy())


def refused():
    q, k = np.zeros((1, 4, 2, 3)), np.zeros((1, 2, 5, 3))
    yield "groups", (q, k, k, None), 1
    yield "mask too long", (q, k, k, np.zeros((1, 1, 2, 6))), 2
    yield "widths", (q, k[..., :2], k, None), 2
    yield "values", (q, k, k[:, :, :4], None), 2
    yield "dtypes", (q, k.astype(np.float32), k, None), 2
    yield "three axes of keys", (q, k[0], k[0], None), 2


@pytest.mark.parametrize(("arrays", "groups"), [case[1:] for case in refused()], ids=[case[0] for case in refused()])
def test_both_refuse(theirs, arrays, groups):
    module = dialect.Module(num_key_value_groups=groups)
    tensors = [None if x is None else theirs.torch.from_numpy(x) for x in arrays]
    with pytest.raises((RuntimeError, ValueError)):
        theirs.llama(module, *tensors, scaling=1.0)
    with pytest.raises((TypeError, ValueError), match=r"^eager_attention_forward: "):
        dialect.eager_attention_forward(module, *arrays, scaling=1.0)


@pytest.mark.parametrize("model", MODELS)
def test_signature(theirs, model):
    library = inspect.signature(getattr(theirs, model)).parameters
    ours = inspect.signature(MODELS[model]).parameters
    assert {name: p.default for name, p in library.items() if name != "kwargs"} == {
        name: p.default for name, p in ours.items() if name not in ("dropout_mask", "backend")
    }
    assert [name for name in library if name != "kwargs"] == list(ours)[:-2]


def test_dropout_drops_what_the_library_would(theirs):
    """With the weights that torch's generator keeps, read off the library's own weights, the outputs are the same."""
    torch, rng = theirs.torch, np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 2, t, 4)) for t in (3, 5, 5))
    module = dialect.Module(training=True)
    torch.manual_seed(7)
    want, weights = theirs.llama(module, *map(torch.from_numpy, (q, k, v)), None, 0.5, dropout=0.4)
    keep = weights.numpy() != 0
    assert keep.any() and not keep.all()
    for backend in BACKENDS:
        got = dialect.eager_attention_forward(module, q, k, v, None, 0.5, 0.4, dropout_mask=keep, backend=backend)
        np.testing.assert_allclose(got[0], want.numpy(), atol=1e-6)
        np.testing.assert_allclose(got[1], weights.numpy(), atol=1e-6)
