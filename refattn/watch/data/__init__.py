"""A Grafana dashboard and Prometheus rules for the metrics of `refattn.watch.monitor`."""
