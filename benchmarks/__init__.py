"""What Palaver costs, beside what it is compared with. Each module runs: `python -m benchmarks.actors`."""
