"""Regularizers: what we believe before we measure."""
