"""One call of a C function: arrays become pointers into guarded memory, and come back as results.

Which arguments there are and what they are called is settled in `refattn.testing.adapters.ctypes_`.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn.arrays import Array
from refattn.dense.common import sum_to
from refattn.testing.adapters.common import Kernel, Witness, input_names
from refattn.testing.adapters.guards import Guarded
from refattn.testing.faults import KernelFault

AS_Q = "as q"  # the element type of q
WIDE = "wide"  # float, or double if q is double
ELEMENTS: dict[str, Any] = {
    **{"float": np.float32, "double": np.float64, "bool": np.bool_, "uint8": np.uint8},
    **{"int": np.int32, "int32": np.int32, "int64": np.int64},
}
ON_SCORES = ("bias", "mask", "dropout_mask")
PER_SEQUENCE = ("q_offset", "seqlens_k")


@dataclass(frozen=True)
class Argument:
    """One argument of the C function."""

    name: str
    kind: str
    """input, output, strides, size or number."""
    type: str
    """The C type of a number, the element type of an array."""


def call(
    function: Any,
    arguments: Sequence[Argument],
    arrays: Sequence[Array],
    options: Mapping[str, Any],
    layout: str,
    forward: Kernel | None,
) -> Any:
    """Call the function and return its results in the order of the kit."""
    values = dict(zip(input_names(arrays), arrays, strict=True)) | dict(options)
    sizes = _sizes(values, layout)
    _fill_in(values, sizes)
    if forward is not None:
        values |= _of_forward(forward, values, options, layout)
    strided = {a.name for a in arguments if a.kind == "strides"}
    memory: dict[str, Guarded] = {}
    views: dict[str, Array] = {}  # what the pointers point to
    for a in arguments:
        dtype = _dtype(a.type, values["q"].dtype)
        if a.kind == "input" and values.get(a.name) is not None:
            x = _shaped(a.name, values[a.name], dtype, sizes)
            if a.name in strided:
                views[a.name] = _steppable(x)
            else:
                memory[a.name] = Guarded.holding(a.name, x)
        elif a.kind == "output" and (a.name not in ("dbias", "dsinks") or values.get(a.name[1:]) is not None):
            shape = _result_shape(a.name, values, sizes, layout)
            memory[a.name] = Guarded(a.name, shape, dtype, gaps=a.name in strided)
    views |= {name: guarded.array for name, guarded in memory.items()}
    witness = Witness({name: x for name, x in views.items() if name not in memory})

    status = function(*(_passed(a, views, values, sizes) for a in arguments))
    faults = [f"returned status {status}"] if status else []
    faults += [fault for guarded in memory.values() for fault in guarded.faults()]
    if faults:
        raise KernelFault("; ".join(faults))
    witness.check()
    return _results(memory, values, "do" in values)


def _sizes(values: Mapping[str, Any], layout: str) -> dict[str, int]:
    q, k, v = (values[name] for name in ("q", "k", "v"))
    sizes = {"D": q.shape[-1], "Dv": v.shape[-1]}
    if layout == "bhtd":
        names = {"B": q.shape[0], "H": q.shape[1], "Tq": q.shape[2], "Hk": k.shape[1], "Tk": k.shape[2]}
    elif layout == "bthd":
        names = {"B": q.shape[0], "H": q.shape[2], "Tq": q.shape[1], "Hk": k.shape[2], "Tk": k.shape[1]}
    elif layout == "packed":
        lengths = [np.diff(values[f"cu_seqlens_{x}"]) for x in "qk"]
        names = {"B": len(lengths[0]), "H": q.shape[1], "Hk": k.shape[1], "total_q": len(q), "total_k": len(k)}
        names |= {f"T{x}": int(n.max(initial=0)) for x, n in zip("qk", lengths, strict=True)}
    else:
        columns = values["page_table"].shape[1]
        names = {"B": q.shape[0], "H": q.shape[1], "Tq": q.shape[2], "Hk": k.shape[2], "Tk": columns * k.shape[1]}
        names |= {"n_pages": k.shape[0], "page": k.shape[1], "max_pages": columns}
    return sizes | names


def _fill_in(values: dict[str, Any], sizes: Mapping[str, int]) -> None:
    """Give every number the value that says that the case has none."""
    if values.get("scale") is None:
        values["scale"] = 1 / math.sqrt(max(1, sizes["D"]))
    left, right = values.pop("window", None) or (None, None)
    values["window_left"] = -1 if left is None else left
    values["window_right"] = -1 if right is None else right
    for name in ("causal", "num_splits"):
        values[name] = int(values.get(name) or 0)
    for name in ("softcap", "dropout_p"):
        values[name] = float(values.get(name) or 0)


def _of_forward(
    forward: Kernel, values: Mapping[str, Any], options: Mapping[str, Any], layout: str
) -> dict[str, Array]:
    """Return the o and lse that a backward kernel asks for."""
    turned = [values[name].swapaxes(1, 2) if layout == "bthd" else values[name] for name in ("q", "k", "v")]
    result = forward(*turned, **{name: x for name, x in options.items() if name != "dlse"})
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError("from_ctypes: forward returned no (o, lse)")
    return {"o": result[0].swapaxes(1, 2) if layout == "bthd" else result[0], "lse": result[1]}


def _dtype(kind: str, like: np.dtype[Any]) -> np.dtype[Any]:
    if kind == AS_Q:
        return like
    if kind == WIDE:
        return np.dtype(np.float64 if like == np.float64 else np.float32)
    return np.dtype(ELEMENTS.get(kind, np.float64))


def _shaped(name: str, x: Any, dtype: np.dtype[Any], sizes: Mapping[str, int]) -> Array:
    """Return an input in the element type and the full shape that the C function sees."""
    x = np.asarray(x).astype(dtype, copy=False)
    if name in ON_SCORES:
        return np.broadcast_to(x, tuple(sizes[axis] for axis in ("B", "H", "Tq", "Tk")))
    return np.broadcast_to(x, (sizes["B"],)) if name in PER_SEQUENCE else x


def _steppable(x: Array) -> Array:
    """Return `x`, or a copy if its strides are no whole numbers of elements."""
    fits = x.flags.aligned and all(step % x.itemsize == 0 for step in x.strides)
    return x if fits else x.copy()


def _result_shape(name: str, values: Mapping[str, Any], sizes: Mapping[str, int], layout: str) -> tuple[int, ...]:
    if name == "o":
        return (*values["q"].shape[:-1], sizes["Dv"])
    if name == "lse":
        axes = ("H", "total_q") if layout == "packed" else ("B", "H", "Tq")
        return tuple(sizes[axis] for axis in axes)
    if name == "dbias":
        return tuple(sizes[axis] for axis in ("B", "H", "Tq", "Tk"))
    return (sizes["H"],) if name == "dsinks" else values[name[1:]].shape


def _passed(a: Argument, views: Mapping[str, Array], values: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    if a.kind == "size":
        return sizes[a.name]
    if a.kind == "number":
        return values[a.name]
    x = views.get(a.name)
    if x is None:
        return None  # NULL
    if a.kind == "strides":
        return ctypes.cast((ctypes.c_int64 * x.ndim)(*(step // x.itemsize for step in x.strides)), ctypes.c_void_p)
    return x.ctypes.data


def _results(memory: Mapping[str, Guarded], values: Mapping[str, Any], backward: bool) -> Any:
    names = ("dq", "dk", "dv", "dbias", "dsinks") if backward else ("o", "lse")
    results = {name: memory[name].array.copy() for name in names if name in memory}
    if "dbias" in results:  # the C function sees the bias in full, and so gives its gradient
        wide = results["dbias"].astype(np.float64)
        results["dbias"] = sum_to(wide, np.shape(values["bias"])).astype(results["dbias"].dtype)
    found = tuple(results.values())
    return found[0] if len(found) == 1 else found
