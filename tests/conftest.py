"""What every test run does: it says what it left out and why, and keeps Numba's cache honest."""

import configparser
import hashlib
import importlib
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from refattn import dispatch

ROOT = Path(__file__).parents[1]
LEFT_OUT = {
    "slow": "takes minutes, or downloads something; python -m pytest -m slow",
    "peers": 'compares with other libraries; python -m pip install ".[peers]" && python -m pytest -m peers',
}
LEFT = pytest.StashKey[dict]()


def _cache_dir():
    """Return a folder named after the present state of the backends: Numba does not notice edits in called files."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "backends").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    user = getattr(os, "getuid", lambda: "user")()
    return Path(tempfile.gettempdir()) / f"refattn-numba-{user}" / digest.hexdigest()[:16]


os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_dir()))


def _register_checkout():
    """Give the backends of a checkout that is not installed the names that setup.cfg announces."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options.entry_points"][dispatch.GROUP].strip().splitlines():
        name, module = (part.strip() for part in line.split("="))
        if name not in dispatch.backends():
            try:
                dispatch.register(name, importlib.import_module(module))
            except ImportError:
                continue  # its package is missing


_register_checkout()


def pytest_collection_modifyitems(config, items):
    """Leave out what is slow or needs more than the test extra, unless -m names it."""
    asked = config.getoption("-m")
    left = {name: [] for name in LEFT_OUT if name not in asked}
    for item in items:
        name = next((name for name in left if item.get_closest_marker(name)), None)
        if name is not None:
            left[name].append(item)
    config.stash[LEFT] = left
    out = {item for found in left.values() for item in found}
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


def pytest_terminal_summary(terminalreporter, config):
    """Say what was left out, and how to run it."""
    for name, items in config.stash.get(LEFT, {}).items():
        if items:
            files = ", ".join(sorted({item.location[0] for item in items}))
            terminalreporter.write_line(f"left out: {len(items)} marked {name}: {LEFT_OUT[name]} ({files})")


def _can_run(name):
    """Return the name, or skip with the reason why the backend cannot run here."""
    if name is None:
        pytest.skip("no backend but the reference is installed")
    try:
        reason = getattr(dispatch.load(name), "unavailable", lambda: None)() if name != dispatch.REFERENCE else None
    except ImportError as error:
        pytest.skip(str(error))
    if reason is not None:
        pytest.skip(f"backend {name} cannot run here: {reason}")
    return name


@pytest.fixture(params=[name for name in dispatch.backends() if name != dispatch.REFERENCE] or [None])
def backend(request):
    """Each backend that is installed, but for the reference."""
    return _can_run(request.param)


@pytest.fixture(params=dispatch.backends())
def anywhere(request):
    """The reference, and each backend that is installed."""
    return _can_run(request.param)


@pytest.fixture
def loopback():
    """A backend, registered as "loopback", that forwards every operation to the reference and notes it in ``calls``."""
    calls = []

    def forward(name):
        def call(*args, **kwargs):
            calls.append(name)
            return dispatch.OPERATIONS[name](*args, **kwargs)

        return call

    module = SimpleNamespace(**{name: forward(name) for name in dispatch.OPERATIONS}, RANK=99, LIMITS={}, calls=calls)
    dispatch.register("loopback", module)
    yield module
    dispatch.unregister("loopback")
