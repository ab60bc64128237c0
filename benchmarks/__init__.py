"""Speed and memory, measured as ratios inside one process. Results are kept in results/."""
