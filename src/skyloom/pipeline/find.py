"""`detect`: the candidates of a difference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from skyloom.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

    from skyloom.pipeline.difference import Difference


def detect(difference: Difference | str | os.PathLike[str], *, threshold: float = 5.0) -> Table:
    """List what changed.

    Parameters
    ----------
    difference : Difference or path
        A difference, or the FITS file of one.
    threshold : float
        Significance of the faintest candidate, in standard deviations.

    Returns
    -------
    astropy.table.Table
        One row per candidate; see `skyloom.detection.find_candidates`.

    Raises
    ------
    InputError
        The file is not a difference, or the threshold is not above 0.
    """
    from skyloom.detection import find_candidates
    from skyloom.pipeline.difference import Difference

    if not isinstance(difference, Difference | str | os.PathLike):
        raise InputError(
            f"A {type(difference).__name__} was given to detect; what skyloom.difference returns, or the path of its "
            "FITS file, is needed. To list the sources of one image, see skyloom.registration.detect_sources."
        )
    if not isinstance(difference, Difference):
        from skyloom.pipeline.store import read_difference

        difference = read_difference(difference)
    return find_candidates(difference, threshold=threshold)
