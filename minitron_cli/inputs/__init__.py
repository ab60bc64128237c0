"""The models and token blocks that stages read."""
