"""Live traffic held against the ranges that a model was given for good."""
