"""What a measurement must say about where it was made, and what is installed there."""

import os
import platform
from datetime import datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np


def facts(backends: list[str]) -> dict[str, str]:
    """Return the machine, the versions that matter for `backends`, and the time, as text."""
    versions = [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    versions += [f"{name.capitalize()} {installed(name)}" for name in backends if name != "numpy" and installed(name)]
    busy = load()
    about = [processor(), f"{cores()} cores", f"{platform.system()} {platform.machine()}"]
    about += [] if busy is None else [f"load {busy:.1f}"]
    facts = {
        "machine": ", ".join(about),
        "versions": ", ".join(versions),
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
    }
    if busy is not None and busy > cores():
        facts["note"] = "others were at work: times are too long, those of NumPy's BLAS threads most of all"
    return facts


def load() -> float | None:
    """Return how many processes wanted to run during the last minute, on average; None where that is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def processor() -> str:
    """Return the processor's name, as Linux or else the platform knows it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Return how many bytes can be allocated before something suffers, or None where that is not known."""
    listing = Path("/proc/meminfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024  # it is given in kB
    return None


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def need(package: str, extra: str, purpose: str) -> None:
    """Raise ImportError, saying what to install, unless `package` can be imported."""
    try:
        import_module(package)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {package}: python -m pip install "refattn[{extra}]"') from error
