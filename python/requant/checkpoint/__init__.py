"""Files of weights without a graph."""
