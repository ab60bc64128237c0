"""How wide the minimum of a model is: volume of its basin, sharpness, and the loss between two models."""
