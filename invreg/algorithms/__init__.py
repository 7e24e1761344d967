"""Algorithms: how misfit and belief make a reconstruction."""
