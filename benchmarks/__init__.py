"""Benchmarks of speed and memory, as ratios measured in one process. Results are in results/."""
