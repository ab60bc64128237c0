"""What came of a run, as one page to read and one card to publish. Plain values in, text out."""
