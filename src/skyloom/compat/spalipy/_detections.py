"""Tables of detections: found in an image or given, filtered, and matched."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sep
from astropy.table import Table
from scipy.spatial import cKDTree

from skyloom.errors import InputError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.registration.detect import SourceFlag, detect_sources

log = logging.getLogger("skyloom.compat.spalipy")

Float = npt.NDArray[np.float64]

_ERRORS = ("x_err", "y_err")
_WORST_POSITION = 0.3
"""Pixels: error of the centroid of a clipped or cut profile, as in `skyloom.registration`."""

_CATALOGUE = {
    "x": ("X_IMAGE",),
    "y": ("Y_IMAGE",),
    "flux": ("FLUX_BEST", "FLUX", "FLUX_AUTO", "FLUX_ISO"),
    "fwhm": ("FWHM_IMAGE",),
    "flag": ("FLAGS",),
}


class TooFewDetectionsError(TooFewSourcesError, ValueError):
    """The detections cannot reach the number of matches that is asked for."""


def extract(exposure: Exposure, threshold: float) -> Table:
    """Detect the sources of an image; `flag` holds the bits that sep sets (1: blended, 2: cut)."""
    found = detect_sources(exposure, threshold=threshold)
    native = np.asarray(found["flag"])
    bad = (native & int(SourceFlag.SATURATED | SourceFlag.TRUNCATED)) != 0
    table = Table({name: np.asarray(found[name], np.float64) for name in ("x", "y", "flux", "fwhm")})
    flag = np.where(native & int(SourceFlag.BLENDED), sep.OBJ_MERGED, 0)
    flag |= np.where(native & int(SourceFlag.TRUNCATED), sep.OBJ_TRUNC, 0)
    table["flag"] = flag.astype(np.int16)
    for name in _ERRORS:
        table[name] = np.hypot(np.asarray(found[name], np.float64), np.where(bad, _WORST_POSITION, 0.0))
    return table


def select(table: Table, columns: list[str], *, min_fwhm: float, bad_flag_bits: int, min_sep: float) -> Table:
    """Return the detections that may be used, brightest first: wide enough, without bad flags, without neighbours.

    Of two that are nearer than `min_sep` neither is kept.
    """
    x, y, flux, fwhm, flag = columns
    kept = table[[*columns, *(name for name in _ERRORS if name in table.colnames and name not in columns)]]
    use = np.isfinite(np.asarray(kept[x], np.float64) + np.asarray(kept[y], np.float64))
    use &= np.asarray(kept[fwhm], np.float64) >= min_fwhm
    use &= (np.asarray(kept[flag], np.int64) & bad_flag_bits) == 0
    kept = kept[use]
    kept = kept[np.argsort(-np.asarray(kept[flux], np.float64), kind="stable")]
    if min_sep > 0 and len(kept) > 1:
        near = cKDTree(positions(kept, x, y)).query_pairs(min_sep, output_type="ndarray")
        alone = np.ones(len(kept), bool)
        alone[near.ravel()] = False
        kept = kept[alone]
    return kept


def positions(table: Table, x: str = "x", y: str = "y") -> Float:
    """Return the positions of a table, shape (N, 2)."""
    return np.column_stack([np.asarray(table[x], np.float64), np.asarray(table[y], np.float64)])


def cross_match(predicted: Float, tree: cKDTree, radius: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the pairs (predicted, listed) nearer than `radius` that have no rival within twice that.

    One to one: of several predicted positions with the same partner the nearest counts.
    """
    if not len(predicted) or tree.n == 0:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    finite = np.where(np.isfinite(predicted), predicted, 1e30)
    distance, partner = tree.query(finite, k=[1, 2], distance_upper_bound=2 * radius)
    good = np.flatnonzero((distance[:, 0] < radius) & np.isinf(distance[:, 1]))
    good = good[np.argsort(distance[good, 0], kind="stable")]
    _, first = np.unique(partner[good, 0], return_index=True)
    chosen = np.sort(good[first])
    return chosen, partner[chosen, 0]


def read_catalogue(path: str | Path) -> Table:
    """Read a catalogue of SExtractor (ASCII_HEAD, FITS_1.0 or FITS_LDAC) as a table of 0-based positions.

    Raises
    ------
    InputError
        It cannot be read, or a column is missing.
    """
    try:
        with Path(path).open("rb") as file:
            is_fits = file.read(9) == b"SIMPLE  ="
        table = _read_fits(path) if is_fits else Table.read(path, format="ascii.sextractor")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a catalogue of SExtractor: {error}", path=str(path)) from error
    columns = {}
    for name, choices in _CATALOGUE.items():
        found = next((choice for choice in choices if choice in table.colnames), None)
        if found is None:
            raise InputError(
                f"The catalogue {path} has no column {' or '.join(choices)}; add it to the parameters of SExtractor.",
                path=str(path),
                columns=table.colnames,
            )
        columns[name] = np.asarray(table[found])
    # the first pixel is 1 there, and 0 here
    return Table(columns | {axis: np.asarray(columns[axis], np.float64) - 1.0 for axis in ("x", "y")})


def _read_fits(path: str | Path) -> Table:
    from astropy.io import fits

    with fits.open(path) as hdus:
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU) and hdu.name != "LDAC_IMHEAD":
                return Table(hdu.data)
    raise ValueError("it holds no table")
