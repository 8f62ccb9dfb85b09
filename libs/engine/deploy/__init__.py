"""Export, cost and timing of a trained model."""
