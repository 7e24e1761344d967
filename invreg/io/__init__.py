"""File formats, one a file; their libraries are imported when first used."""

from invreg.io.data_exchange import find_centre
from invreg.io.hounsfield import hu_to_mu, mu_to_hu
from invreg.io.records import Image, KSpace, Record, Sinogram, centre_crop
from invreg.io.registry import Format, formats, read, targets, write

__all__ = [
    "Format",
    "Image",
    "KSpace",
    "Record",
    "Sinogram",
    "centre_crop",
    "find_centre",
    "formats",
    "hu_to_mu",
    "mu_to_hu",
    "read",
    "targets",
    "write",
]
