"""What `refattn cost --list` shows: models, hardware and mechanisms that have a name, with their sources."""

import math
from typing import TYPE_CHECKING, Any

from refattn.cli.console import columns, emit, plain_table
from refattn.cli.cost_numbers import Number
from refattn.cli.cost_text import scaled, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show(console: "Console") -> int:
    """Print the tables; return 0."""
    from refattn.costs.hardware import HARDWARE
    from refattn.costs.names import MECHANISMS
    from refattn.costs.presets import PRESETS, preset
    from refattn.costs.recurrent import WORK

    models = _table("model", "parameters", "source")
    for name, entry in PRESETS.items():
        models.add_row(name, scaled(preset(name).params(), ""), entry.source)
    devices = _table("hardware", "memory", "bandwidth", "matrix products", "exponentials", "source")
    for name, hw in HARDWARE.items():
        dtype = "bfloat16" if "bfloat16" in hw.peak else next(iter(hw.peak))
        best = f"{scaled(hw.peak[dtype], 'FLOP/s')} {dtype}"
        rates = [scaled(hw.bandwidth, "B/s"), best, scaled(hw.exp_rate, "exp/s") if math.isfinite(hw.exp_rate) else ""]
        devices.add_row(name, text(Number(hw.memory, "B")), *rates, f"{hw.source}, {hw.date}")
    names = ", ".join(dict.fromkeys((*MECHANISMS, *WORK)))
    emit(console, "", models, "", devices, "", columns([("mechanism", f'{names}, or a mask: "window(255, 0)"')]), "")
    return 0


def _table(*names: str) -> "Table":
    table: Any = plain_table(gap=2)
    for name in names:
        words = name in ("model", "hardware", "source")
        table.add_column(name, justify="left" if words else "right", no_wrap=name != "source", overflow="fold")
    return table
