"""What a teacher said of a text, kept on disk: drawn or most probable ids of each position. Knows no student."""
