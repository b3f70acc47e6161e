"""Loading a model package and predicting with it."""
