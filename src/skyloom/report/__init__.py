"""Plots and the self-contained page."""
