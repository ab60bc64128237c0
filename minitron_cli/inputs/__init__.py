"""Models and token blocks that stages read."""
