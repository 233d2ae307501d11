import inspect

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn import masks
from refattn.testing.mutants import MUTANTS, Mutant, correct, mutants
from refattn.testing.mutants.patch import SOURCES

GROUPS = (
    *("semantics", "masks", "layout", "tiles", "online_softmax", "precision", "sinks_splits_lse", "state", "nan"),
    *("dropout", "backward"),
)
OPS = ("attention", "attention_vjp")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CATALOGUE = [mutant for mutant in MUTANTS if mutant.op in OPS]
SHAPE = (2, 4, 2, 37, 65, 12, 10)  # B, H, Hk, Tq, Tk, D, Dv
NAMES = [mutant.name for mutant in CATALOGUE]


def draw(shape=SHAPE, dtype=np.float64, seed=0, size=1.0, **options):
    """Return ((q, k, v), options), with the options that are True replaced by arrays."""
    B, H, Hk, Tq, Tk, D, Dv = shape
    rng = np.random.default_rng(seed)
    arrays = [size * rng.standard_normal(s) for s in ((B, H, Tq, D), (B, Hk, Tk, D), (B, Hk, Tk, Dv))]
    made = {
        "bias": rng.standard_normal((B, H, Tq, Tk)),
        "mask": rng.random((B, H, Tq, Tk)) < 0.6,
        "alibi_slopes": np.linspace(0.5, 0.1, H),
        "sinks": np.linspace(-1, 2, H),
        "seqlens_k": rng.integers(Tk // 2, Tk + 1, B),
        "dropout_mask": rng.random((B, H, Tq, Tk)) < 0.7,
    }
    options = {name: made.get(name, True) if value is True else value for name, value in options.items()}
    for name in ("bias", "alibi_slopes", "sinks"):
        if name in options and dtype is not np.float64:
            options[name] = options[name].astype(np.float32)
    return [x.astype(dtype) for x in arrays], options


def as_reference(q, k, options):
    """Return the options in the words of `refattn.attention`: all that hides in one mask, all that adds in one bias."""
    (B, H, Tq, _), Tk = q.shape, k.shape[2]
    lengths = np.broadcast_to(options.get("seqlens_k", Tk), (B,))[:, None, None, None]
    offset = lengths - Tq
    if options.get("q_offset") is not None:
        offset = np.broadcast_to(options["q_offset"], (B,))[:, None, None, None]
    position, key = np.arange(Tq)[:, None] + offset, np.arange(Tk)
    visible = np.broadcast_to(key < lengths, (B, H, Tq, Tk)).copy()
    left, right = options.get("window", (None, None))
    if options.get("causal"):
        visible &= key <= position
    if left is not None:
        visible &= key >= position - left
    if right is not None:
        visible &= key <= position + right
    visible &= options.get("mask", True)
    kept = {name: options[name] for name in ("scale", "softcap", "sinks", "dropout_mask") if name in options}
    kept |= {"dropout_p": options.get("dropout_p", 0.0), "mask": masks.from_array(visible)}
    if "bias" in options or "alibi_slopes" in options:
        slopes = options.get("alibi_slopes", np.zeros(H))[:, None, None]
        total = np.broadcast_to(options.get("bias", 0.0), (B, H, Tq, Tk)) - slopes * np.abs(position - key)
        kept["bias"] = total.astype(q.dtype)
    return kept


WORDS = {  # name -> the call, in the keywords of `draw`
    "plain": {},
    "causal": {"causal": True},
    "more queries than keys": {"shape": (1, 2, 1, 70, 33, 8, 8), "causal": True},
    "causal window": {"causal": True, "window": (5, 3)},
    "window": {"window": (3, 20), "sinks": True},
    "one-sided window": {"window": (None, 2)},
    "self alone": {"window": (0, 0)},
    "offsets": {"causal": True, "q_offset": [3, 40], "alibi_slopes": True},
    "one offset": {"causal": True, "q_offset": -20},
    "scale and cap": {"scale": 0.9, "softcap": 1.5, "bias": True},
    "mask": {"mask": True, "causal": True},
    "lengths": {"seqlens_k": True, "causal": True, "alibi_slopes": True},
    "an empty sequence": {"seqlens_k": np.array([0, 9])},
    "blind rows": {"window": (2, 0), "q_offset": 60, "sinks": True},
    "dropout": {"dropout_mask": True, "dropout_p": 0.3, "bias": True, "softcap": 3.0},
    "all": {
        **dict.fromkeys(("causal", "bias", "mask", "alibi_slopes", "sinks", "seqlens_k", "dropout_mask"), True),
        **{"q_offset": [20, 12], "window": (30, 5), "scale": 0.4, "softcap": 2.0, "dropout_p": 0.25},
    },
    "large logits": {"size": 20.0},
    "no keys": {"shape": (1, 2, 2, 5, 0, 4, 3), "sinks": True},
    "no queries": {"shape": (1, 2, 2, 0, 5, 4, 3)},
    "one of each": {"shape": (1, 1, 1, 1, 1, 1, 1)},
}
KNOBS = [(16, 16, 1), (33, 16, 3), (64, 33, 2), (128, 128, 1), (16, 64, 4)]


@pytest.mark.parametrize("words", WORDS)
def test_the_correct_kernel_agrees_with_the_reference(words):
    (q, k, v), options = draw(**WORDS[words])
    o, lse = refattn.attention(q, k, v, **as_reference(q, k, options), return_lse=True, backend="numpy")
    for tile_q, tile_k, num_splits in KNOBS:
        kernel = correct("attention", tile_q=tile_q, tile_k=tile_k)
        got_o, got_lse = kernel(q, k, v, **options, num_splits=num_splits)
        np.testing.assert_allclose(got_o, o, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got_lse, lse, rtol=1e-12, atol=1e-12)


def broadcast_biases(options):
    """Yield the options as they are, and with biases that have fewer axes."""
    yield options
    if "bias" in options:
        yield options | {"bias": options["bias"][:1, :, :, :1]}
        yield options | {"bias": options["bias"][0, 0]}


@pytest.mark.parametrize("words", WORDS)
def test_the_correct_derivative_agrees_with_the_reference(words):
    (q, k, v), options = draw(**WORDS[words])
    rng = np.random.default_rng(1)
    do, dlse = rng.standard_normal((*q.shape[:3], v.shape[3])), rng.standard_normal(q.shape[:3])
    for given in broadcast_biases(options):
        told = as_reference(q, k, given)
        dq, dk, dv, dbias, dsinks = refattn.attention_vjp(do, q, k, v, **told, dlse=dlse, backend="numpy")
        want = [dq, dk, dv]
        if "bias" in given:
            shape = given["bias"].shape
            axes = tuple(range(4 - len(shape))) + tuple(n - 4 for n, m in enumerate(shape, 4 - len(shape)) if m == 1)
            axes = tuple(axis % 4 for axis in axes)
            want.append(dbias.sum(axis=axes, keepdims=True).reshape(shape))
        want += [dsinks] if "sinks" in given else []
        for tile_q, tile_k, num_splits in KNOBS:
            kernel = correct("attention_vjp", tile_q=tile_q, tile_k=tile_k)
            got = kernel(do, q, k, v, **given, dlse=dlse, num_splits=num_splits)
            assert len(got) == len(want)
            for mine, theirs in zip(got, want, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)


TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", ["plain", "causal window", "lengths", "all"])
def test_the_correct_kernels_agree_in_narrow_formats(words, dtype):
    (q, k, v), options = draw(dtype=DTYPES[dtype], **WORDS[words])
    wide = [x.astype(np.float64) for x in (q, k, v)]
    told = as_reference(wide[0], k, {n: x.astype(np.float64) if n == "sinks" else x for n, x in options.items()})
    o, lse = refattn.attention(*wide, **told, return_lse=True, backend="numpy")
    got_o, got_lse = correct("attention")(q, k, v, **options)
    assert got_o.dtype == q.dtype and got_lse.dtype == np.float32
    np.testing.assert_allclose(got_o.astype(np.float64), o, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(got_lse, lse, rtol=1e-5, atol=1e-5)
    do = draw(dtype=DTYPES[dtype], seed=1)[0][2][:, :1, : q.shape[2]].repeat(q.shape[1], axis=1)
    want = refattn.attention_vjp(do.astype(np.float64), *wide, **told, backend="numpy")
    got = correct("attention_vjp")(do, q, k, v, **options)
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        assert mine.dtype == q.dtype
        np.testing.assert_allclose(mine.astype(np.float64), theirs, atol=8 * TOLERANCE[dtype])


def same(a, b):
    """Whether two results have the same bits; any nan is as good as another."""
    return all(
        x.dtype == y.dtype
        and x.shape == y.shape
        and np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_hidden_changes_no_bit(dtype):
    (q, k, v), options = draw(dtype=DTYPES[dtype], causal=True, seqlens_k=True)
    kernel = correct("attention", tile_q=16, tile_k=16)
    clean = kernel(q, k, v, **options)
    first = min(options["seqlens_k"]) - 10  # the first queries do not see this key
    for poison in (np.nan, np.inf, 1e4):
        bad_k, bad_v = k.copy(), v.copy()
        bad_k[:, :, first:], bad_v[:, :, first:] = poison, poison
        rows = slice(0, first + q.shape[2] - max(options["seqlens_k"]))
        dirty = kernel(q, bad_k, bad_v, **options)
        assert same([x[:, :, rows] for x in clean], [x[:, :, rows] for x in dirty])
        do = q[..., : v.shape[3]]
        hidden = options | {"mask": np.arange(k.shape[2]) < first}
        grads = [correct("attention_vjp", tile_k=16)(do, q, x, y, **hidden) for x, y in ((k, v), (bad_k, bad_v))]
        assert same(*grads)


def test_a_nan_reaches_exactly_the_rows_that_see_it():
    (q, k, v), options = draw(dtype=np.float32, causal=True)
    kernel = correct("attention", tile_q=16, tile_k=16)
    q[0, 1, 4] = np.nan
    for num_splits in (1, 3):
        o, lse = kernel(q, k, v, **options, num_splits=num_splits)
        where = np.zeros(lse.shape, bool)
        where[0, 1, 4] = True
        assert np.array_equal(np.isnan(lse), where) and np.array_equal(np.isnan(o).any(axis=-1), where)
    v[1, 1, 50, 2] = np.nan  # key 50 is seen from query 50 - (65 - 37) = 22 on, by heads 2 and 3
    o, _ = kernel(q, k, v, **options)
    where = np.zeros(o.shape, bool)
    where[0, 1, 4], where[1, 2:, 22:, 2] = True, True
    assert np.array_equal(np.isnan(o), where)


def test_batch_mates_and_repetition_change_no_bit():
    (q, k, v), options = draw(dtype=np.float32, causal=True, window=(9, 0), sinks=True)
    for op, first in (("attention", ()), ("attention_vjp", (q[..., :10],))):
        kernel = correct(op, tile_q=16, tile_k=16)
        both = kernel(*first, q, k, v, **options)
        assert same(both, kernel(*first, q, k, v, **options))
        alone = kernel(*(x[1:] for x in (*first, q, k, v)), **options)
        per_sequence = 3 if first else 2
        assert same([x[1:] for x in both[:per_sequence]], alone[:per_sequence])


def test_the_catalogue():
    assert len(CATALOGUE) >= 110
    assert len(set(NAMES)) == len(NAMES)
    assert {mutant.group for mutant in CATALOGUE} == set(GROUPS)
    assert sum(mutant.op == "attention" for mutant in CATALOGUE) >= 85
    assert sum(mutant.op == "attention_vjp" for mutant in CATALOGUE) >= 25
    for mutant in CATALOGUE:
        assert mutant.group != "semantics" or mutant.diagnosis, mutant.name
        assert mutant.group != "masks" or mutant.diagnosis, mutant.name
        assert set(mutant.equivalent) < set(DTYPES), mutant.name
        assert mutant.name == mutant.name.strip() and not mutant.name.endswith("."), mutant.name


def test_the_catalogue_by_operation_and_group():
    assert set(mutants()) == set(MUTANTS)
    assert all(mutant.op == "attention" and mutant.group == "tiles" for mutant in mutants("attention", "tiles"))
    with pytest.raises(ValueError, match="op is 'flash'; wanted one of attention"):
        mutants("flash")
    with pytest.raises(ValueError, match="no mutants of 'flash'"):
        correct("flash")


@pytest.mark.parametrize("old", ["no such text", "seq.length"])
def test_a_patch_must_fit_in_one_place(old):
    with pytest.raises(ValueError, match=r"'wrong': its old text stands \d+ times in refattn.testing.mutants.kernel"):
        Mutant("wrong", "tiles", old, "pass").kernel()


@pytest.mark.parametrize("mutant", CATALOGUE, ids=NAMES)
def test_every_patch_applies_and_keeps_the_signature(mutant):
    kernel, name = mutant.kernel(), SOURCES[mutant.op][1]
    assert kernel.__name__ == name
    assert inspect.signature(kernel) == inspect.signature(correct(mutant.op))
    removed = [line for line in mutant.diff.splitlines() if line.startswith("-")]
    assert (removed and len(removed) < len(mutant.diff.splitlines())) or mutant.new == ""


def test_every_kernel_starts_with_a_memory_of_its_own():
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "scale of the first call of a width is kept")
    (q, k, v), _ = draw()
    want = correct()(q, k, v, scale=0.5)
    first = mutant.kernel()
    first(q, k, v, scale=2.0)
    assert not same(first(q, k, v, scale=0.5), want)
    assert same(mutant.kernel()(q, k, v, scale=0.5), want)


def poisoned(value):
    """Return a change of the arrays: `value` in a key and its value that late queries see, and in one query."""

    def change(q, k, v):
        k[:, -1, 40], v[:, -1, 40], v[:, -1, 60], q[0, 0, 2] = value, value, value, value
        return q, k, v

    return change


def poisoned_values(q, k, v):
    v[:, -1, 40, 1] = np.nan
    return q, k, v


def staircase(q, k, v):
    """Return scores that grow from tile to tile of keys by more than float32 can hold as a ratio."""
    q[...], k[...] = 0, 0
    q[..., 0], k[..., 0] = 4, np.linspace(-60, 60, k.shape[2]).astype(k.dtype)
    return q, k, v


def falling(q, k, v):
    q, k, v = staircase(q, k, v)
    return q, np.ascontiguousarray(k[:, :, ::-1]), v


def negative(q, k, v):
    q[...], k[...] = 8, -8
    return q, k, v


def fortran(q, k, v):
    return tuple(np.asfortranarray(x) for x in (q, k, v))


def gaps(q, k, v):
    wide = [np.full((*x.shape[:2], 2 * x.shape[2], x.shape[3]), np.nan, x.dtype) for x in (q, k, v)]
    for x, y in zip(wide, (q, k, v), strict=True):
        x[:, :, ::2] = y
    return tuple(x[:, :, ::2] for x in wide)


def minus_infinity(bias):
    bias = bias.copy()
    bias[:, :, 3], bias[:, :, :, 7] = -np.inf, -np.inf
    return bias


EDGES = {  # name -> (keywords of `draw`, a change of q, k, v)
    **{words: (keywords, None) for words, keywords in WORDS.items()},
    "nan": ({"causal": True}, poisoned(np.nan)),
    "inf": ({"causal": True}, poisoned(np.inf)),
    "nan values": ({"causal": True, "bias": True}, poisoned_values),
    "rising": ({}, staircase),
    "falling": ({"causal": True}, falling),
    "negative": ({}, negative),
    "fortran": ({}, fortran),
    "gaps": ({}, gaps),
    "splits": ({"num_splits": 3, "sinks": True}, None),
    "more parts than tiles": ({"num_splits": 9, "window": (8, 8)}, None),
    "causal splits": ({"num_splits": 3, "causal": True, "q_offset": -20}, None),
    "large split logits": ({"num_splits": 2, "size": 20.0}, None),
    "wide": ({"shape": (1, 6, 2, 20, 300, 80, 84), "causal": True}, None),
    "three heads each": ({"shape": (1, 6, 2, 20, 40, 8, 8)}, None),
    "whole tiles": ({"shape": (1, 2, 2, 32, 64, 8, 8), "causal": True}, None),
    "a tile of one query": ({"shape": (1, 2, 2, 33, 33, 9, 9), "causal": True}, None),
    "one key missing": ({"shape": (1, 2, 2, 16, 31, 8, 8)}, None),
    "window over tiles": ({"shape": (1, 2, 2, 48, 64, 8, 8), "window": (12, 4)}, None),
    "mask and window": ({"mask": True, "window": (9, 9)}, None),
    "capped": ({"softcap": 2.0, "size": 3.0}, None),
    "alibi both ways": ({"alibi_slopes": True}, None),
    "faint": ({"size": 1e-4, "bias": True}, None),
    "bias of one head": ({"bias": True}, None),
}


@pytest.fixture(scope="module")
def witnesses():
    """For each operation and dtype: (arguments, what the correct kernel makes of them), in an order of calls."""
    found = {}
    for dtype, wide in DTYPES.items():
        calls = []
        for seed, (keywords, change) in enumerate(EDGES.values()):
            arrays, options = draw(dtype=wide, seed=seed, **keywords)
            arrays = arrays if change is None else change(*arrays)
            calls.append((arrays, options))
            if "bias" in options:
                calls.append((arrays, options | {"bias": minus_infinity(options["bias"])}))
                calls.append((arrays, options | {"bias": options["bias"][:1, :1]}))
        calls.append((draw(dtype=wide, seed=99)[0], {"mask": draw(mask=True, seed=99)[1]["mask"], "causal": True}))
        found["attention", dtype] = [(x, o, correct(tile_q=16, tile_k=16)(*x, **o)) for x, o in calls]
        backward = []
        for (q, k, v), options in calls:
            rng = np.random.default_rng(7)
            do = rng.standard_normal((*q.shape[:3], v.shape[3])).astype(wide)
            extra = options | {"dlse": rng.standard_normal(q.shape[:3]).astype(np.float32)}
            backward.append(((do, q, k, v), extra))
        kernel = correct("attention_vjp", tile_q=16, tile_k=16)
        found["attention_vjp", dtype] = [(x, o, kernel(*x, **o)) for x, o in backward]
    return found


def differs(mutant, calls):
    """Whether some call, or a result kept over the calls that follow, or an input is not as it should be."""
    kernel, kept = mutant.kernel(tile_q=16, tile_k=16), []
    for arrays, options, want in calls:
        given = [x.copy(order="K") if x.base is None else x for x in arrays]
        before = [x.copy() for x in given]
        got = kernel(*given, **options)
        if not same(got, want) or not same(given, before):
            return True
        kept.append((got, want))
    return not all(same(got, want) for got, want in kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_correct_kernel_differs_nowhere(op, dtype, witnesses):
    text = "m = m_new" if op == "attention" else "def _rounded("
    nothing = Mutant("nothing", "tiles", text, text, op)
    assert not differs(nothing, witnesses[op, dtype] + witnesses[op, dtype])


@pytest.mark.parametrize("mutant", CATALOGUE, ids=NAMES)
def test_every_mutant_differs_in_every_dtype_in_which_it_says_so(mutant, witnesses):
    for dtype in DTYPES:
        if dtype not in mutant.equivalent:
            assert differs(mutant, witnesses[mutant.op, dtype]), f"{dtype}\n{mutant.diff}"


EQUIVALENT = [(mutant, dtype) for mutant in CATALOGUE for dtype in mutant.equivalent]


@pytest.mark.parametrize(
    ("mutant", "dtype"), EQUIVALENT, ids=[f"{mutant.name}, {dtype}" for mutant, dtype in EQUIVALENT]
)
def test_what_is_said_to_be_equivalent_is_as_close_to_the_reference(mutant, dtype):
    (q, k, v), options = draw((2, 4, 2, 60, 90, 32, 32), DTYPES[dtype], seed=3, causal=True)
    do = draw((2, 4, 4, 60, 60, 32, 32), DTYPES[dtype], seed=4)[0][2]
    arrays = (q, k, v) if mutant.op == "attention" else (do, q, k, v)
    want = correct(mutant.op)(*(x.astype(np.float64) for x in arrays), **options)

    def error(kernel):
        got = kernel(*arrays, **options, tile_q=32, tile_k=32)
        return [np.sqrt(np.mean((x.astype(np.float64) - y) ** 2)) for x, y in zip(got, want, strict=True)]

    for mine, theirs in zip(error(mutant.kernel()), error(correct(mutant.op)), strict=True):
        assert mine <= 1.1 * theirs
