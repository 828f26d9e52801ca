"""What a user may choose, in one frozen value: the same words in Python, on the command line and in recipes."""

from requant.config.options import AUTO, METHODS, SMOOTH, QuantConfig, choices

__all__ = ["AUTO", "METHODS", "SMOOTH", "QuantConfig", "choices"]
