"""Compress Hugging Face language models the Minitron way: importance, search, prune, distill, eval."""

__version__ = "0.1.0"
