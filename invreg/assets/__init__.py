"""Images that ship with the package, and the one function that reads each."""

from invreg.assets.colin27 import BRAIN_SLICES, HEAD_SLICES, Slice, brain_slice, head_slice

__all__ = ["BRAIN_SLICES", "HEAD_SLICES", "Slice", "brain_slice", "head_slice"]
