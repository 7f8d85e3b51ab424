"""Speed and strength, measured; run as `python -m benchmarks.NAME`."""
