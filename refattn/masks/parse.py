"""Masks from text: ``parse("causal() & window(255, 0)")``. A parser of its own small language; nothing is evaluated."""

import ast
from collections.abc import Callable

from refattn.masks import contents, drawn, free, positions, steps, tiled
from refattn.masks.algebra import Mask

PATTERNS: dict[str, Callable[..., Mask]] = {
    "causal": positions.causal,
    "window": positions.window,
    "padding": contents.padding,
    "document": contents.document,
    "global_tokens": contents.global_tokens,
    "from_array": free.from_array,
    "prefix_lm": positions.prefix_lm,
    "chunked": positions.chunked,
    "dilated": steps.dilated,
    "strided": steps.strided,
    "fixed": steps.fixed,
    "random": drawn.random,
    "random_blocks": tiled.random_blocks,
    "bigbird": tiled.bigbird,
    "longformer": tiled.longformer,
    "block": tiled.block,
}


def parse(text: str) -> Mask:
    """Return the mask that `text` spells: patterns called with literals, joined by ``&``, ``|``, ``~`` and brackets.

    Raises
    ------
    ValueError
        Names the place in `text` and what was expected there.

    Examples
    --------
    >>> parse("causal() & (window(255, 0) | global_tokens([0]))")
    causal() & (window(255, 0) | global_tokens([0]))
    """
    try:
        return _mask(ast.parse(text.strip(), mode="eval").body, text)
    except (MemoryError, RecursionError):
        raise ValueError(f"mask {text[:40]!r}...: nested too deep to be read") from None
    except SyntaxError as error:
        raise ValueError(
            f"mask {text!r}: not an expression of masks, {error.msg} at column {max(1, error.offset or 1)}"
        ) from None


def _mask(node: ast.expr, text: str) -> Mask:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return _mask(node.left, text) & _mask(node.right, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _mask(node.left, text) | _mask(node.right, text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return ~_mask(node.operand, text)
    where = f"mask {text!r}, column {node.col_offset + 1}"
    if isinstance(node, ast.Name) and node.id in PATTERNS:
        raise ValueError(f"{where}: {node.id} needs its brackets: {node.id}(...)")
    if not isinstance(node, ast.Call):
        raise ValueError(f"{where}: expected a pattern, one of {', '.join(sorted(PATTERNS))}")
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if name not in PATTERNS:
        raise ValueError(f"{where}: no pattern {name!r}; there are {', '.join(sorted(PATTERNS))}")
    try:
        args = [ast.literal_eval(argument) for argument in node.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{where}: the arguments of {name} must be plain numbers, lists or None") from None
    try:
        return PATTERNS[name](*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
