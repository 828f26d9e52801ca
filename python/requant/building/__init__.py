"""From a plan and ranges to the integers and parameters of a quantized model."""
