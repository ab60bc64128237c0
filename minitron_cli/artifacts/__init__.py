"""Content-addressed results on disk: build, commit, verify and find them. Knows no models."""
