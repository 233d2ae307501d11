"""Where the time of a model goes, and the metrics of a running service."""
