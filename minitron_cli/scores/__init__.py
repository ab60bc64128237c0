"""Importance scores: names, storage, selection by metric, agreement of metrics. Knows no models."""
