"""The operations of a refattn backend as kernels of the kit: plain keywords in; masks, named states underneath."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

import refattn
from refattn import masks
from refattn.arrays import Array
from refattn.dispatch import OPERATIONS
from refattn.results import LinearState, Rwkv4State
from refattn.testing.attention.oracle import added, visible_pairs
from refattn.testing.attention.problem import Problem
from refattn.testing.contract import ATTENTION_OPTIONS, Contract
from refattn.testing.recurrence import FAMILIES

KERNELS = {
    "attention": "attention",
    "flash_attention": "attention",
    "attention_split_kv": "attention",
    "attention_vjp": "attention_vjp",
    "flash_attention_vjp": "attention_vjp",
    **{operation: operation for operation in FAMILIES},  # the other forms are held against the reference by cases
}
"""The operations of refattn that the kit's own operations judge, too."""
CARRIED = {
    **dict.fromkeys(("causal", "q_offset", "window", "seqlens_k"), "mask"),
    "alibi_slopes": "bias",
    "dropout_p": "dropout_mask",
}
"""The argument of refattn that an option of the kit needs."""
DIRECT = ("scale", "softcap", "sinks", "dropout_mask", "dropout_p", "num_splits", "dlse")
"""The options that refattn takes by the same name."""


def backend_kernel(operation: str, backend: str) -> Callable[..., Any]:
    """Return one operation of a backend as a kernel of the kit."""
    if KERNELS[operation] in FAMILIES:
        return _recurrent_kernel(operation, backend)
    function = getattr(refattn, operation)
    parameters = inspect.signature(OPERATIONS[operation]).parameters
    named = ("causal", "q_offset", "window", "bias", "mask", "alibi_slopes", "seqlens_k")
    takes = [name for name in (*ATTENTION_OPTIONS, "dlse") if name in named or name in parameters]

    def kernel(*arrays: Array, **options: Any) -> Any:
        q, k, v = arrays[-3:]
        p = Problem(q, k, v, options)
        given = {name: options[name] for name in DIRECT if name in options}
        pattern = mask_of(p)
        if pattern is not None:
            given["mask"] = pattern
        if "bias" in options or "alibi_slopes" in options:
            given["bias"] = added(p, Contract(), np.float64 if q.dtype == np.float64 else np.float32)
        if "return_lse" in parameters:
            given["return_lse"] = True
        if operation == "flash_attention_vjp":
            forward = {name: x for name, x in given.items() if name != "dlse"}
            o, lse = refattn.flash_attention(q, k, v, **forward, backend=backend)
            return _own_bias(function(arrays[0], q, k, v, o, lse, **given, backend=backend), options)
        result = function(*arrays, **given, backend=backend)
        return _own_bias(result, options) if operation.endswith("vjp") else result

    return _named(kernel, operation, backend, takes)


def _named(kernel: Callable[..., Any], operation: str, backend: str, takes: list[str]) -> Callable[..., Any]:
    """Give a kernel its name, and the keywords that it takes."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    kernel.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("arrays", inspect.Parameter.VAR_POSITIONAL)]
        + [inspect.Parameter(name, keyword, default=None) for name in takes]
    )
    kernel.__name__ = f"{operation}, backend {backend}"
    kernel.__qualname__ = kernel.__name__
    return kernel


STATES: dict[str, type[Any]] = {"linear_attention": LinearState, "rwkv4": Rwkv4State}
"""The named tuples of the operations that carry several states."""


def _recurrent_kernel(operation: str, backend: str) -> Callable[..., Any]:
    """Return one operation of the linear-time family, whose packed sequences have an axis of one batch in the kit."""
    function, family = getattr(refattn, operation), FAMILIES[KERNELS[operation]]
    takes = [name for name in family.keywords if name in inspect.signature(function).parameters]

    def kernel(*arrays: Array, **options: Any) -> Any:
        given = dict(options)
        if family.name == "causal_conv1d" and "initial_state" in given:  # inputs that went by, in their dtype
            given["initial_state"] = given["initial_state"].astype(arrays[0].dtype)
        if family.name in STATES and "initial_state" in given:
            given["initial_state"] = STATES[family.name](*given["initial_state"])
        if "cu_seqlens" not in given:
            return function(*arrays, **given, backend=backend)
        batched = {f.name for f in family.all_fields if f.axes[0] == "B"}
        own = [x[0] if f.name in batched else x for x, f in zip(arrays, family.arrays, strict=True)]
        given = {name: x[0] if name in batched else x for name, x in given.items()}
        o, state = function(*own, **given, backend=backend)
        return o[None], state

    return _named(kernel, operation, backend, takes)


def _own_bias(gradients: Any, options: dict[str, Any]) -> Any:
    """Leave out the gradient of a bias that came from ALiBi, and sum that of the rest to the shape that was given."""
    if "bias" not in options:
        return gradients._replace(dbias=None)
    shape = options["bias"].shape
    if gradients.dbias.shape == shape:
        return gradients
    from refattn.dense.common import sum_to

    return gradients._replace(dbias=sum_to(gradients.dbias, shape).astype(options["bias"].dtype))


def mask_of(p: Problem) -> Any:
    """Return the mask of a problem: joined from values that backends know, or as an array where an offset moves it."""
    options = p.options
    causal, window, lengths = (options.get(name) for name in ("causal", "window", "seqlens_k"))
    Tq = p.q.shape[2]
    offset = options.get("q_offset")
    if offset is None and lengths is not None:
        offset = np.asarray(lengths, np.int64) - Tq
    if window is not None and offset is not None:
        return visible_pairs(p, Contract())
    found = []
    if causal:
        found.append(masks.causal(offset))
    if window is not None:
        found.append(masks.window(*window))
    if lengths is not None:
        found.append(masks.padding(lengths))
    if options.get("mask") is not None:
        array = options["mask"]
        if not found:
            return array if array.ndim > 1 else array[None]
        found.append(masks.from_array(array if array.ndim > 1 else array[None]))
    if not found:
        return None
    joined = found[0]
    for other in found[1:]:
        joined = joined & other
    return joined
