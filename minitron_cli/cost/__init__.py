"""Tokens and FLOPs of a result, derived along its lineage."""
