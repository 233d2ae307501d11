import importlib.metadata
import inspect
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import refattn
from refattn import dispatch
from refattn.testing import cases
from refattn.testing.comparison import leaves

ROOT = Path(__file__).parents[1]
Q, K, V = (np.random.default_rng(0).normal(size=(2, 3, 4)) for _ in range(3))


def constant(value):
    """A backend whose attention is `value` everywhere."""
    return SimpleNamespace(attention=lambda q, k, v, **options: np.full_like(q, value))


@pytest.fixture
def registered(request):
    names = []

    def add(name, backend):
        refattn.register(name, backend)
        names.append(name)
        return backend

    yield add
    for name in names:
        refattn.unregister(name)


@pytest.mark.parametrize("operation", sorted(dispatch.OPERATIONS))
def test_loopback_runs_every_operation(loopback, operation):
    args, kwargs = cases(operation)[0].call()
    got = getattr(refattn, operation)(*args, **kwargs, backend="loopback")
    want = getattr(refattn, operation)(*args, **kwargs)
    assert loopback.calls == [operation]
    for (name, x), (_, y) in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_every_operation_is_exported_and_says_its_backend():
    for name in dispatch.OPERATIONS:
        parameter = inspect.signature(getattr(refattn, name)).parameters["backend"]
        assert name in refattn.__all__
        assert (parameter.default, parameter.kind) == ("numpy", inspect.Parameter.KEYWORD_ONLY)


def test_signatures_equal_those_of_the_reference(backend):
    module = dispatch.load(backend)
    offered = [name for name in dispatch.OPERATIONS if hasattr(module, name)]
    assert offered
    for name in offered:
        want = [p for p in inspect.signature(dispatch.OPERATIONS[name]).parameters.values() if p.name != "backend"]
        got = inspect.signature(getattr(module, name)).parameters.values()
        assert [shown(p) for p in got] == [shown(p) for p in want], name


def shown(p):
    """A parameter; a function that it has by default counts as its name, for a backend has its own."""
    default = (
        getattr(p.default, "name", getattr(p.default, "__name__", p.default)) if callable(p.default) else p.default
    )
    return p.name, p.kind, default


def test_numpy_is_the_default(loopback):
    refattn.attention(Q, K, V)
    assert loopback.calls == []


def test_use_backend_sets_the_default_and_nests(registered):
    registered("one", constant(1.0))
    registered("two", constant(2.0))
    with refattn.use_backend("one"):
        assert refattn.attention(Q, K, V)[0, 0, 0] == 1
        with refattn.use_backend("two"):
            assert refattn.attention(Q, K, V)[0, 0, 0] == 2
        assert refattn.attention(Q, K, V)[0, 0, 0] == 1
    np.testing.assert_array_equal(refattn.attention(Q, K, V), refattn.attention(Q, K, V, backend="numpy"))


def test_an_explicit_backend_beats_use_backend(registered):
    registered("one", constant(1.0))
    want = refattn.attention(Q, K, V)
    with refattn.use_backend("one"):
        np.testing.assert_array_equal(refattn.attention(Q, K, V, backend="numpy"), want)


def test_the_reference_of_a_composite_stays_the_reference(registered):
    """multi_head_attention calls attention inside: backend="numpy" must hold for that call too."""
    registered("one", constant(1.0))
    x, w = np.ones((3, 4)), np.eye(4)
    want = refattn.multi_head_attention(x, w, w, 5 * w, w, heads=2)
    with refattn.use_backend("one"):
        np.testing.assert_array_equal(refattn.multi_head_attention(x, w, w, 5 * w, w, heads=2, backend="numpy"), want)


def test_use_backend_ends_with_an_exception(registered):
    registered("one", constant(1.0))
    with pytest.raises(ZeroDivisionError), refattn.use_backend("one"):
        raise ZeroDivisionError
    assert refattn.attention(Q, K, V)[0, 0, 0] != 1


def test_use_backend_holds_for_its_own_thread_only(registered):
    registered("one", constant(1.0))
    seen = []
    with refattn.use_backend("one"):
        other = threading.Thread(target=lambda: seen.append(refattn.attention(Q, K, V)))
        other.start()
        other.join()
    np.testing.assert_array_equal(seen[0], refattn.attention(Q, K, V))


def test_threads_keep_their_own_backends(registered):
    registered("one", constant(1.0))
    registered("two", constant(2.0))
    seen, both = {}, threading.Barrier(2)

    def work(name):
        with refattn.use_backend(name):
            both.wait(timeout=30)
            seen[name] = refattn.attention(Q, K, V)[0, 0, 0]
            both.wait(timeout=30)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"one": 1, "two": 2}


def test_an_unknown_backend_is_refused_with_those_there():
    with pytest.raises(LookupError, match=r"no backend 'numbaa'; there are: numpy.*'auto'"):
        refattn.attention(Q, K, V, backend="numbaa")
    with pytest.raises(LookupError, match="no backend 'typo'"), refattn.use_backend("typo"):
        pass


def test_an_unknown_argument_is_refused_under_the_operations_name(loopback):
    for name in ("numpy", "loopback"):
        with pytest.raises(TypeError, match=r"attention: .*causal"):
            refattn.attention(Q, K, V, causal=True, backend=name)
    with pytest.raises(TypeError, match="attention: missing a required argument: 'v'"):
        refattn.attention(Q, K)


@pytest.mark.parametrize("name", ["numpy", "auto"])
def test_taken_names_cannot_be_registered(name):
    with pytest.raises(ValueError, match="taken"):
        refattn.register(name, SimpleNamespace())


def test_registering_replaces_and_unregistering_forgets(registered):
    registered("one", constant(1.0))
    registered("one", constant(3.0))
    assert refattn.attention(Q, K, V, backend="one")[0, 0, 0] == 3
    refattn.unregister("one")
    refattn.unregister("one")  # not there: nothing to forget
    assert "one" not in refattn.backends()


def test_a_missing_operation_is_unsupported_and_says_who_covers_it(registered, loopback):
    registered("one", constant(1.0))
    with pytest.raises(refattn.Unsupported, match=r"'one'.*rope.*it has no rope.*Covered by: .*numpy.*loopback"):
        refattn.rope(Q, np.arange(3), backend="one")


def test_limits_refuse_an_argument_only_when_it_is_given(registered):
    registered("one", constant(1.0)).LIMITS = {"attention(bias)": "no room", "rope": "it cannot turn"}
    assert refattn.attention(Q, K, V, backend="one")[0, 0, 0] == 1
    assert refattn.attention(Q, K, V, bias=None, backend="one")[0, 0, 0] == 1
    with pytest.raises(refattn.Unsupported, match="bias=: no room"):
        refattn.attention(Q, K, V, bias=np.zeros((3, 3)), backend="one")
    with pytest.raises(refattn.Unsupported, match="it cannot turn"):
        refattn.rope(Q, np.arange(3), backend="one")


def test_unsupported_is_a_not_implemented_error():
    assert issubclass(refattn.Unsupported, NotImplementedError)


def test_a_backend_that_cannot_run_here_says_why(registered):
    registered("far", constant(1.0)).unavailable = lambda: "no such processor"
    with pytest.raises(refattn.Unsupported, match="no such processor"):
        refattn.attention(Q, K, V, backend="far")


def test_bad_input_is_refused_before_the_backend_sees_it(loopback):
    with pytest.raises(ValueError, match="attention: k has 5 keys and v has 3 values"):
        refattn.attention(Q, np.zeros((2, 5, 4)), V, backend="loopback")
    assert loopback.calls == []


def test_auto_takes_the_highest_rank_that_covers_the_call(registered, caplog):
    registered("slow", constant(1.0)).RANK = 1000
    registered("fast", constant(2.0)).RANK = 2000
    dispatch.load("fast").LIMITS = {"attention(softcap)": "no tanh"}
    with caplog.at_level(logging.DEBUG, logger="refattn"):
        assert refattn.attention(Q, K, V, backend="auto")[0, 0, 0] == 2
    assert "fast is the fastest backend" in caplog.text
    assert refattn.attention(Q, K, V, softcap=1.0, backend="auto")[0, 0, 0] == 1
    with refattn.use_backend("auto"):
        assert refattn.attention(Q, K, V)[0, 0, 0] == 2


def test_auto_passes_over_what_cannot_run_here(registered):
    registered("far", constant(1.0)).RANK = 1000
    dispatch.load("far").unavailable = lambda: "no such processor"
    assert refattn.explain("attention", Q, K, V).reasons["far"] == "no such processor"
    assert refattn.explain("attention", Q, K, V).chosen != "far"


def test_explain_names_every_backend_and_runs_none(registered, loopback):
    registered("one", constant(1.0)).LIMITS = {"rope": "it cannot turn"}
    explanation = refattn.explain(refattn.rope, Q, np.arange(3))
    assert loopback.calls == []
    assert explanation.operation == "rope"
    assert explanation.chosen == "loopback"
    assert explanation.reasons["one"] == "it cannot turn"
    assert next(iter(explanation.reasons)) == "loopback"  # fastest first
    assert set(explanation.reasons) == set(refattn.backends())
    assert "it cannot turn" in str(explanation)
    with pytest.raises(LookupError, match="no operation 'ropes'"):
        refattn.explain("ropes", Q)


class Broken:
    """What importlib.metadata returns for a package whose own import fails."""

    dist = SimpleNamespace(
        name="refattn", metadata=SimpleNamespace(get_all=lambda field: ["broken"] if field == "Provides-Extra" else [])
    )
    name, value = "broken", "refattn_broken"

    def load(self):
        raise ModuleNotFoundError("No module named 'a_package'")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", lambda: {"broken": Broken()})
    assert "broken" in refattn.backends()
    with pytest.raises(ImportError, match=r'No module named .a_package.*python -m pip install "refattn\[broken\]"'):
        refattn.attention(Q, K, V, backend="broken")
    assert "No module named" in refattn.explain("attention", Q, K, V).reasons["broken"]
    assert refattn.attention(Q, K, V, backend="auto").shape == Q.shape  # passes over it


def test_two_packages_cannot_announce_one_name(monkeypatch):
    entries = [SimpleNamespace(name="x", value="a"), SimpleNamespace(name="x", value="b")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    dispatch._announced.cache_clear()
    try:
        with pytest.raises(LookupError, match="two packages announce a backend 'x': a, b"):
            refattn.backends()
    finally:
        dispatch._announced.cache_clear()


USES_THE_TOY = """
import numpy as np
import refattn

assert "toy" in refattn.backends(), refattn.backends()
q, k, v = (np.random.default_rng(n).normal(size=(2, 4, 5, 8)) for n in range(3))
np.testing.assert_allclose(refattn.attention(q, k, v, backend="toy"), refattn.attention(q, k, v), atol=1e-12)
try:
    refattn.attention(q, k, v, softcap=1.0, backend="toy")
except refattn.Unsupported as refusal:
    assert "this is a toy" in str(refusal) and "numpy" in str(refusal), refusal
else:
    raise SystemExit("the toy took a softcap")
try:
    refattn.attention(q, k, v, backend="toybroken")
except ImportError as error:
    assert 'python -m pip install "refattn-toy[toybroken]"' in str(error), error
else:
    raise SystemExit("the toy without its package was loaded")
print(refattn.explain("attention", q, k, v))
"""


def test_an_installed_third_party_backend_is_found(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(ROOT / "tests" / "toy_backend", source)  # building writes into its folder
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(source)]
    installed = subprocess.run([*install, *_isolation()], capture_output=True, text=True, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    path = os.pathsep.join([str(ROOT), str(target)])
    used = subprocess.run(
        [sys.executable, "-c", USES_THE_TOY],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert used.returncode == 0, used.stderr
    assert "covers it" in used.stdout and "toy" in used.stdout


def _isolation():
    """Build with the setuptools that is here where it can make wheels by itself; else pip fetches one."""
    try:
        have = tuple(int(part) for part in importlib.metadata.version("setuptools").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if have >= (70, 1) else []


def test_auto_passes_over_a_backend_that_fails_to_load(monkeypatch):
    def fail():
        raise RuntimeError("no place for a cache")

    entry = SimpleNamespace(name="failing", value="x", dist=None, load=fail)
    monkeypatch.setattr(dispatch, "_announced", lambda: {"failing": entry})
    monkeypatch.setattr(dispatch, "_registered", {})
    assert refattn.attention(Q, K, V, backend="auto").shape == Q.shape
    with pytest.raises(ImportError, match="'failing' fails to load: RuntimeError: no place for a cache"):
        refattn.attention(Q, K, V, backend="failing")


@pytest.mark.parametrize("backend", ["", [], 3])
def test_a_backend_that_is_no_name_is_refused(backend):
    with pytest.raises(LookupError, match="no backend"):
        refattn.attention(Q, K, V, backend=backend)
