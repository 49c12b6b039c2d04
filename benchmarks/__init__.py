"""What Palaver costs, beside what it is compared with: `python -m benchmarks` measures all of it at once."""
