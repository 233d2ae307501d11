"""Bring a foreign kernel before the kit: in C, in a program, on another library's arrays, in another layout.

An adapter returns ``kernel(q, k, v, **options)`` on NumPy arrays (B, H, T, D) for something that is called in another
way. Adapters can be nested: ``from_layout(from_dlpack(f, "torch"), "packed")``.
"""

from pathlib import Path

from refattn.testing.adapters.ctypes_ import from_ctypes
from refattn.testing.adapters.dlpack import from_dlpack, to_numpy
from refattn.testing.adapters.isolate import isolated
from refattn.testing.adapters.layouts import from_layout
from refattn.testing.adapters.protocol import serve
from refattn.testing.adapters.subprocess_ import from_subprocess
from refattn.testing.faults import KernelFault

INCLUDE = Path(__file__).parent
"""The folder of refattn_runner.h, for the compiler's -I."""

__all__ = [
    "INCLUDE",
    "KernelFault",
    "from_ctypes",
    "from_dlpack",
    "from_layout",
    "from_subprocess",
    "isolated",
    "serve",
    "to_numpy",
]
