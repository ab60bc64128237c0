"""Search of a shape to prune to: a grid of shapes, constraints on them, and a ranking of the feasible ones."""
