"""Performance: data sheets of accelerators, FLOP counts, and the predicted cost of sampling and of a training step."""
