"""Text or token ids in, blocks of tokens out."""
