"""Where the time of a model goes (`network`, `profile`), and the metrics of a running service (`monitor`)."""

from refattn.watch.monitor import Monitor, monitor

__all__ = ["Monitor", "monitor"]
