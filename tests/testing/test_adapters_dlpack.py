"""Arrays of other libraries: handed over, taken back, and bfloat16 on the way."""

import inspect
import re
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.testing.adapters import KernelFault, from_dlpack, from_layout, to_numpy

BF16 = np.dtype(ml_dtypes.bfloat16)


class Tensor:
    """An array of a library that speaks DLPack, knows bfloat16, and writes down what happens to it."""

    def __init__(self, x, dtype=None):
        self.x, self.dtype = x, dtype or f"toy.{x.dtype}"

    def view(self, dtype):
        assert dtype in ("toy.bfloat16", "toy.uint16") and self.x.dtype == np.uint16
        return Tensor(self.x, dtype)

    def to(self, device):
        return Tensor(self.x, f"{self.dtype}") if device == "here" else None

    def __dlpack__(self, **options):
        if "bfloat16" in self.dtype:
            raise BufferError("no bfloat16 by DLPack")
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


@pytest.fixture
def toy(monkeypatch):
    module = SimpleNamespace(
        from_dlpack=lambda x: Tensor(np.from_dlpack(x)), bfloat16="toy.bfloat16", uint16="toy.uint16", __name__="toy"
    )
    monkeypatch.setitem(sys.modules, "toy", module)
    monkeypatch.setattr(Tensor, "__module__", "toy")
    return module


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 3, 5, 4)).astype(dtype) for _ in range(3)]


def test_arrays_and_options_arrive_as_the_librarys(toy):
    def kernel(q, k, v, *, bias=None, window=None):
        assert isinstance(q, Tensor) and isinstance(bias, Tensor) and window == (1, None)
        return v, Tensor(bias.x[..., 0])

    adapted = from_dlpack(kernel, "toy", device="here")
    q, k, v = arrays()
    o, lse = adapted(q, k, v, bias=np.ones((2, 3, 5, 5)), window=(1, None))
    assert isinstance(o, np.ndarray) and (o == v).all() and lse.shape == (2, 3, 5)
    assert inspect.signature(adapted) == inspect.signature(kernel) and adapted.__name__ == "kernel"


@pytest.mark.parametrize("stored", [BF16, np.dtype(np.uint16)])
def test_bfloat16_goes_over_as_bits(toy, stored):
    def kernel(q, k, v):
        assert q.dtype == v.dtype == "toy.bfloat16"
        return v

    q, k, v = (x.view(stored) for x in arrays(BF16))
    o = from_dlpack(kernel, "toy")(q, k, v)
    assert o.dtype == stored and o.tobytes() == v.tobytes()


def test_a_view_of_ones_own(toy):
    seen = []

    def view(x, name):
        seen.append(name)
        return Tensor(x.x, f"toy.{name}")

    o = from_dlpack(lambda q, k, v: v, "toy", view=view)(*arrays(BF16))
    assert seen == ["bfloat16"] * 3 + ["uint16"] and o.dtype == BF16


def test_a_library_that_takes_arrays_in_its_own_way():
    module = SimpleNamespace(__name__="bare")
    kernel = from_dlpack(lambda q, k, v: v, module, take=lambda x: Tensor(x))
    q, k, v = arrays()
    assert (kernel(q, k, v) == v).all()
    with pytest.raises(ValueError, match="bare has no from_dlpack; give take="):
        from_dlpack(lambda q, k, v: v, module)
    with pytest.raises(ImportError):
        from_dlpack(lambda q, k, v: v, "no_such_library")


def test_strides_that_the_library_does_not_take_are_copied(toy, monkeypatch):
    def picky(x):
        if not x.flags.c_contiguous:
            raise ValueError("contiguous only")
        return Tensor(np.from_dlpack(x))

    monkeypatch.setattr(toy, "from_dlpack", picky)
    q, k, v = (x[..., ::2] for x in arrays())
    v.flags.writeable = False
    assert (from_dlpack(lambda q, k, v: v, "toy")(q, k, v) == v).all()


def test_writes_are_found_in_shared_memory(toy):
    def careless(q, k, v, *, bias=None):
        bias.x[...] = 0
        return v

    with pytest.raises(KernelFault, match="wrote to its argument bias"):
        from_dlpack(careless, toy, take=Tensor)(*arrays(), bias=np.ones((5, 5)))


def test_to_numpy_leaves_alone_what_is_no_array():
    x = np.ones(3)
    assert to_numpy(x) is x
    for other in (None, 3, "o", object, np.float32(1)):
        assert to_numpy(other) is other
    both = to_numpy([x, (Tensor(x), None)])
    assert both[0] is x and type(both[1]) is tuple and np.shares_memory(both[1][0], x)


def test_to_numpy_by_array_interface_and_from_a_device():
    x = np.arange(3.0)
    assert to_numpy(memoryview(x)) is not x
    assert (to_numpy(SimpleNamespace(__array__=None, get=lambda: x, dtype="float64")) == x).all()
    far = SimpleNamespace(__dlpack__=None, detach=lambda: SimpleNamespace(cpu=lambda: Tensor(x)), cpu=None, dtype="f")
    assert (to_numpy(far) == x).all()


def test_to_numpy_says_what_it_cannot_turn():
    class Odd:
        dtype = "float3"

        def __dlpack__(self, **options):
            raise BufferError("no float3 by DLPack")

        def __array__(self, dtype=None, copy=None):
            raise TypeError("no float3 in NumPy")

    with pytest.raises(TypeError, match=re.escape("cannot turn Odd of float3 into a NumPy array: no float3 in NumPy")):
        to_numpy(Odd())


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: python -m pip install torch==2.13.0")


def sdpa(q, k, v, *, bias=None, scale=None):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=True)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16])
def test_torch(torch, dtype):
    q, k, v = arrays(dtype)
    bias = np.random.default_rng(1).standard_normal((3, 5, 5)).astype(dtype)
    o = from_dlpack(sdpa, "torch")(q, k, v, bias=bias, scale=0.3)
    want = refattn.attention(*(x.astype(np.float64) for x in (q, k, v)), bias=bias.astype(np.float64), scale=0.3)
    assert o.dtype == dtype
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(o.astype(np.float64), want, atol=8 * eps, rtol=8 * eps)


@pytest.mark.peers
def test_torch_gets_strides_and_what_may_not_be_written(torch):
    q, k, v = arrays()
    backwards, fixed = k[:, :, ::-1], v.copy()
    fixed.flags.writeable = False
    o = from_dlpack(sdpa, "torch")(q[..., ::2], backwards[..., ::2], fixed)
    want = refattn.attention(*(x.astype(np.float64) for x in (q[..., ::2], backwards[..., ::2], v)))
    np.testing.assert_allclose(o, want, atol=1e-6)


@pytest.mark.peers
def test_torch_in_another_layout(torch):
    def kernel(q, k, v):
        return sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    q, k, v = arrays()
    o = from_layout(from_dlpack(kernel, "torch"), "bthd")(q, k, v)
    np.testing.assert_allclose(o, refattn.attention(q, k, v), atol=1e-6)


@pytest.mark.peers
def test_torch_tensors_become_numpy(torch):
    x = torch.arange(4.0, requires_grad=True)
    o, lse = to_numpy((x * 2, x.to(torch.bfloat16)))
    assert o.tolist() == [0, 2, 4, 6] and lse.astype(float).tolist() == [0, 1, 2, 3]
    assert lse.dtype == BF16
