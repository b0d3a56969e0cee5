"""Write candidates: ECSV and FITS tables, and regions for DS9."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from skyloom.detection.cutouts import PLANES, cutouts
from skyloom.detection.photometry import DifferenceLike
from skyloom.errors import InputError

REGION_COLOURS = {"real, brighter": "green", "real, fainter": "cyan", "flagged": "red"}
REGION_RADIUS = 2.0
"""Radius of the circles, FWHM."""


def write_ecsv(candidates: Table, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the table with its units and descriptions as ECSV, which any text editor and astropy read.

    Parameters
    ----------
    candidates : Table
    path : path-like
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    path : Path

    Raises
    ------
    WriteError
        The file exists and `overwrite` is False, or it cannot be written.
    """
    from skyloom.io import atomic_write

    with atomic_write(path, overwrite=overwrite) as temporary:
        candidates.write(temporary, format="ascii.ecsv", overwrite=True)
    return Path(path)


def write_fits(
    candidates: Table,
    path: str | os.PathLike[str],
    difference: DifferenceLike | None = None,
    *,
    size: int = 41,
    overwrite: bool = False,
) -> Path:
    """Write a FITS file with the table (CANDIDATES) and, with a difference, the cutouts (CUTOUTS).

    The cutouts are one cube of shape (N, 4, size, size), in the order of the table; header cards PLANE1 to PLANE4
    name the planes.

    Parameters
    ----------
    candidates : Table
    path : path-like
    difference : Difference, optional
    size : int
        Side of the cutouts, odd.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    path : Path

    Raises
    ------
    WriteError
        The file exists and `overwrite` is False, or it cannot be written.
    """
    from skyloom.io import write_hdus
    from skyloom.io.quiet import quiet_astropy

    with quiet_astropy():  # it warns of metadata whose names are longer than 8 characters
        table_hdu = fits.table_to_hdu(candidates)
    table_hdu.name = "CANDIDATES"
    for i, name in enumerate(candidates.colnames, start=1):
        table_hdu.header[f"TCOMM{i}"] = candidates[name].info.description or ""
    hdus = fits.HDUList([fits.PrimaryHDU(), table_hdu])
    if difference is not None and len(candidates):
        cube = fits.ImageHDU(cutouts(difference, np.column_stack([candidates["x"], candidates["y"]]), size=size))
        cube.name = "CUTOUTS"
        for i, plane in enumerate(PLANES, start=1):
            cube.header[f"PLANE{i}"] = (plane, "along the third axis")
        hdus.append(cube)
    return write_hdus(hdus, path, overwrite=overwrite)


def write_regions(
    candidates: Table,
    path: str | os.PathLike[str],
    *,
    wcs: Any = None,
    coordinates: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write the candidates as circles for DS9: green brighter, cyan fainter, red flagged; the flags are the label.

    Parameters
    ----------
    candidates : Table
    path : path-like
    wcs : WCS, optional
        For celestial coordinates (ra and dec of the table are used where it has them).
    coordinates : {'auto', 'image', 'fk5'}
        'auto' writes celestial coordinates where they are known, else pixels.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    path : Path

    Raises
    ------
    InputError
        Celestial coordinates are asked for but unknown, or `coordinates` is another word.
    WriteError
        The file exists and `overwrite` is False, or it cannot be written.
    """
    from skyloom.io import atomic_write

    if coordinates not in ("auto", "image", "fk5"):
        raise InputError(f"coordinates is {coordinates!r}; 'auto', 'image' or 'fk5' are known.")
    known = wcs is not None or "ra" in candidates.colnames
    if coordinates == "fk5" and not known:
        raise InputError(
            "Regions in celestial coordinates need a WCS or the columns ra and dec; give wcs=, or write "
            "pixels with coordinates='image'."
        )
    celestial = known and coordinates != "image"
    radius = REGION_RADIUS * float(candidates.meta.get("fwhm", 4.0))
    places = _sky_circles(candidates, wcs, radius) if celestial else _image_circles(candidates, radius)
    lines = [
        "# Region file format: DS9 version 4.1",
        'global width=1 font="helvetica 10 normal"',
        "fk5" if celestial else "image",
    ]
    lines += [f"{place} # {_look(row)}" for place, row in zip(places, candidates, strict=True)]
    with atomic_write(path, overwrite=overwrite) as temporary:
        Path(temporary).write_text("\n".join(lines) + "\n", encoding="ascii")
    return Path(path)


def _image_circles(candidates: Table, radius: float) -> list[str]:
    """DS9 counts pixels from 1."""
    return [f"circle({x + 1:.3f},{y + 1:.3f},{radius:.2f})" for x, y in candidates.iterrows("x", "y")]


def _sky_circles(candidates: Table, wcs: Any, radius: float) -> list[str]:
    if len(candidates) == 0:
        return []
    x, y = np.asarray(candidates["x"]), np.asarray(candidates["y"])
    if wcs is None:
        return [f'circle({ra:.7f},{dec:+.7f},5.0")' for ra, dec in candidates.iterrows("ra", "dec")]
    sky, beside = (wcs.pixel_to_world(x + shift, y) for shift in (0.0, radius))
    size = sky.separation(beside).arcsec
    fk5 = sky.fk5
    return [f'circle({ra:.7f},{dec:+.7f},{r:.3f}")' for ra, dec, r in zip(fk5.ra.deg, fk5.dec.deg, size, strict=True)]


def _look(row: Any) -> str:
    kind = "flagged" if not row["real"] else "real, brighter" if row["sign"] > 0 else "real, fainter"
    label = f"{row['id']}: {row['snr']:+.1f}" + (f" {row['flag_text']}" if row["flag_text"] else "")
    return f"color={REGION_COLOURS[kind]} text={{{label}}}" + ("" if row["real"] else " dash=1")
