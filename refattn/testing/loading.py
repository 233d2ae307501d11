"""Find what a person names on a command line: the function of a module or of a file."""

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_object(text: str) -> Callable[..., Any]:
    """Return the function that a text names.

    The present folder, and that of a file, come first where Python looks for modules, and stay there, as they do for
    ``python -m``: what is named may import its neighbours, now or when it is called.

    Parameters
    ----------
    text : str
        ``package.module:function`` or ``path/to/file.py:function``; the name may have dots.

    Returns
    -------
    callable
        The function, the class or whatever else can be called.

    Raises
    ------
    ValueError
        If the text names no function, or something that cannot be called.
    ImportError
        If there is no such module or file, or it cannot be imported.
    LookupError
        If it has no such name; the nearest are offered.

    Examples
    --------
    >>> load_object("math:sqrt")(9)
    3.0
    >>> load_object("math:factoril")
    Traceback (most recent call last):
    LookupError: math has no 'factoril'; did you mean 'factorial'?
    """
    where, _, name = text.rpartition(":")
    where = where.removesuffix(":")  # as pytest writes it: file.py::function
    if not where or not name:
        raise ValueError(f"{text!r} names no function; wanted module:function or path/to/file.py:function")
    found: Any = load_module(where)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n, x in vars(found).items() if callable(x) and not n.startswith("_")]
            raise LookupError(f"{where} has no {name!r}{nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{text} is {type(found).__name__}; wanted something to call")
    return found


def load_module(where: str) -> ModuleType:
    """Import a module by its name or by the path of its file; ImportError says in a sentence why it cannot be."""
    _look_in(Path.cwd())
    if where.endswith(".py") or "/" in where or os.sep in where:
        return _from_file(where)
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{where}.".startswith(f"{error.name}."):
            close = difflib.get_close_matches(where, [path.stem for path in Path.cwd().glob("*.py")], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ImportError(f"there is no module {error.name!r}, neither here nor installed{hint}") from error
        raise ImportError(f"{where} cannot be imported: {error}{_place(error)}") from error
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        raise ImportError(f"{where} cannot be imported: {type(error).__name__}: {error}{_place(error)}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: what was meant, perhaps, or what there is.

    Examples
    --------
    >>> nearest("casual", ["causal", "window"]), nearest("x", ["causal", "window"]), nearest("x", [])
    ("; did you mean 'causal'?", '; there are: causal, window', '; there is none')
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(word, names, 3)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return "; there is none"
    return f"; there are: {', '.join(names[:30])}" + ", ..." * (len(names) > 30)


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_file(where: str) -> ModuleType:
    """Import a file: under its full name if it is part of a package, else under its own."""
    path = Path(where).resolve()
    if not path.is_file():
        other = Path(f"{where}.py")
        raise ImportError(f"there is no file {where}" + (f"; did you mean {other}?" if other.is_file() else ""))
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) > 1:
        _look_in(folder)
        module = load_module(".".join(parts if path.stem != "__init__" else parts[:-1]))
        if module.__file__ is None or Path(module.__file__).resolve() != path:
            raise ImportError(
                f"{where} is {'.'.join(parts)}, and another file of this name comes first: {module.__file__}"
            )
        return module
    _look_in(path.parent)
    return _alone(path, where)


def _alone(path: Path, where: str) -> ModuleType:
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == path:
        return known
    name = path.stem if known is None else f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        del sys.modules[name]
        raise ImportError(f"{where} cannot be imported: {type(error).__name__}: {error}{_place(error)}") from error
    return module


def _place(error: BaseException) -> str:
    """Return where outside of the machinery of imports an error was raised; a SyntaxError says it itself."""
    if isinstance(error, SyntaxError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    outside = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    return f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
