"""The interfaces of other packages over our solvers: change one import line and keep the code."""

from . import torchdiffeq, torchsde

__all__ = ["torchdiffeq", "torchsde"]
