"""Inverse problems and neural differential equations, seen through one idea: regularization."""

__version__ = "0.1.0"
__all__ = ["__version__"]
