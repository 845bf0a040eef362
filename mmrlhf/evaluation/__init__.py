"""Benchmarks: the protocol of a benchmark file, predictions, judges, and paired comparison of
results."""
