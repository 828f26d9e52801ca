"""NumPy in, NumPy out: products, convolutions, layers and packing of quantized arrays."""
