"""Training a student, most often to repeat its teacher. Knows models, tensors and blocks; no artifacts."""
