"""What protections take away, cell by cell: `python -m benchmarks.strength --help`."""
