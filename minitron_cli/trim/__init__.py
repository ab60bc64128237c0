"""What is cut, and what the cut checkpoint holds."""
