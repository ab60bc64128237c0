"""Which shape to cut to: a grid, a budget, a ranking. Knows no checkpoint; what scores a shape is passed in."""
