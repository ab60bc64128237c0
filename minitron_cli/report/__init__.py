"""Presentation of results: one view, rendered as an HTML page, a model card, Markdown and terminal tables."""
