"""How good, how fast and how large a model is: alone, and beside the float one."""
