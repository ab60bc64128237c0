"""Bytes on disk: checkpoints, artifacts, the workspace. Knows no axis."""
