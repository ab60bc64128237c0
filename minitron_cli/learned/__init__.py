"""Masks of whole axes that are learned on text, with the weights frozen: the order in which entries are pruned."""
