"""Templates of the model card and the report, and the cards of the reference models."""
