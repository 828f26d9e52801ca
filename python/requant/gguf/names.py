"""The names of the types, for those who must not load the core: a test holds them equal to its list."""

#: Each type, from the widest to the narrowest of a kind, in the core's order.
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
