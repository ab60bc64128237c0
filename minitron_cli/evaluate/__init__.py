"""Evaluation of models: perplexity, distance to the parent, lm-eval tasks, speed, and gates on all of them."""
