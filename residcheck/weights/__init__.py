"""What a model's weight matrices are, and whether they are what the model computes with."""
