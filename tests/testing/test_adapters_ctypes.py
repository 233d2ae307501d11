"""C functions: right where they are right, and found out where they write or read what is not theirs."""

import ctypes
import inspect
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.testing.adapters import KernelFault, from_ctypes, isolated

SOURCE = Path(__file__).parent / "foreign" / "attention.c"
ATTENTION = "q k v o lse B H Hk Tq Tk D Dv scale causal -> int"
MEAN = "q k v o B H Hk Tq Tk Dv v.strides o.strides"
PROBE = (
    "q k v o bias mask:uint8 sinks seqlens_k:int64 q_offset B H:int Tq:int Tk:int scale:double softcap causal"
    " window_left window_right num_splits"
)
BACKWARD = "do q k v o lse dq dk dv dbias dsinks bias sinks B H Hk Tq Tk D Dv"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: no program cc")
    folder = tmp_path_factory.mktemp("libraries")

    def build(*macros):
        path = folder / f"lib{'_'.join(macros) or 'plain'}.so"
        if not path.exists():
            flags = ["-std=c99", "-O1", "-shared", "-fPIC", *(f"-D{macro}" for macro in macros)]
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path), "-lm"], check=True)
        return path

    return build


def arrays(H=4, Hk=2, Tq=5, Tk=7, D=8, Dv=6, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = ((2, H, Tq, D), (2, Hk, Tk, D), (2, Hk, Tk, Dv))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"Tq": 7, "Tk": 3}, {"Tk": 0}, {"Tq": 0}, {"Hk": 4, "D": 1, "Dv": 33}])
def test_a_right_kernel(library, sizes, causal):
    q, k, v = arrays(**sizes)
    kernel = from_ctypes(library(), "attention", ATTENTION)
    got = kernel(q, k, v, causal=causal, scale=0.3)
    mask = refattn.masks.causal() if causal else None
    want = refattn.attention(q, k, v, mask=mask, scale=0.3, return_lse=True)
    for x, y in zip(got, want, strict=True):
        assert x.dtype == np.float32 and x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    for x in zip(kernel(q, k, v), refattn.attention(q, k, v, return_lse=True), strict=True):
        np.testing.assert_allclose(*x, rtol=1e-5, atol=1e-5)


def test_double(library):
    q, k, v = arrays(dtype=np.float64)
    got = from_ctypes(library("DOUBLE"), "attention", ATTENTION)(q, k, v, scale=0.5)
    for x, y in zip(got, refattn.attention(q, k, v, scale=0.5, return_lse=True), strict=True):
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_arrays_of_any_strides_are_made_contiguous(library):
    q, k, v = arrays()
    wide = np.zeros((*q.shape[:-1], 2 * q.shape[-1]), np.float32)
    wide[..., ::2] = q
    raw = np.zeros(v.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(v.shape)  # not aligned
    raw[...] = v
    assert not raw.flags.aligned
    fixed = np.asfortranarray(k)
    fixed.flags.writeable = False
    kernel = from_ctypes(library(), "attention", ATTENTION)
    for x, y in zip(kernel(wide[..., ::2], fixed, raw), kernel(q, k, v), strict=True):
        assert (x == y).all()


def test_the_signature_names_the_options(library):
    kernel = from_ctypes(str(library()), "attention", ATTENTION)
    assert list(inspect.signature(kernel).parameters) == ["q", "k", "v", "causal", "scale"]
    assert kernel.__name__ == "attention"
    probe = from_ctypes(library(), "probe", PROBE)
    names = [*("causal", "q_offset", "window", "scale", "softcap", "bias", "mask", "sinks", "seqlens_k", "num_splits")]
    assert list(inspect.signature(probe).parameters) == ["q", "k", "v", *names]


@pytest.mark.parametrize(
    ("macro", "says"),
    [
        ("PAST_END", "^wrote 3 elements past the end of o$"),
        ("BEFORE_START", "^wrote 1 element before the start of o$"),
        ("TOUCH_Q", "^wrote 1 element to its argument q$"),
        ("STATUS", "^returned status 3$"),
    ],
)
def test_what_it_must_not_do_is_found(library, macro, says):
    kernel = from_ctypes(library(macro), "attention", ATTENTION)
    with pytest.raises(KernelFault, match=says):
        kernel(*arrays())


def test_reading_past_the_end_gives_nan(library):
    o, _ = from_ctypes(library("READS_PAST"), "attention", ATTENTION)(*arrays(Hk=4))
    assert np.isnan(o[-1, -1]).all()


def test_a_crash_is_one_verdict_in_a_process_of_its_own(library):
    crashing = isolated(from_ctypes(library("CRASH"), "attention", ATTENTION))
    for _ in range(2):
        with pytest.raises(KernelFault, match=r"^the kernel died: SIGABRT$"):
            crashing(*arrays())
    right = from_ctypes(library(), "attention", ATTENTION)
    for x, y in zip(isolated(right)(*arrays(), causal=True), right(*arrays(), causal=True), strict=True):
        assert (x == y).all()


def test_strides(library):
    q, k, v = arrays()
    kernel = from_ctypes(library(), "mean", MEAN)
    gapped = np.full((*v.shape[:-1], v.shape[-1] + 5), np.nan, np.float32)[..., :-5]
    gapped[...] = v
    want = np.broadcast_to(v.astype(np.float64).mean(axis=2, keepdims=True).repeat(2, axis=1), (*q.shape[:3], 6))
    for given in (v, gapped, np.asfortranarray(v), v[:, :, ::-1]):
        np.testing.assert_allclose(kernel(q, k, given), want, rtol=1e-5, atol=1e-6)


def test_writes_into_gaps_are_found(library):
    kernel = from_ctypes(library("INTO_GAPS"), "mean", MEAN)
    says = "^wrote 39 elements into the gaps between the rows of o; wrote 1 element past the end of o$"
    with pytest.raises(KernelFault, match=says):
        kernel(*arrays())  # 2 x 4 x 5 rows, one element behind each


def probed(kernel, **options):
    return from_ctypes(kernel, "probe", PROBE)(*arrays(), **options).ravel()[:11].tolist()


def test_options_arrive(library):
    absent = [-99] * 5
    scale = float(np.float32(1 / np.sqrt(8)))
    assert probed(library()) == [*absent, scale, 0, 0, -1, -1, 0]
    numbers = {"scale": 0.25, "softcap": 30.0, "causal": True, "window": (4, None), "num_splits": np.int64(2)}
    assert probed(library(), **numbers) == [*absent, 0.25, 30, 1, 4, -1, 2]
    mask = np.zeros((1, 1, 5, 1), bool)
    mask[0, 0, -1] = True
    bias = np.arange(7.0).reshape(1, 7)  # broadcasts, and is float64
    given = {"bias": bias, "mask": mask, "sinks": np.arange(4.0), "seqlens_k": [7, 3], "q_offset": 5}
    assert probed(library(), **given)[:5] == [6, 1, 3, 3, 5]
    assert probed(library(), q_offset=[1, 2], window=None)[4:10] == [2, scale, 0, 0, -1, -1]


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_backward(library, layout):
    forward = from_ctypes(library(), "attention", ATTENTION)
    q, k, v = arrays(H=2, Hk=2, Tk=1) if layout == "bhtd" else arrays(H=1, Hk=1, Tk=1)
    do = np.random.default_rng(1).standard_normal((*q.shape[:3], 6)).astype(np.float32)
    kernel = from_ctypes(library(), "backward", BACKWARD, layout=layout, forward=lambda *x, **y: forward(*x))
    assert list(inspect.signature(kernel).parameters) == ["do", "q", "k", "v", "bias", "sinks"]
    dq, dk, dv = kernel(do, q, k, v)
    assert not dq.any() and not dk.any() and dq.shape == q.shape and dk.shape == k.shape
    np.testing.assert_allclose(dv[:, :, 0], do.sum(axis=2), rtol=1e-5)
    bias, sinks = np.zeros((1, 1, 5, 1), np.float32), np.zeros(q.shape[1], np.float32)
    *_, dbias, dsinks = kernel(do, q, k, v, bias=bias, sinks=sinks)
    assert dbias.shape == bias.shape and (dbias == 2 * q.shape[1]).all() and (dsinks == 2).all()
    assert len(kernel(do, q, k, v, sinks=sinks)) == 4


@pytest.mark.parametrize("layout", ["packed", "paged"])
def test_other_layouts(library, layout):
    symbols = {
        "packed": "q k v o lse cu_seqlens_q cu_seqlens_k total_q total_k Tq Tk B",
        "paged": "q k v o lse page_table seqlens_k n_pages page max_pages B",
    }
    seen = {}

    @ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 7, *[ctypes.c_int64] * (5 if layout == "packed" else 4))
    def function(q, k, v, o, lse, first, second, *sizes):
        count = 3 if layout == "packed" else 2
        seen.update(sizes=sizes, second=np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(second)).tolist())
        ctypes.memset(o, 0, 4 * 2 * 4 * 5 * 6)
        ctypes.memset(lse, 0, 4 * 2 * 4 * 5)

    class Library(ctypes.CDLL):
        def __init__(self):
            self._name = "made of Python"

        def __getitem__(self, name):
            return function

    function.restype = None
    kernel = from_ctypes(Library(), "f", symbols[layout], layout=layout, page=4)
    o, lse = kernel(*arrays(), seqlens_k=[7, 2])
    assert o.shape == (2, 4, 5, 6) and lse.shape == (2, 4, 5) and not o.any() and not lse.any()
    if layout == "packed":
        assert seen == {"sizes": (10, 9, 5, 7, 2), "second": [0, 7, 9]}
    else:
        assert seen == {"sizes": (6, 4, 2, 2), "second": [7, 2]}


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        ("q k v o scales", "'scales' is not known; wanted one of q, k, v"),
        ("q k v o scale:float16", "'scale:float16' is not known"),
        ("q:float k v o", "'q:float' is not known"),
        ("q k v o total_q", "'total_q' is not known"),
        ("q k v o dq", "'dq' is not known"),
        ("q k v o q.stride", "'q.stride' is not known"),
        ("q k v lse", "lacks o"),
        ("do q k v dq dk", "lacks dv"),
        ("do q k v o dq dk dv", "needs forward="),
        ("q k v o window_left", "window_left and window_right go together"),
        ("do q k v dq dk dv dbias", "has dbias and no bias"),
        ("q k v o -> float", "returns 'float'; wanted int or void"),
    ],
)
def test_signatures_that_are_refused(signature, says):
    with pytest.raises(ValueError, match=says):
        from_ctypes(ctypes.CDLL(None), "attention", signature)


def test_what_is_not_there_is_said(library, tmp_path):
    with pytest.raises(OSError, match=r"from_ctypes: cannot load the library .*nowhere\.so"):
        from_ctypes(tmp_path / "nowhere.so", "attention", ATTENTION)
    with pytest.raises(ValueError, match="the library has no function 'attend'"):
        from_ctypes(library(), "attend", ATTENTION)
    with pytest.raises(ValueError, match="layout is 'tbhd'"):
        from_ctypes(library(), "attention", ATTENTION, layout="tbhd")
    with pytest.raises(ValueError, match="forward= goes with"):
        from_ctypes(library(), "attention", ATTENTION, layout="packed", forward=refattn.attention)
    kernel = from_ctypes(library(), "backward", BACKWARD, forward=lambda q, k, v: v)
    with pytest.raises(TypeError, match="forward returned no"):
        kernel(arrays()[0], *arrays())
