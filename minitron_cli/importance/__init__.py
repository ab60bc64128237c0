"""How much each layer, head, neuron and hidden channel matters, seen in one pass over a calibration set."""
