"""Lottery tickets: sparse networks that are trained from an early state, and those that are found without training."""
