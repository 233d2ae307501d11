"""Kernels on the arrays of another library: torch, JAX, CuPy and whoever else speaks DLPack.

DLPack, https://dmlc.github.io/dlpack/latest/, lets two libraries share the memory of an array. NumPy has no bfloat16 of
its own and exports none, so bfloat16 crosses as uint16 and is viewed as bfloat16 on the other side.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.testing.adapters.common import Kernel, Witness, input_names, name_of, present
from refattn.testing.formats import storage

REFUSALS = (BufferError, TypeError, ValueError, RuntimeError, NotImplementedError)
"""What libraries raise when they cannot take or give an array by DLPack."""


def from_dlpack(
    kernel: Kernel,
    module: str | ModuleType,
    *,
    device: Any = None,
    take: Callable[[Array], Any] | None = None,
    view: Callable[[Any, str], Any] | None = None,
) -> Kernel:
    """Return a kernel on NumPy arrays that asks a kernel on the arrays of another library.

    Arrays among the options are handed over like q, k and v; everything else stays as it is. The results come back as
    `to_numpy` makes them.

    Parameters
    ----------
    kernel : callable
        On arrays of the library.
    module : str or module
        The library, such as "torch" or "jax.numpy"; it must have ``from_dlpack``, unless `take` is given.
    device : optional
        Where the kernel wants its arrays: what the library's arrays accept in ``to`` or ``to_device``.
    take : callable, optional
        Turns a NumPy array into one of the library, such as ``cupy.asarray``: CuPy takes no arrays of the CPU by
        DLPack.
    view : callable, optional
        ``view(x, "bfloat16")`` reads the bits of a uint16 array as bfloat16, and ``view(x, "uint16")`` the other way
        round; ``x.view(module.bfloat16)`` unless given.

    Returns
    -------
    callable
        The same kernel on NumPy arrays. It raises KernelFault if the kernel writes to its arguments.

    Raises
    ------
    ImportError
        If there is no such library.
    ValueError
        If it has no ``from_dlpack``.

    Examples
    --------
    >>> kernel = from_dlpack(lambda q, k, v: v, "numpy")  # NumPy speaks DLPack, too
    >>> kernel(np.zeros((1, 1, 1, 2)), np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1, 2)))
    array([[[[1., 1.]]]])
    """
    library = importlib.import_module(module) if isinstance(module, str) else module
    if take is None and not hasattr(library, "from_dlpack"):
        raise ValueError(f"from_dlpack: {library.__name__} has no from_dlpack; give take=, which makes its arrays")
    enter = take or library.from_dlpack
    see = view or (lambda x, name: x.view(getattr(library, name)))

    def handed(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        half = _is_bfloat16(x)
        bits = x.view(np.uint16) if half else x
        y = _entered(enter, bits)
        y = see(y, "bfloat16") if half else y
        if device is None:
            return y
        return y.to(device) if hasattr(y, "to") else y.to_device(device)

    def adapted(*arrays: Array, **options: Any) -> Any:
        names = input_names(arrays) if len(arrays) in (3, 4) else tuple(map(str, range(len(arrays))))
        witness = Witness(dict(zip(names, arrays, strict=True)) | options)
        given = {name: handed(x) for name, x in options.items()}
        result = kernel(*map(handed, arrays), **given)
        bits = [x.dtype == np.uint16 for x in arrays]
        result = _returned(result, any(bits), see if view else None)
        witness.check()
        return result

    try:
        shown = inspect.signature(kernel)
    except (TypeError, ValueError):  # some builtins have no signature, and then take no options here
        shown = inspect.Signature()
    return present(adapted, name_of(kernel), shown)


def to_numpy(x: Any) -> Any:
    """Turn an array of any library into a NumPy array; what is no array stays as it is.

    Arrays of another device are copied to this one. bfloat16 becomes that of the package ml_dtypes where it is
    installed, and otherwise uint16 with the same bits. Tuples and lists are turned item by item.

    Parameters
    ----------
    x : object
        An array with ``__dlpack__`` or ``__array__``, a tuple or list of such, or anything else.

    Returns
    -------
    object
        A NumPy array, which may share memory with `x`, or `x`.

    Raises
    ------
    TypeError
        If the array cannot be turned into a NumPy array.

    Examples
    --------
    >>> to_numpy((np.ones(2), None, 3))
    (array([1., 1.]), None, 3)
    """
    return _returned(x, uint16=False, view=None)


def _returned(x: Any, uint16: bool, view: Callable[[Any, str], Any] | None) -> Any:
    """Do as `to_numpy` says; bfloat16 as uint16 if asked."""
    if isinstance(x, tuple | list):
        items = [_returned(item, uint16, view) for item in x]
        return items if isinstance(x, list) else tuple(items)
    if isinstance(x, np.generic) or not (hasattr(x, "__dlpack__") or hasattr(x, "__array__")):
        return x
    y = x if isinstance(x, np.ndarray) else _leave(x, view)
    if y.dtype.name == "bfloat16" and uint16:
        return y.view(np.uint16)
    return y


def _is_bfloat16(x: Any) -> bool:
    """Whether a NumPy array holds bfloat16 numbers; the kit has no other use for uint16."""
    return bool(x.dtype.name in ("bfloat16", "uint16"))


def _entered(enter: Callable[[Array], Any], x: Array) -> Any:
    """Hand an array over; as a copy where the library takes no such strides or no array that may not be written."""
    # torch 2.13 does not refuse negative strides, it aborts the process.
    if not x.flags.writeable or not x.flags.aligned or min(x.strides, default=0) < 0:
        return enter(np.array(x, order="C"))
    try:
        return enter(x)
    except REFUSALS:
        return enter(np.array(x, order="C"))


def _leave(x: Any, view: Callable[[Any, str], Any] | None) -> Array:
    """Return an array of another library as a NumPy array."""
    named = str(getattr(x, "dtype", ""))
    try:
        for method in ("detach", "cpu" if hasattr(x, "cpu") else "get"):  # torch has the first two, CuPy the third
            x = getattr(x, method)() if hasattr(x, method) else x
        if "bfloat16" not in named:
            return _shared(x)
        library = sys.modules.get(type(x).__module__.partition(".")[0])
        if view is not None:
            x = view(x, "uint16")
        elif library is not None and hasattr(library, "uint16") and hasattr(x, "view"):
            x = x.view(library.uint16)
        bits = _shared(x)
    except REFUSALS as error:
        raise TypeError(
            f"cannot turn {type(x).__name__} of {named or 'no dtype'} into a NumPy array: {error}"
        ) from error
    return bits.view(storage("bfloat16")) if bits.dtype == np.uint16 else bits


def _shared(x: Any) -> Array:
    """Return a NumPy array on the memory of `x` where DLPack allows it, and otherwise a copy."""
    if not hasattr(x, "__dlpack__"):
        return np.asarray(x)
    try:
        return np.from_dlpack(x)
    except REFUSALS:
        return np.asarray(x)
