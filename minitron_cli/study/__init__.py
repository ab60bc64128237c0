"""Studies: recipes that differ in one choice, run with several seeds and compared in pairs."""
