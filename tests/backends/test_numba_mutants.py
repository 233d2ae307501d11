"""A test of the tests of the numba backend: with one place of its source changed, the conformance cases must fail it.

The changed module, and every module that uses it, is executed anew and registered as a backend of its own. Changes to
what Numba compiles are compiled without a cache, which takes seconds each: those are slow.
"""

import ast
import functools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from refattn import dispatch
from refattn.testing.cases import cases
from refattn.testing.conformance import judge
from refattn.testing.verdicts import FAIL, PASS
from tests.mistakes import numba, numba_channels, numba_scan, numba_scan_back
from tests.mistakes.numba import GATHERED, SCATTERED, STRIPS

refattn_numba = pytest.importorskip("refattn_numba")
PACKAGE = "refattn_numba"
KINDS = (numba, numba_scan, numba_scan_back, numba_channels)
ALL = [mistake for kind in KINDS for mistake in kind.ALL]
COMPILED = [mistake for kind in KINDS for mistake in kind.COMPILED]


@functools.cache
def sources():
    """Return the source of every module of the backend, the used before their users."""
    found = {path.stem: path.read_text() for path in sorted(Path(refattn_numba.__file__).parent.glob("*.py"))}
    ordered = {}

    def place(name):
        for other in sorted(used_by(found[name]) - ordered.keys()):
            place(other)
        ordered.setdefault(name, found[name])

    for name in found:
        place(name)
    return ordered


@functools.cache
def used_by(text):
    """Return the modules of the backend that a source imports."""
    imports = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module)
    return {node.module.removeprefix(f"{PACKAGE}.") for node in imports if node.module.startswith(f"{PACKAGE}.")}


def users(module):
    """Return the module and those that use it, directly or not, in order."""
    found = [module]
    for name, text in sources().items():
        if name != module and used_by(text) & set(found):
            found.append(name)
    return found


def changed(mistake):
    """Return the changed source of the module."""
    text = sources()[mistake.module]
    assert text.count(mistake.old) == 1, f"{mistake.old!r} stands {text.count(mistake.old)} times in {mistake.module}"
    return text.replace(mistake.old, mistake.new)


def compiles(mistake):
    """Return whether what is changed stands in a function that Numba compiles."""
    text = sources()[mistake.module]
    line = text[: text.index(mistake.old)].count("\n") + 1
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return any(
        node.lineno <= line <= node.end_lineno and any("njit" in ast.unparse(by) for by in node.decorator_list)
        for node in functions
    )


def backend(module, text, knobs, cached):
    """Return the backend with another source of one module, and with its knobs turned."""
    names = users(module)
    names += [name for knob in knobs for name in users(knob.partition(".")[0]) if name not in names]
    names = [name for name in sources() if name in names]
    before = {name: sys.modules[qualified(name)] for name in names}
    folder = Path(refattn_numba.__file__).parent
    try:
        for name in names:
            new = sys.modules[qualified(name)] = ModuleType(qualified(name))
            new.__file__ = str(folder / f"{name}.py")
            source = text if name == module else sources()[name]
            source = source if cached else source.replace("cache=True", "cache=False")
            exec(compile(source, new.__file__, "exec"), vars(new))
            for knob, value in knobs.items():
                if knob.partition(".")[0] == name:
                    assert type(getattr(new, knob.partition(".")[2])) is type(value)
                    setattr(new, knob.partition(".")[2], value)
        return sys.modules[PACKAGE]
    finally:
        for name, old in before.items():
            sys.modules[qualified(name)] = old


def qualified(name):
    return PACKAGE if name == "__init__" else f"{PACKAGE}.{name}"


@pytest.fixture
def judged():
    """Judge the cases of some operations on a backend, those in float32 first."""

    def results(module, operations):
        dispatch.register("changed", module)
        for dtype in ("float32", "float16"):  # one kernel does for both
            for operation in operations.split():
                quick = cases(operation, "quick")
                for case in [*quick, *(case for case in cases(operation) if case not in quick)]:
                    if case.dtype == dtype:
                        yield judge(case, "changed", module.LIMITS)

    yield results
    if "changed" in dispatch.backends():
        dispatch.unregister("changed")


def killed(judged, mistake, cached):
    """Return the first result that fails the mistake, or None."""
    module = backend(mistake.module, changed(mistake), mistake.knobs, cached)
    return next((result for result in judged(module, mistake.operations) if result.verdict == FAIL), None)


def hold(failed):
    assert failed is not None, "survived"
    assert not failed.message.startswith("raised"), failed


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: f"{mistake.module}: {mistake.name}")
def test_the_mistake_is_failed(judged, mistake):
    assert not compiles(mistake)
    hold(killed(judged, mistake, cached=True))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", COMPILED, ids=lambda mistake: f"{mistake.module}: {mistake.name}")
def test_the_compiled_mistake_is_failed(judged, mistake):
    assert compiles(mistake)
    hold(killed(judged, mistake, cached=False))


@pytest.mark.parametrize("mistake", COMPILED, ids=lambda mistake: f"{mistake.module}: {mistake.name}")
def test_the_source_has_the_place_of_the_mistake(mistake):
    assert changed(mistake) != sources()[mistake.module]


KNOBS = [
    (SCATTERED, "global_attention global_attention_vjp longformer_attention longformer_attention_vjp"),
    (STRIPS, "topk_attention nsa_attention"),
    (GATHERED, "paged_attention"),
]


@pytest.mark.parametrize(("knobs", "operations"), KNOBS, ids=lambda x: str(x))
def test_without_a_mistake_all_cases_pass(judged, knobs, operations):
    module = backend("layout", sources()["layout"], knobs, cached=True)
    found = list(judged(module, operations))
    assert len(found) > 20
    assert [f"{result.check}: {result.message}" for result in found if result.verdict != PASS] == []


@pytest.mark.slow
def test_without_a_mistake_all_cases_pass_as_compiled_anew(judged):
    module = backend("layout", sources()["layout"], {}, cached=False)
    operations = sorted({name for mistake in (*ALL, *COMPILED) for name in mistake.operations.split()})
    failed = [result for result in judged(module, " ".join(operations)) if result.verdict != PASS]
    assert [f"{result.check}: {result.message}" for result in failed] == []
