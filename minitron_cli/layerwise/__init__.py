"""Runs a decoder one layer at a time under observers, in bounded memory. Knows no importance."""
