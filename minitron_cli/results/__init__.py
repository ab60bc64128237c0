"""What each stage stores, as typed, versioned models. Knows neither how a result comes about nor how it is shown."""
