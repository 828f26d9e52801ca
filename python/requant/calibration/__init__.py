"""What activations look like, and the ranges that are chosen for them."""
