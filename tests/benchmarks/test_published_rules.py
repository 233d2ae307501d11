"""The nine rules accept a correct kernel, refuse gross mistakes, and miss small ones; the page counts what they do."""

import numpy as np
import pytest

from refattn.testing.formats import decode, encode
from refattn.testing.mutants.kernel import tiled_attention
from tests.benchmarks import kill_table
from tests.benchmarks.published_rules import DTYPES, RULES, added, flex_baseline, problem, runs, torch_math, visible

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def without_scale(q, k, v, *, scale=None, **options):
    return tiled_attention(q, k, v, scale=1.0, **options)


def without_causal(q, k, v, *, causal=False, **options):
    return tiled_attention(q, k, v, **options)


def scaled(factor):
    def kernel(q, k, v, *, scale=None, **options):
        return tiled_attention(q, k, v, scale=factor * (scale or q.shape[-1] ** -0.5), **options)

    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_RULE
def test_a_correct_kernel_passes(rule, dtype):
    assert runs(rule, tiled_attention, dtype)


@EVERY_RULE
def test_a_kernel_without_lse_passes(rule):
    assert runs(rule, lambda q, k, v, **options: tiled_attention(q, k, v, **options)[0], "float16")


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_RULE
def test_a_forgotten_scale_is_noticed(rule, dtype):
    assert not runs(rule, without_scale, dtype)


def test_a_forgotten_causal_mask_is_noticed_where_a_suite_has_one():
    blind = [name for name, rule in RULES.items() if runs(rule, without_causal, "bfloat16")]
    assert blind == ["llama.cpp NMSE"]  # which hands over every mask as numbers that are added


def test_what_a_rule_misses_a_scale_one_thousandth_too_large():
    noticed = [name for name, rule in RULES.items() if not runs(rule, scaled(1.001), "bfloat16")]
    assert noticed == ["xformers"]  # q and k are three times as wide there as a standard normal


@EVERY_RULE
def test_what_a_kernel_must_not_do(rule):
    def raises(q, k, v, **options):
        raise NotImplementedError

    def narrower(q, k, v, **options):
        return tiled_attention(q, k, v, **options)[0][..., 1:]

    def with_nan(q, k, v, **options):
        o = tiled_attention(q, k, v, **options)[0]
        o[0, 0, 0, 0] = np.nan
        return o

    for broken in (raises, narrower, with_nan):
        assert not runs(rule, broken, "float16")


def test_xformers_asks_for_the_same_bits_twice():
    calls = []

    def moody(q, k, v, **options):
        calls.append(q.shape)
        o = tiled_attention(q, k, v, **options)[0]
        o[0, 0, 0, 0] *= 1 + 0.001 * (len(calls) % 2)
        return o

    assert not runs(RULES["xformers"], moody, "float16")
    assert runs(RULES["JAX Pallas"], moody, "float16")


def test_a_kernel_that_writes_to_its_inputs_spoils_nothing():
    def greedy(q, k, v, **options):
        got = tiled_attention(q, k, v, **options)
        q[:], k[:], v[:] = 0, 0, 0
        for x in options.values():
            if isinstance(x, np.ndarray):
                x[:] = 0
        return got

    for rule in RULES.values():
        assert runs(rule, greedy, "float32") == runs(rule, tiled_attention, "float32")


def test_the_keywords_mean_what_the_kit_says():
    causal = visible({"causal": True}, 1, 1, 2, 3)[0, 0]
    assert causal.tolist() == [[True, True, False], [True, True, True]]
    top_left = visible({"causal": True, "q_offset": 0}, 1, 1, 2, 3)[0, 0]
    assert top_left.tolist() == [[True, False, False], [True, True, False]]
    window = visible({"window": (1, 0)}, 1, 1, 3, 3)[0, 0]
    assert window.tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    short = visible({"causal": True, "seqlens_k": np.array([3, 1])}, 2, 1, 1, 3)[:, 0, 0]
    assert short.tolist() == [[True, True, True], [True, False, False]]
    alibi = added({"alibi_slopes": np.array([0.5, 2.0]), "bias": np.ones((1, 3))}, 1, 1, 3)[0, :, 0]
    assert alibi.tolist() == [[0.0, 0.5, 1.0], [-3.0, -1.0, 1.0]]


def test_the_inputs_are_the_same_in_every_process():
    first = problem("torch SDPA", 6, "float16")
    problem.cache_clear()
    second = problem("torch SDPA", 6, "float16")
    assert first is not second
    assert np.array_equal(first.q, second.q) and np.array_equal(first.o64, second.o64)
    assert np.array_equal(first.options["dropout_mask"], second.options["dropout_mask"])


def test_the_page_counts_what_is_not_equivalent():
    rules = [
        {"name": "one", "source": "a suite", "dtypes": ["float16"], "carried": "the same"},
        {"name": "two", "source": "another", "dtypes": ["float16", "float32"], "carried": ""},
    ]
    table = {
        "seen by one": {"one": True, "two": False, kill_table.KIT: True},
        "seen by the kit": {"one": False, "two": False, kill_table.KIT: True},
        "seen by two": {"one": False, "two": True, kill_table.KIT: False},
        "equivalent": {"one": False, "two": False, kill_table.KIT: False},
    }
    mutants = [
        {"name": name, "group": "g", "equivalent": {}, "killed": {"float16": k, "float32": k}}
        for name, k in table.items()
    ]
    mutants[3]["equivalent"] = {"float16": "rounding hides it"}
    record = {"machine": "m", "command": "c", "dtypes": ["float16", "float32"], "with_kit": True}
    text = kill_table.page(record | {"rules": rules, "mutants": mutants})
    for line in (
        "| one | 1 of 3 | 1 of 4 * |",
        "| two | 1 of 3 | 1 of 4 |",
        "| **all nine together** | **2 of 3** | **2 of 4** |",
        "| **the kit** | **2 of 3** | **2 of 4** |",
        "## Killed by the kit alone\n\n- seen by the kit (g): float16, float32\n",
        "## Killed by a rule and not by the kit\n\n- seen by two (g): float16, float32\n",
        "## Killed by nobody\n\n- equivalent (g): float32\n",
        "- equivalent, in float16: rounding hides it",
    ):
        assert line in text


@pytest.mark.peers
@pytest.mark.parametrize("n", [0, 1, 4, 8])
def test_the_formula_of_torch(n):
    torch = pytest.importorskip("torch")
    p = problem("torch SDPA", n, "bfloat16")
    q, k, v = (torch.from_numpy(decode(x, "bfloat16")).to(torch.bfloat16) for x in (p.q, p.k, p.v))
    bias = torch.from_numpy(p.options["bias"]).to(torch.bfloat16) if "bias" in p.options else None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        got = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bool(p.options.get("causal")), scale=p.options.get("scale")
        )
    off = np.abs(got.double().numpy() - torch_math(p))
    assert off.max() <= 2.0**-8 and np.mean(off > 0) < (0.02 if bias is None else 1)


@pytest.mark.peers
@pytest.mark.parametrize("n", [0, 1, 9])
def test_the_formula_of_flex_attention(n):
    torch = pytest.importorskip("torch")
    from torch._higher_order_ops.flex_attention import math_attention

    p = problem("torch flex attention", n, "bfloat16")
    q, k, v = (torch.from_numpy(decode(x, "bfloat16")).to(torch.bfloat16) for x in (p.q, p.k, p.v))
    causal = p.options.get("causal", False)
    block_mask = (lambda b, h, i, j: (i >= j) | (not causal),)
    got = math_attention(q, k, v, lambda s, *where: s, block_mask, q.shape[-1] ** -0.5, {})
    assert np.mean(np.abs(flex_baseline(p) - got[0].double().numpy()) > 0) < 0.02
    assert np.allclose(got[1].double().numpy() * np.log(2), p.lse64, atol=1e-5)


def test_arrays_of_the_problems_are_those_of_the_kit():
    p = problem("FlashAttention", 0, "bfloat16")
    assert p.q.dtype == encode(np.zeros(1), "bfloat16").dtype
