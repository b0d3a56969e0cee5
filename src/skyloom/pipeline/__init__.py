"""The stages chained: from files to a difference and its candidates."""

from skyloom.pipeline.difference import Difference, DifferenceOptions, difference
from skyloom.pipeline.find import detect
from skyloom.pipeline.many import BatchOptions, Interrupted, difference_many
from skyloom.pipeline.outcome import Outcome, outcome_table, write_outcomes
from skyloom.pipeline.stack import coadd
from skyloom.pipeline.template import Template, prepare_template

__all__ = [
    "BatchOptions",
    "Difference",
    "DifferenceOptions",
    "Interrupted",
    "Outcome",
    "Template",
    "coadd",
    "detect",
    "difference",
    "difference_many",
    "outcome_table",
    "prepare_template",
    "write_outcomes",
]
