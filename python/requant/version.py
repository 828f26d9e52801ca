"""The version; a test holds it equal to the compiled core's."""

__version__ = "0.1.0"
