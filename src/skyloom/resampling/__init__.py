"""Bring pixels onto another grid, once, with every plane."""
