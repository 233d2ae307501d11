"""The dialect of ONNX against onnx's reference evaluator, on random options and on what it refuses."""

import inspect

import numpy as np
import pytest

from refattn.dialects.onnx import Attention, RotaryEmbedding

pytestmark = pytest.mark.peers

BACKENDS = ("numpy", "numba")
INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip("onnx", reason="onnx is not installed: python -m pip install onnx==1.23.2")


def evaluate(onnx, operator, names, inputs, outputs, opset, attributes):
    """Return what onnx's evaluator computes for one node."""
    from onnx.reference import ReferenceEvaluator

    given = {name: x for name, x in zip(names, inputs, strict=False) if x is not None}
    last = max(names.index(name) for name in given)
    node = onnx.helper.make_node(
        operator, [name if name in given else "" for name in names[: last + 1]], outputs, **attributes
    )
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in given.items()
    ]
    dtype, ranks = infos[0].type.tensor_type.elem_type, [inputs[0].ndim, 4, 4, 4]
    results = [
        onnx.helper.make_tensor_value_info(name, dtype, [None] * rank)
        for name, rank in zip(outputs, ranks, strict=False)
    ]
    graph = onnx.helper.make_graph([node], "one", infos, results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, given)


def draw(seed):
    """Random arrays and attributes; half of the draws have each option."""
    rng = np.random.default_rng(seed)
    B, Hk, G, D, Dv = (int(rng.integers(1, n)) for n in (4, 4, 4, 9, 9))
    Tq, T, opset = int(rng.integers(1, 12)), int(rng.integers(1, 12)), int(rng.integers(23, 26))
    H, some = Hk * G, rng.random(9) < 0.5
    q, k, v = (rng.standard_normal((B, h, t, d)) for h, t, d in ((H, Tq, D), (Hk, T, D), (Hk, T, Dv)))
    past = [rng.standard_normal((B, Hk, 5, d)) for d in (D, Dv)] if some[0] else [None, None]
    lengths = rng.integers(0, T + 1, B) if opset > 23 and not some[0] and some[1] else None
    Tk = T + 5 * some[0]
    masks = [None, rng.random((H, Tq, Tk)) < 0.6, rng.standard_normal((B, 1, Tq, Tk)), rng.random((Tq, Tk)) < 0.5]
    mask = masks[rng.integers(4)]
    if mask is not None and some[2] and lengths is not None:
        mask = mask[..., : max(1, int(lengths.max()))]
    attributes = {"is_causal": int(some[3]), "qk_matmul_output_mode": int(rng.integers(4))}
    if some[4]:
        attributes["scale"] = float(rng.choice([0.0625, 0.25, 2.25]))  # the evaluator takes the root in float32
    if some[5]:
        attributes["softcap"] = 2.0
        attributes["qk_matmul_output_mode"] = max(1, attributes["qk_matmul_output_mode"])  # see the docstring on 0
    if some[6] and opset == 25:
        attributes |= {"left_window_size": int(rng.integers(-1, 5)), "right_window_size": int(rng.integers(-1, 5))}
    if some[7]:
        q, k, v = (x.swapaxes(1, 2).reshape(B, x.shape[2], -1) for x in (q, k, v))
        attributes |= {"q_num_heads": H, "kv_num_heads": Hk}
    return (q, k, v, mask, *past, lengths), opset, attributes


@pytest.mark.parametrize("seed", range(80))
def test_random_options(onnx, seed):
    inputs, opset, attributes = draw(seed)
    outputs = ["Y", "present_key", "present_value", "qk_matmul_output"]
    want = evaluate(onnx, "Attention", INPUTS, inputs, outputs, opset, attributes)
    for backend in BACKENDS:
        got = Attention(*inputs, **attributes, opset=opset, backend=backend)
        for ours, theirs, name in zip(got, want, outputs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=f"{name} on {backend}")


@pytest.mark.parametrize("seed", range(12))
def test_random_rotations(onnx, seed):
    rng = np.random.default_rng(seed)
    B, H, T, half = (int(rng.integers(1, n)) for n in (4, 4, 9, 5))
    rest = 2 * (seed % 2)
    X = rng.standard_normal((B, H, T, 2 * half + rest)).astype(np.float32)
    cos, sin = rng.standard_normal((2, 11, half)).astype(np.float32)
    ids = rng.integers(0, 11, (B, T))
    attributes = {"interleaved": seed // 2 % 2, "rotary_embedding_dim": 2 * half if rest else 0}
    if seed % 3 == 0:
        X, attributes["num_heads"] = X.swapaxes(1, 2).reshape(B, T, -1), H
    inputs = (X, cos, sin, ids) if seed % 5 else (X, cos[ids], sin[ids])
    names = ("input", "cos_cache", "sin_cache", "position_ids")
    want = evaluate(onnx, "RotaryEmbedding", names, inputs, ["output"], 23, attributes)[0]
    np.testing.assert_allclose(RotaryEmbedding(*inputs, **attributes), want, rtol=1e-6, atol=1e-6)


N, F = np.zeros((1, 2, 3, 4)), np.zeros((1, 3, 8))
REFUSED = {
    "a window below -1": ((N, N, N), {"left_window_size": -2}, 25),
    "half of a past": ((N, N, N, None, N), {}, 25),
    "a past and lengths": ((N, N, N, None, N, N, np.array([3])), {}, 25),
    "head counts with 4-D inputs": ((N, N, N), {"q_num_heads": 2, "kv_num_heads": 2}, 25),
    "3-D inputs without head counts": ((F, F, F), {}, 25),
    "mixed ranks": ((N, F, F), {}, 25),
    "a mask that is too long": ((N, N, N, np.zeros(4)), {}, 25),
    "a mask of other heads": ((N, N, N, np.zeros((3, 3, 3))), {}, 25),
    "3 heads for 2": ((N, *[np.zeros((1, 3, 3, 4))] * 2), {}, 25),
    "a window in opset 24": ((N, N, N), {"left_window_size": 1}, 24),
    "an unknown precision": ((N, N, N), {"softmax_precision": 99}, 25),
}


@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse(onnx, what):
    inputs, attributes, opset = REFUSED[what]
    reasons = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    with pytest.raises((*reasons, AssertionError, ValueError, TypeError, KeyError)):
        evaluate(onnx, "Attention", INPUTS, inputs, ["Y"], opset, attributes)
    with pytest.raises((TypeError, ValueError), match=r"^Attention: "):
        Attention(*inputs, **attributes, opset=opset)


@pytest.mark.parametrize("opset", [23, 24, 25])
def test_the_schema_has_these_attributes(onnx, opset):
    """Every attribute of every version is a keyword of ours, with the schema's default."""
    ours = inspect.signature(Attention).parameters
    for name, attribute in onnx.defs.get_schema("Attention", opset).attributes.items():
        default = onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
        assert ours[name].default == default, name
    names = [i.name for i in onnx.defs.get_schema("Attention", opset).inputs]
    assert names == list(ours)[: len(names)]


def test_the_newest_schema_is_the_one_described_here(onnx):
    assert onnx.defs.get_schema("Attention", onnx.defs.onnx_opset_version()).since_version == 25
