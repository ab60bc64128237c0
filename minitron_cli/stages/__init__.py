"""Each stage: artifacts in, one artifact out. Wires the packages together; computes nothing itself."""
