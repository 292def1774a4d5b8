"""Where a run's numbers go beside ``events.jsonl`` and Prometheus, by ``sinks`` of its spec."""
