"""Losses fused with the language-model head; logits of shape [tokens, vocab] never exist."""
