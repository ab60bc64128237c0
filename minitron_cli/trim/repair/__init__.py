"""What a cut damages and a closed form mends: no training, and the architecture stays the parent's own."""
