"""Registration to the sky: the template is a catalogue of stars, brought to the time of the exposure."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time
from astropy.wcs import WCS

from skyloom.errors import InputError, NoOverlapError, SkyloomWarning
from skyloom.exposure import Exposure
from skyloom.registration.register import RegistrationOptions, checked_options, register
from skyloom.registration.result import Registration
from skyloom.registration.sip import gnomonic

Float = npt.NDArray[np.float64]

_COLUMNS = {
    "ra": ("ra", "ra_icrs", "raj2000", "_raj2000", "alpha_j2000", "ra_deg"),
    "dec": ("dec", "de_icrs", "dej2000", "_dej2000", "delta_j2000", "dec_deg"),
    "pmra": ("pmra", "pm_ra_cosdec", "pmra_cosdec"),
    "pmdec": ("pmdec", "pmde", "pm_dec"),
    "ref_epoch": ("ref_epoch", "epoch"),
    "mag": ("phot_g_mean_mag", "gmag", "mag", "rmag", "r", "g", "vmag", "jmag", "magnitude"),
    "ra_err": ("ra_error", "e_ra_icrs"),
    "dec_err": ("dec_error", "e_de_icrs"),
}
"""What catalogues call a column, in lower case, the first that is there wins."""

_UNITS = {"ra": "deg", "dec": "deg", "pmra": "mas/yr", "pmdec": "mas/yr", "ra_err": "mas", "dec_err": "mas"}
"""Units of columns that name none: those of Gaia."""

_RADIANS = float(np.radians(1 / 3.6e6))
"""Radians per milliarcsecond."""

_MARGIN = 0.15
"""Part of the image's diagonal by which its pointing may be wrong where a WCS says where it is."""

_WIDEST = 40.0
"""Degrees from the centre: beyond, a tangent plane is no picture of the sky."""


def register_to_catalogue(
    source: Any,
    catalogue: Table | str | os.PathLike[str],
    options: RegistrationOptions | None = None,
    *,
    epoch: Time | float | str | None = None,
    centre: SkyCoord | None = None,
    pixel_scale: float | None = None,
) -> Registration:
    """Find where an image lies on the sky from a catalogue of stars.

    The stars, moved to the time of the exposure, are projected to a tangent plane, which is the template; so the
    result's `wcs` is the absolute WCS of the source. The source's own WCS, where it has one, is tried first and
    verified; without one nothing but the catalogue's field needs to be right.

    Parameters
    ----------
    source : Exposure, Table, or what `skyloom.io.read` accepts
        The image, or its sources; see `skyloom.register`.
    catalogue : Table or path
        Table with positions (ra, dec; ICRS) and, where known, proper motions (pmra, which includes cos(dec), pmdec),
        their ref_epoch (Julian year), a magnitude and errors; a file in any format that `astropy.table` reads: FITS,
        ECSV, VOTable. The names are those of Gaia and VizieR; columns without a unit have those of Gaia.
    options : RegistrationOptions, optional
        How to work. `scale_range` is relative to `pixel_scale`.
    epoch : Time, float (Julian year) or str, optional
        When the source was taken; the default is what its header says.
    centre : SkyCoord, optional
        Centre of the field; the default is from the source's WCS, else the centre of the catalogue.
    pixel_scale : float, optional
        Arcseconds per pixel of the source, roughly; the default is from its WCS, else the one at which the catalogue
        is as large as the image.

    Returns
    -------
    Registration
        Its template are the pixels of the tangent plane, with north up and east to the left.

    Raises
    ------
    InputError
        The catalogue cannot be read or has no positions.
    NoOverlapError
        No star of the catalogue lies near the image.
    RegistrationError
        See `skyloom.register`.
    """
    if not isinstance(source, Table | Exposure):
        from skyloom.io import read

        source = read(source)
    options = checked_options(options)
    stars = _Catalogue(catalogue)
    is_image = isinstance(source, Exposure)
    header, wcs = (source.header, source.wcs) if is_image else (source.meta, source.meta.get("wcs"))
    shape = source.shape if is_image else options.source_shape or source.meta.get("shape")
    sky = stars.at(_year(epoch, header))
    if wcs is not None and options.use_wcs and centre is None and shape is not None:
        plane = _plane_of_image(wcs, shape)
    else:
        plane = _plane_of_catalogue(sky, shape, centre, pixel_scale)
    return register(source, stars.table(sky, plane), options)


class _Catalogue:
    """Columns of a catalogue in one set of units."""

    def __init__(self, catalogue: Table | str | os.PathLike[str]) -> None:
        table, self.name = _as_table(catalogue)
        known = {str(name).lower(): name for name in table.colnames}
        self.columns: dict[str, Float] = {}
        for key, choices in _COLUMNS.items():
            name = next((known[choice] for choice in choices if choice in known), None)
            if name is not None:
                self.columns[key] = _values(table[name], _UNITS.get(key), name)
        if missing := {"ra", "dec"} - set(self.columns):
            raise InputError(
                f"The catalogue {self.name} has no column for {' and '.join(sorted(missing))}; it has "
                f"{', '.join(table.colnames)}.",
                columns=table.colnames,
            )

    def at(self, year: float | None) -> Float:
        """Return right ascension and declination (degrees) at a time; without one those of the catalogue.

        A star moves along a straight line in space, r + t (pmra e_east + pmdec e_north), without parallax.
        """
        c = self.columns
        here = np.column_stack([c["ra"], c["dec"]])
        if not {"pmra", "pmdec", "ref_epoch"} <= set(c):
            return here
        if year is None:
            warnings.warn(
                f"The time of the exposure is unknown: the stars of {self.name} are taken where they were at the "
                "catalogue's epoch. Give epoch=.",
                SkyloomWarning,
                stacklevel=3,
            )
            return here
        lon, lat = np.radians(here.T)
        r = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
        east = np.array([-np.sin(lon), np.cos(lon), np.zeros_like(lon)])
        north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
        years = np.nan_to_num(year - c["ref_epoch"])
        r += years * (_RADIANS * np.nan_to_num(c["pmra"]) * east + _RADIANS * np.nan_to_num(c["pmdec"]) * north)
        return np.degrees(np.column_stack([np.arctan2(r[1], r[0]) % (2 * np.pi), np.arctan2(r[2], np.hypot(*r[:2]))]))

    def table(self, sky: Float, plane: WCS) -> Table:
        """Return the stars on a tangent plane, as `register` takes them."""
        scale, (ny, nx) = float(plane.wcs.cdelt[1]), plane.array_shape
        near = separation(sky, plane.wcs.crval) < _WIDEST
        xy = np.full(sky.shape, np.nan)
        xy[near] = gnomonic(sky[near], plane.wcs.crval) / [-scale, scale] + (plane.wcs.crpix - 1)
        with np.errstate(invalid="ignore"):
            use = np.all((xy > -0.5) & (xy < np.array([nx, ny]) - 0.5), axis=1)
        if not use.any():
            raise NoOverlapError(
                f"None of the {len(use)} stars of {self.name} lies near the image. Check the image's WCS, or ignore it "
                "(use_wcs=False) and give centre= and pixel_scale=, which is for Python only.",
                name=self.name,
            )
        columns = {"x": xy[use, 0], "y": xy[use, 1]}
        if "mag" in self.columns:
            magnitude = self.columns["mag"][use]
            faintest = np.nanmax(magnitude) if np.isfinite(magnitude).any() else 0.0
            columns["flux"] = 10 ** (-0.4 * (np.where(np.isfinite(magnitude), magnitude, faintest) - faintest))
        if {"ra_err", "dec_err"} <= set(self.columns):
            columns["x_err"], columns["y_err"] = (
                self.columns[name][use] / (3.6e6 * scale) for name in ("ra_err", "dec_err")
            )
        return Table(columns, meta={"name": self.name, "shape": (ny, nx), "wcs": plane})


def _as_table(catalogue: Any) -> tuple[Table, str]:
    if isinstance(catalogue, Table):
        return catalogue, str(catalogue.meta.get("name", "catalogue"))
    path = Path(catalogue)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", units.UnitsWarning)
            return Table.read(path), path.name
    except Exception as error:  # each format has errors of its own
        raise InputError(f"{path} cannot be read as a table: {error}", path=str(path)) from error


def _values(column: Any, unit: str | None, name: str) -> Float:
    """Return a column as float64 in a unit, NaN where it is masked."""
    values = np.ma.filled(np.ma.asarray(getattr(column, "value", column), np.float64), np.nan)
    own = getattr(column, "unit", None)
    if unit is None or own is None or isinstance(own, units.UnrecognizedUnit):
        return np.array(values, np.float64)
    try:
        return np.array(units.Unit(own).to(unit, values), np.float64)
    except units.UnitConversionError as error:
        raise InputError(f"The column {name} is in {own}, which is no {unit}.", column=name) from error


def _year(epoch: Time | float | str | None, header: Mapping[str, Any]) -> float | None:
    """Return the Julian year of an exposure, None if it is unknown."""
    if isinstance(epoch, int | float):
        return float(epoch)
    if epoch is not None:
        return float(Time(epoch).jyear)
    for key in ("MJD-AVG", "MJD-MID", "MJD-OBS", "MJD", "DATE-AVG", "DATE-OBS"):
        value = header.get(key)
        if value in (None, ""):
            continue
        try:
            return float(Time(float(value), format="mjd").jyear if key.startswith("MJD") else Time(str(value)).jyear)
        except ValueError:
            continue
    return None


def separation(sky: Float, origin: Float) -> Float:
    """Return the angular distance of positions (N, 2) from one, degrees (Vincenty's formula, exact at any distance)."""
    lon, lat = np.radians(sky - [origin[0], 0.0]).T
    lat0 = np.radians(origin[1])
    across = np.hypot(np.cos(lat) * np.sin(lon), np.cos(lat0) * np.sin(lat) - np.sin(lat0) * np.cos(lat) * np.cos(lon))
    along = np.sin(lat0) * np.sin(lat) + np.cos(lat0) * np.cos(lat) * np.cos(lon)
    return np.degrees(np.arctan2(across, along))


def _plane_of_image(wcs: Any, shape: tuple[int, int]) -> WCS:
    """Return a tangent plane that holds an image and its margin, on pixels of the image's size."""
    ny, nx = shape
    corners = [[0, 0], [nx - 1, ny - 1], [nx - 1, 0], [0, ny - 1]]
    xy = np.array([[(nx - 1) / 2, (ny - 1) / 2], *corners])
    points = wcs.pixel_to_world(xy[:, 0], xy[:, 1])
    if not isinstance(points, SkyCoord):
        raise InputError(f"The WCS of the source gives {type(points).__name__}; a celestial WCS is needed.")
    sky = np.column_stack([points.icrs.ra.deg, points.icrs.dec.deg])
    diagonal = float(separation(sky[1:2], sky[2])[0])
    radius = float(separation(sky, sky[0]).max()) + _MARGIN * diagonal
    return _plane(sky[0], radius, diagonal / np.hypot(nx - 1, ny - 1))


def _plane_of_catalogue(
    sky: Float, shape: tuple[int, int] | None, centre: SkyCoord | None, pixel_scale: float | None
) -> WCS:
    """Return a tangent plane that holds a catalogue."""
    if centre is None:
        lon, lat = np.radians(sky[np.isfinite(sky).all(axis=1)].T)
        x, y, z = (np.cos(lat) * np.cos(lon)).mean(), (np.cos(lat) * np.sin(lon)).mean(), np.sin(lat).mean()
        origin = np.degrees([np.arctan2(y, x) % (2 * np.pi), np.arctan2(z, np.hypot(x, y))])
    else:
        origin = np.array([centre.icrs.ra.deg, centre.icrs.dec.deg], np.float64)
    radius = min(float(np.nanmax(separation(sky, origin))), _WIDEST)
    if pixel_scale is None and shape is None:
        raise InputError("The size of the image is unknown: give pixel_scale=, or source_shape in the options.")
    scale = 2 * radius / max(shape or (1,)) if pixel_scale is None else pixel_scale / 3600
    return _plane(origin, max(radius, 2 * scale), scale)


def _plane(origin: Float, radius: float, scale: float) -> WCS:
    """Return a TAN WCS of square shape; scale in degrees."""
    size = int(np.ceil(2 * np.degrees(np.tan(np.radians(min(radius, _WIDEST)))) / scale)) + 1
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cunit = ["RA---TAN", "DEC--TAN"], ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = origin, [(size + 1) / 2] * 2, [-scale, scale]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    wcs.array_shape = (size, size)
    return wcs
