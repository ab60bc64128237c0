"""What each stage stores, as typed and versioned models. Knows neither how results come about nor how they are shown."""
