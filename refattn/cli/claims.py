"""What a kernel claims, as options of a command and as a TOML file: the fields of a `Contract`."""

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from refattn.testing.contract import Contract

ALWAYS = "always"
OPTIONS = ("op", "dtype", "layout", "causal", "window", "softcap", "scale", "set", "contract")
"""The attributes of the parsed arguments that say something about the contract."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make up a contract."""
    group = parser.add_argument_group("what the kernel claims (by default: what refattn.attention does, in float32)")
    group.add_argument("--op", metavar="NAME", help="attention, attention_vjp, ... (default: attention)")
    group.add_argument("--dtype", metavar="NAME", help="float32, float16, bfloat16 or float64 (default: float32)")
    group.add_argument("--layout", metavar="NAME", help="bhtd, bthd, packed or paged (default: bhtd)")
    group.add_argument("--causal", action="store_true", help="every call is causal")
    group.add_argument("--window", nargs=2, metavar=("L", "R"), help="every call has this window; none: no bound")
    group.add_argument("--softcap", type=float, metavar="C", help="every call has this soft cap")
    group.add_argument("--scale", type=float, metavar="S", help="every call has this scale")
    group.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="any field of a Contract, such as blind_rows=nan, lse=none, head_dims=64,128, always.num_splits=4",
    )
    group.add_argument(
        "--contract", metavar="FILE", help="the fields in a TOML file; `refattn infer --toml` writes one"
    )


def contract_of(args: argparse.Namespace) -> "Contract":
    """Return the contract of the options: the file first, then what has an option of its own, then --set.

    Raises
    ------
    ValueError, LookupError, OSError
        For a file that cannot be read, an unknown field, or a value that does not fit.
    """
    from refattn.testing.contract import Contract

    given = {} if args.contract is None else read(args.contract)
    always = dict(given.pop(ALWAYS, {}))
    given |= {name: getattr(args, name) for name in ("op", "dtype", "layout") if getattr(args, name) is not None}
    always |= {"causal": True} if args.causal else {}
    always |= {name: getattr(args, name) for name in ("softcap", "scale") if getattr(args, name) is not None}
    if args.window is not None:
        always["window"] = tuple(_side(text) for text in args.window)
    for text in args.set or ():
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign:
            raise ValueError(f"--set wants NAME=VALUE; got {text!r}")
        if name.startswith(f"{ALWAYS}."):
            always[name.removeprefix(f"{ALWAYS}.")] = _guessed(value.strip())
        else:
            given[name] = from_text(f"--set {name}", value.strip(), _hint(name, "--set"))
    _check_options(given.get("op", "attention"), always)
    return Contract(**given, always=always)


def read(path: str) -> dict[str, Any]:
    """Return the fields of a contract from a TOML file; "none" stands for None, which TOML lacks."""
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except ValueError as error:  # of TOML, with the line, or of UTF-8
        raise ValueError(f"{path} is not TOML: {error}") from error
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name == ALWAYS:
            if not isinstance(value, dict):
                raise ValueError(f"{path}: always is {value!r}; wanted a table [always]")
            given[ALWAYS] = {option: _without_none(x) for option, x in value.items()}
        else:
            given[name] = _fitting(f"{path}: {name}", _without_none(value), _hint(name, path))
    return given


def toml(contract: "Contract") -> str:
    """Return the fields that are not the defaults as the text of a file for --contract.

    Examples
    --------
    >>> from refattn.testing.contract import Contract
    >>> print(toml(Contract(lse=None, head_dims=(64, 128), always={"causal": True})), end="")
    op = "attention"
    dtype = "float32"
    lse = "none"
    head_dims = [64, 128]
    <BLANKLINE>
    [always]
    causal = true
    """
    described = contract.described()
    always = described.pop(ALWAYS, {})
    lines = [f"{name} = {_written(x)}" for name, x in described.items()]
    if always:
        lines += ["", f"[{ALWAYS}]", *(f"{name} = {_written(x)}" for name, x in always.items())]
    return "\n".join(lines) + "\n"


def from_text(what: str, text: str, hint: Any) -> Any:
    """Return the value that a text stands for in a field of this type; ValueError if it does not fit.

    Examples
    --------
    >>> from_text("tile", "64", int), from_text("gqa", "false", bool), from_text("head_dims", "64,128", tuple[int, ...])
    (64, False, (64, 128))
    """
    kind, optional = _kind(hint)
    if optional and text.lower() == "none":
        return None
    if kind is str:
        return text
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return tuple(from_text(what, part.strip(), item) for part in text.split(",") if part.strip())
    value = _guessed(text)
    return _fitting(what, float(value) if kind is float and type(value) is int else value, kind)


def _fitting(what: str, value: Any, hint: Any) -> Any:
    """Return the value, a list as a tuple, if it is of the type; ValueError if not."""
    kind, optional = _kind(hint)
    if value is None and optional:
        return None
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_fitting(what, x, get_args(kind)[0]) for x in value)
    if kind is float and type(value) is int:
        return float(value)
    if get_origin(kind) is None and type(value) is kind:
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    wanted = words.get(kind, "a list") + " or none" * optional
    raise ValueError(f"{what} is {value!r}; wanted {wanted}")


def _kind(hint: Any) -> tuple[Any, bool]:
    """Return a type without its None, and whether it had one."""
    if isinstance(hint, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        return kinds[0], len(kinds) < len(get_args(hint))
    return hint, False


def _hint(name: str, source: str) -> Any:
    from refattn.testing.contract import Contract
    from refattn.testing.loading import nearest

    known = [field.name for field in fields(Contract) if field.name != ALWAYS]
    if name not in known:
        also = f" ({ALWAYS}.NAME=VALUE sets an option)" if name == ALWAYS else ""
        raise LookupError(f"{source}: a contract has no field {name!r}{also or nearest(name, known)}")
    return get_type_hints(Contract)[name]


def _check_options(op: str, always: Mapping[str, Any]) -> None:
    from refattn.testing.kit import operation
    from refattn.testing.loading import nearest

    known = operation(op).options
    for name in always:
        if name not in known:
            raise LookupError(f"{op} has no option {name!r} that could hold in every call{nearest(name, known)}")


def _guessed(text: str) -> Any:
    """Return true, false, none, a number, a list of such, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return tuple(_guessed(part.strip()) for part in text.split(",") if part.strip())
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _side(text: str) -> int | None:
    value = _guessed(text)
    if value is not None and type(value) is not int:
        raise ValueError(f"--window wants two whole numbers, or none for no bound; got {text!r}")
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_without_none(x) for x in value)
    return None if value == "none" else value


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps("none" if value is None else value)
