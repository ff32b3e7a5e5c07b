"""A book that builds a language model, and the package that falls out of it."""

__version__ = "0.1.0"
