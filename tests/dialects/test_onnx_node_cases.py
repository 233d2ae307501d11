"""ONNX's own node tests of every operator that the dialect has: all that the installed onnx generates."""

import warnings

import numpy as np
import pytest

from refattn.dialects import onnx as dialect

pytestmark = pytest.mark.peers

BACKENDS = ("numpy", "numba")
LEAST = 93 + 8  # of Attention and of RotaryEmbedding, in onnx 1.23
LEAST_FLEX = 11
LEAST_LINEAR, LEAST_CONV = 14, 13  # of LinearAttention and of CausalConvWithState
PREFIXES = (
    "test_attention",
    "test_rotary_embedding",
    "test_flexattention",
    "test_linear_attention",
    "test_causal_conv",
)
OPERATORS = ("Attention", "RotaryEmbedding", "FlexAttention", "LinearAttention", "CausalConvWithState")


@pytest.fixture(scope="module")
def cases():
    """The cases by operator: (case, node, attributes, opset)."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: python -m pip install onnx==1.23.2")
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow when they are made
        generated = collect_testcases(None)
    found = {operator: [] for operator in OPERATORS}
    for case in generated:
        node = case.model.graph.node[0]
        # "_expanded" are the same calls through the operator's function body
        if case.name.startswith(PREFIXES) and "_expanded" not in case.name:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found[node.op_type].append((case, node, attributes, case.model.opset_import[0].version))
    return found


def run(operator, node, attributes, opset, inputs, backend):
    """Return the outputs that the node names."""
    given = iter(inputs)
    arguments = [next(given) if name else None for name in node.input]
    if operator == "RotaryEmbedding":  # elementwise, without backends
        return [dialect.RotaryEmbedding(*arguments, **attributes)]
    if operator == "FlexAttention":
        from onnx.reference import ReferenceEvaluator

        plain = {name: value for name, value in attributes.items() if not name.endswith("_mod")}
        graphs = {name: ReferenceEvaluator(attributes[name], opsets={"": opset}) for name in attributes.keys() - plain}
        mods = {name: lambda x, g=g: g.run(None, {g.input_names[0]: x})[0] for name, g in graphs.items()}
        return [dialect.FlexAttention(*arguments, **plain, **mods, backend=backend)]
    if operator in ("LinearAttention", "CausalConvWithState"):
        outputs = getattr(dialect, operator)(*arguments, **attributes, backend=backend)
    else:
        outputs = dialect.Attention(*arguments, **attributes, opset=opset, backend=backend)
    return [output for output, name in zip(outputs, node.output, strict=False) if name]


def compare(name, got, want, rtol, atol):
    """Hold outputs against the expected ones as onnx's own runner does, with its tolerances."""
    assert len(got) == len(want), name
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        if str(ours.dtype) == "bfloat16":
            rtol = max(rtol, 2**-6)
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=name)


def passed(cases, operator, backend=None):
    """Run every case of an operator; return how many there were, for each of them passed."""
    for case, node, attributes, opset in cases[operator]:
        for inputs, outputs in case.data_sets:
            got = run(operator, node, attributes, opset, inputs, backend)
            compare(case.name, got, outputs, case.rtol, case.atol)
    return len(cases[operator])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_node_case(cases, backend, capsys):
    flex = passed(cases, "FlexAttention", backend)
    attention, rotary = passed(cases, "Attention", backend), passed(cases, "RotaryEmbedding")
    linear, conv = (passed(cases, operator, backend) for operator in ("LinearAttention", "CausalConvWithState"))
    with capsys.disabled():
        print(f"\nonnx on {backend}: node cases passed: Attention {attention}, RotaryEmbedding {rotary}", end="")
        print(f", together {attention + rotary}; FlexAttention {flex}, LinearAttention {linear}", end="")
        print(f", CausalConvWithState {conv}")
    assert attention + rotary >= LEAST
    assert flex >= LEAST_FLEX
    assert linear >= LEAST_LINEAR and conv >= LEAST_CONV
