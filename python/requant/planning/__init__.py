"""What will be quantized, decided before any data is seen, and what it is worth."""
