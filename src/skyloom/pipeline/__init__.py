"""The stages chained: from files to a difference and its candidates."""

from skyloom.pipeline.difference import Difference, DifferenceOptions, difference
from skyloom.pipeline.find import detect

__all__ = ["Difference", "DifferenceOptions", "detect", "difference"]
