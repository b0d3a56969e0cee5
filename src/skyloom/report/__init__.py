"""Plots and the self-contained page."""

from skyloom.report.page import write_report

__all__ = ["write_report"]
