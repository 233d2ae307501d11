"""Kernels in a shared library: C, or whatever exports C functions.

What a function takes is written down as the names of its arguments in their order. Its arrays stand between guard
bands, so that a write outside of them is found.
"""

import ctypes
import inspect
import os
from typing import Any

from refattn.arrays import Array
from refattn.testing.adapters import common
from refattn.testing.adapters.c_call import AS_Q, ELEMENTS, WIDE, Argument, call
from refattn.testing.adapters.common import BACKWARD, FORWARD, KNOWN, Kernel, present
from refattn.testing.adapters.layouts import LAYOUTS, from_layout

ARRAYS = {
    **dict.fromkeys(("q", "k", "v", "do"), AS_Q),
    **dict.fromkeys(("bias", "sinks", "alibi_slopes", "dlse"), WIDE),
    **dict.fromkeys(("mask", "dropout_mask"), "bool"),
    **dict.fromkeys(("seqlens_k", "q_offset", "cu_seqlens_q", "cu_seqlens_k", "page_table"), "int32"),
}
OUTPUTS = {**dict.fromkeys(("o", "dq", "dk", "dv"), AS_Q), **dict.fromkeys(("lse", "dbias", "dsinks"), WIDE)}
NUMBERS = {
    **dict.fromkeys(("scale", "softcap", "dropout_p"), "float"),
    **dict.fromkeys(("causal", "num_splits", "window_left", "window_right"), "int"),
}
SIZES = {
    "bhtd": ("B", "H", "Hk", "Tq", "Tk", "D", "Dv"),
    "bthd": ("B", "H", "Hk", "Tq", "Tk", "D", "Dv"),
    "packed": ("B", "H", "Hk", "Tq", "Tk", "D", "Dv", "total_q", "total_k"),
    "paged": ("B", "H", "Hk", "Tq", "Tk", "D", "Dv", "n_pages", "page", "max_pages"),
}
C_TYPES: dict[str, Any] = {
    **{"float": ctypes.c_float, "double": ctypes.c_double, "bool": ctypes.c_bool, "size_t": ctypes.c_size_t},
    **{"int": ctypes.c_int, "int32": ctypes.c_int32, "int64": ctypes.c_int64},
}


def from_ctypes(
    lib: str | os.PathLike[str] | ctypes.CDLL,
    symbol: str,
    signature: str,
    *,
    layout: str = "bhtd",
    page: int = 16,
    forward: Kernel | None = None,
) -> Kernel:
    """Return a kernel that calls a function of a shared library.

    `signature` names the arguments in their order, such as ``"q k v o lse B H Hk Tq Tk D Dv scale causal -> int"``:

    - arrays, as pointers: ``q k v do``, in the dtype of the case; ``bias mask dropout_mask`` (B, H, Tq, Tk), ``sinks
      alibi_slopes`` (H,), ``dlse``; ``seqlens_k q_offset`` (B,), int32. NULL if the case has none.
    - results, as pointers: ``o lse``, or ``dq dk dv dbias dsinks``. lse, dbias, dsinks and the floats above are float,
      or double if q is. dbias is (B, H, Tq, Tk). A backward kernel may ask for ``o`` and ``lse``, which `forward`
      computes.
    - sizes: ``B H Hk Tq Tk D Dv``, int64.
    - numbers: ``scale softcap dropout_p``, float; ``causal num_splits window_left window_right``, int. scale is always
      given; the others are 0, the sides of the window -1, if the case has none.
    - ``q.strides``, and so for every array and result: int64[ndim], counted in elements. An array whose strides are
      asked for comes as the case has it, others are contiguous; a result has gaps between its rows then.
    - ``name:type`` for another C type (``Tq:int``, ``scale:double``, ``seqlens_k:int64``): float, double, int, int32,
      int64, size_t, bool for numbers and sizes; the same and uint8, but not size_t, for the elements of arrays other
      than q, k, v, o and their gradients.
    - ``-> int`` if the function returns a status; any but 0 is a fault. Without it the function returns nothing.

    Only the options that it names reach the kernel.

    Parameters
    ----------
    lib : path or ctypes.CDLL
        The library.
    symbol : str
        The function.
    signature : str
        Its arguments, as above.
    layout : str
        Of its arrays; see `from_layout`. Packed: also ``cu_seqlens_q cu_seqlens_k total_q total_k``, and Tq and Tk are
        those of the longest sequence. Paged: also ``page_table n_pages page max_pages``, and k and v are pages.
    page : int
        How many keys a page holds.
    forward : callable, optional
        The kernel from which a backward one gets o and lse.

    Returns
    -------
    callable
        The kernel. It raises KernelFault if the function writes outside its results or to its arguments, or returns a
        status that is not 0. A crash ends the process: see `isolated`.

    Raises
    ------
    OSError
        If the library cannot be loaded.
    ValueError
        If it has no such function, or the signature has a name that is not known here.

    Examples
    --------
    >>> from_ctypes(ctypes.CDLL(None), "no_such_kernel", "q k v o")
    Traceback (most recent call last):
    ValueError: from_ctypes: the library has no function 'no_such_kernel'
    """
    if layout not in LAYOUTS:
        raise ValueError(f"from_ctypes: layout is {layout!r}; wanted one of {', '.join(LAYOUTS)}")
    if forward is not None and layout not in ("bhtd", "bthd"):
        raise ValueError(f"from_ctypes: forward= goes with layout bhtd or bthd, not {layout}")
    arguments, status = parse(signature, layout, forward is not None)
    function = _function(lib, symbol)
    function.restype = ctypes.c_int if status else None
    function.argtypes = [C_TYPES[a.type] if a.kind in ("size", "number") else ctypes.c_void_p for a in arguments]

    def called(*arrays: Array, **options: Any) -> Any:
        return call(function, arguments, arrays, options, layout, forward)

    return from_layout(present(called, symbol, _shown(arguments)), layout, page=page)


def parse(text: str, layout: str, has_forward: bool) -> tuple[list[Argument], bool]:
    """Return the arguments that a signature names, and whether the function returns a status."""
    names, arrow, returned = text.partition("->")
    if arrow and returned.strip() not in ("int", "void"):
        raise ValueError(f"from_ctypes: the function returns {returned.strip()!r}; wanted int or void")
    words = names.split()
    backward = "do" in [word.partition(":")[0] for word in words]
    arguments = [_argument(word, layout, backward) for word in words]
    found = {a.name for a in arguments if a.kind in ("input", "output", "number")}
    needed = {*BACKWARD, "dq", "dk", "dv"} if backward else {*FORWARD, "o"}
    if needed - found:
        raise ValueError(f"from_ctypes: the signature lacks {', '.join(sorted(needed - found))}")
    if len({"window_left", "window_right"} & found) == 1:
        raise ValueError("from_ctypes: window_left and window_right go together")
    for gradient in ("dbias", "dsinks"):
        if gradient in found and gradient[1:] not in found:
            raise ValueError(f"from_ctypes: the signature has {gradient} and no {gradient[1:]}")
    if backward and {"o", "lse"} & found and not has_forward:
        raise ValueError("from_ctypes: a backward kernel that asks for o or lse needs forward=, which computes them")
    return arguments, returned.strip() == "int"


def _argument(word: str, layout: str, backward: bool) -> Argument:
    name, _, type_ = word.partition(":")
    name, dot, asked = name.partition(".")
    inputs = ARRAYS | ({"o": AS_Q, "lse": WIDE} if backward else {})
    outputs = {x: t for x, t in OUTPUTS.items() if x not in inputs and (x in ("o", "lse")) != backward}
    if name in inputs or name in outputs:
        if dot and asked == "strides" and not type_:
            return Argument(name, "strides", "pointer")
        fixed = (inputs | outputs)[name] == AS_Q
        if not dot and (not type_ or (type_ in ELEMENTS and not fixed)):
            return Argument(name, "input" if name in inputs else "output", type_ or (inputs | outputs)[name])
    elif not dot and (name in SIZES[layout] or name in NUMBERS) and type_ in ("", *C_TYPES):
        return Argument(name, "size" if name in SIZES[layout] else "number", type_ or NUMBERS.get(name, "int64"))
    known = ", ".join((*inputs, *outputs, *SIZES[layout], *NUMBERS))
    raise ValueError(f"from_ctypes: {word!r} is not known; wanted one of {known}, perhaps with .strides or :type")


def _function(lib: Any, symbol: str) -> Any:
    if not isinstance(lib, ctypes.CDLL):
        path = os.fspath(lib)
        try:
            lib = ctypes.CDLL(os.path.abspath(path) if os.path.exists(path) else path)
        except OSError as error:
            raise OSError(f"from_ctypes: cannot load the library {path}: {error}") from error
    try:
        return lib[symbol]  # a function object of its own: its types are set here
    except AttributeError:
        raise ValueError(f"from_ctypes: the library has no function {symbol!r}") from None


def _shown(arguments: list[Argument]) -> inspect.Signature:
    """Return the signature of the kernel: its options are those that the C function can be told."""
    named = {a.name for a in arguments} | {"window" for a in arguments if a.name == "window_left"}
    laid_out = ("cu_seqlens_q", "cu_seqlens_k", "page_table")
    options = [name for name in (*KNOWN, *laid_out) if name in named]
    return common.signature(BACKWARD if "do" in named else FORWARD, options)
