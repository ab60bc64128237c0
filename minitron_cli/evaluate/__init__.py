"""What a model is worth: perplexity, distance to the parent, lm-eval tasks, and gates on all of them."""
