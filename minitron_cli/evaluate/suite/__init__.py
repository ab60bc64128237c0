"""Tasks of the Minitron suite that lm-eval lacks, or that need the network there for more than their data."""
