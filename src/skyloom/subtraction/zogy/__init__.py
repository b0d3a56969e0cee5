"""Proper image subtraction (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27).

`proper` has the formulas, `bank` the filters over the field, `match` the fit to stars, `moving` the score of sources
that moved, `subtract` the order of work, `dropin` stdpipe's interface; `skyloom.fill` replaces unusable pixels.
"""

from skyloom.subtraction.zogy.match import Match
from skyloom.subtraction.zogy.moving import moving_significance
from skyloom.subtraction.zogy.result import DifferencePsf, ZogyOptions, ZogyResult
from skyloom.subtraction.zogy.subtract import subtract_zogy

__all__ = ["DifferencePsf", "Match", "ZogyOptions", "ZogyResult", "moving_significance", "subtract_zogy"]
