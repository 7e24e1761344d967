"""File formats, one file each, and the registry that picks the reader."""
