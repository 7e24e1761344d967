"""Adaptive solvers that tell how they fared."""

__all__: list[str] = []
