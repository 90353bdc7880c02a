"""Measurements of speed; each module runs as `python -m livereel.benchmarks.<name>`."""
