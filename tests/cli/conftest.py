import numpy as np
import pytest

from refattn import dispatch
from refattn.cli import judge, measure


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """Tests judge no times."""
    monkeypatch.setattr(measure, "REST", 0.0)


@pytest.fixture
def backends(monkeypatch):
    """Nobody but numpy, and whom the test registers."""
    monkeypatch.setattr(dispatch, "_announced", dict)
    monkeypatch.setattr(dispatch, "_registered", {})
    return dispatch.register


@pytest.fixture
def never(monkeypatch):
    """A test in which nothing may be computed."""

    def computed(*args, **kwargs):
        raise AssertionError("it computed before it refused")

    monkeypatch.setattr(judge, "judge", computed)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    shapes = {"q": (4, 9, 8), "k": (2, 11, 8), "v": (2, 11, 5)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def saved(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "input.npz", **arrays)
        return str(tmp_path / "input.npz")

    return save
