"""The command line: parses, calls one stage, prints. One file per command; only `show` prints."""
