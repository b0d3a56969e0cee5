"""The source's WCS: the template's, composed with the transform, as TAN-SIP (Shupe et al. 2005) or TPV."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from astropy.coordinates import SkyCoord
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning, Sip

from skyloom.errors import InputError, SkyloomWarning, WcsError
from skyloom.registration.transform import exponents, monomials

if TYPE_CHECKING:
    from skyloom.registration.result import Registration

Float = npt.NDArray[np.float64]

_GRID = 33
_MAX_ORDER = {"SIP": 9, "TPV": 7}
"""Highest degrees that the conventions' readers allow."""


def registration_wcs(
    registration: Registration,
    template_wcs: Any = None,
    *,
    tolerance: float = 0.01,
    max_order: int = 7,
    convention: str = "SIP",
) -> WCS:
    """Return a TAN-SIP or TPV WCS for the source's original pixels.

    A grid of source pixels goes through the transform into the template's frame and through its WCS to the sky. About
    the sky position of the source's centre (CRVAL), gnomonic coordinates (xi, eta) are fitted by

        (xi, eta) = CD [ (u, v) + (A(u, v), B(u, v)) ],    (u, v) = pixel - CRPIX,

    with A and B polynomials of degree 2 to m (Shupe et al. 2005, eq. 1-3), m being the lowest that keeps the largest
    error on a finer grid below `tolerance`. AP and BP, the inverse, are fitted the same way. TPV (the convention of
    SCAMP and SWarp, FITS registry) has the polynomials behind the matrix instead, (x, y) = CD (pixel - CRPIX) degrees:

        xi = PV1_0 + PV1_1 x + PV1_2 y + PV1_4 x^2 + PV1_5 x y + PV1_6 y^2 + PV1_7 x^3 + ...,
        eta = PV2_0 + PV2_1 y + PV2_2 x + PV2_4 y^2 + PV2_5 y x + ...

    Parameters
    ----------
    registration : Registration
        The transform.
    template_wcs : APE-14 WCS, optional
        WCS of the template; the default is the one that the registration has.
    tolerance : float
        Largest error allowed, in source pixels; above it a `SkyloomWarning` tells the error.
    max_order : int
        Highest degree, at most 9 (SIP) or 7 (TPV).
    convention : {"SIP", "TPV"}
        How distortions are written. Without any both are plain TAN.

    Returns
    -------
    astropy.wcs.WCS
        With ``array_shape`` set.

    Raises
    ------
    WcsError
        The template has no celestial WCS, or its WCS does not cover the source.
    InputError
        The convention is unknown.
    """
    if convention not in _MAX_ORDER:
        raise InputError(f"convention is {convention!r}; it must be 'SIP' or 'TPV'.", convention=convention)
    template_wcs = registration.template_wcs if template_wcs is None else template_wcs
    if template_wcs is None:
        raise WcsError("The template has no WCS; give one with template_wcs=, or use the registration's maps directly.")
    ny, nx = registration.source_shape
    grid, check = _grid(nx, ny, _GRID), _grid(nx, ny, 2 * _GRID)
    sky, sky_check = (_to_sky(registration, template_wcs, xy) for xy in (grid, check))
    centre = np.array([[(nx - 1) / 2, (ny - 1) / 2]])
    origin = _to_sky(registration, template_wcs, centre)[0]
    good, good_check = np.isfinite(sky).all(axis=1), np.isfinite(sky_check).all(axis=1)
    if good.sum() < 0.5 * len(grid) or not np.isfinite(origin).all():
        raise WcsError(
            "The template's WCS gives no sky position for more than half of the source's pixels.",
            covered=float(good.mean()),
        )
    best: tuple[float, WCS] | None = None
    fit = _fit_sip if convention == "SIP" else _fit_tpv
    for order in range(1, min(max_order, _MAX_ORDER[convention]) + 1):
        wcs = fit(grid[good], sky[good], origin, order, (ny, nx))
        error = float(np.abs(_pixel_error(wcs, check[good_check], sky_check[good_check])).max())
        if best is None or error < best[0]:
            best = error, wcs
        if error <= tolerance:
            break
    assert best is not None
    if best[0] > tolerance:
        warnings.warn(
            f"The {convention} WCS of the source is off by up to {best[0]:.3g} px (wanted {tolerance:g}); use the "
            "registration's maps where that matters.",
            SkyloomWarning,
            stacklevel=2,
        )
    return best[1]


def registration_header(registration: Registration) -> dict[str, tuple[float | int, str]]:
    """Return the statistics of a registration as FITS cards, keyword -> (value, comment)."""
    r = registration
    cards: dict[str, tuple[float | int, str]] = {
        "REGNSTAR": (r.n_matched, "stars matched in the registration"),
        "REGRMSX": (round(r.rms_xy[0], 5), "[pix] rms of the registration along x"),
        "REGRMSY": (round(r.rms_xy[1], 5), "[pix] rms of the registration along y"),
        "REGORDER": (r.order, "degree of the transform"),
        "REGSCALE": (round(r.scale, 8), "source pixels per template pixel"),
        "REGROT": (round(r.rotation, 6), "[deg] rotation of template to source"),
        "REGPAR": (r.parity, "-1: mirror image"),
        "REGLLR": (round(r.log_likelihood_ratio, 2), "log-likelihood ratio against chance"),
    }
    if np.isfinite(r.flux_ratio):
        cards["REGFLUX"] = (float(f"{r.flux_ratio:.6g}"), "flux ratio source / template")
    return cards


def registered_header(header: Mapping[str, Any], registration: Registration) -> Header:
    """Return a copy of an image's header with the statistics of its registration."""
    if isinstance(header, Header):
        result = header.copy()
    else:
        result = Header({key: value for key, value in header.items() if isinstance(value, str | int | float)})
    for key, card in registration_header(registration).items():
        result[key] = card
    return result


def _grid(nx: int, ny: int, count: int) -> Float:
    """Return positions over the whole image, its outer pixel edges included, shape (count^2, 2)."""
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, count), np.linspace(-0.5, ny - 0.5, count))
    return np.column_stack([x.ravel(), y.ravel()])


def _to_sky(registration: Registration, wcs: Any, xy: Float) -> Float:
    """Return right ascension and declination (ICRS, degrees) of source pixels, NaN if none."""
    pixel = registration.source_to_template(xy)
    good = np.isfinite(pixel).all(axis=1)
    result = np.full((len(xy), 2), np.nan)
    if good.any():
        sky = _sky(wcs, pixel[good])
        result[good] = np.column_stack([sky.spherical.lon.deg, sky.spherical.lat.deg])
    return result


def _sky(wcs: Any, xy: Float) -> SkyCoord:
    sky = wcs.pixel_to_world(xy[:, 0], xy[:, 1])
    if not isinstance(sky, SkyCoord):
        raise WcsError(f"The template's WCS gives {type(sky).__name__}; a celestial WCS is needed.")
    # FK5, galactic...: the new WCS speaks ICRS
    return sky.icrs


def gnomonic(sky: Float, origin: Float) -> Float:
    """Project to the plane that touches the sphere at `origin`, degrees (Calabretta & Greisen 2002, sect. 5.1.3)."""
    lon, lat = np.radians(sky - [origin[0], 0.0]).T
    lat0 = np.radians(origin[1])
    cosine = np.sin(lat0) * np.sin(lat) + np.cos(lat0) * np.cos(lat) * np.cos(lon)
    xi = np.cos(lat) * np.sin(lon) / cosine
    eta = (np.cos(lat0) * np.sin(lat) - np.sin(lat0) * np.cos(lat) * np.cos(lon)) / cosine
    return np.degrees(np.column_stack([xi, eta]))


def _tangent_wcs(plane: Float, xy: Float, origin: Float, order: int, ctype: str) -> tuple[WCS, Float]:
    """Return a WCS with CRVAL, CRPIX and CD, and the coefficients (terms, 2) of the fit about CRPIX, by half sizes."""
    half = _half(xy)
    # the constant term moves CRPIX: the linear part is refitted about the pixel that images CRVAL exactly
    crpix = (xy.min(axis=0) + xy.max(axis=0)) / 2
    for _ in range(3):
        coefficients = np.linalg.lstsq(monomials((xy - crpix) / half, order), plane, rcond=None)[0]
        cd = coefficients[1:3].T / half
        crpix = crpix - np.linalg.solve(cd, coefficients[0])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{ctype}", f"DEC--{ctype}"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cd = origin, crpix + 1, cd
    wcs.wcs.radesys = "ICRS"
    return wcs, np.asarray(coefficients, np.float64)


def _half(xy: Float) -> float:
    """Return half the size of a grid of pixels: keeps powers of positions near 1."""
    return float(np.ptp(xy, axis=0).max()) / 2


def _finished(wcs: WCS, shape: tuple[int, int]) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs.wcs.set()
    wcs.array_shape = shape
    return wcs


def _fit_sip(xy: Float, sky: Float, origin: Float, order: int, shape: tuple[int, int]) -> WCS:
    """Fit CD, CRPIX, A, B and AP, BP of one degree."""
    wcs, coefficients = _tangent_wcs(gnomonic(sky, origin), xy, origin, order, "TAN-SIP" if order > 1 else "TAN")
    if order > 1:
        half, crpix, powers = _half(xy), wcs.wcs.crpix - 1, exponents(order)
        i, j = powers[3:].T
        forward = np.zeros((2, order + 1, order + 1))
        pixel_terms = np.linalg.solve(wcs.wcs.cd, coefficients[3:].T) / half ** (i + j)
        forward[:, i, j] = pixel_terms
        uv = xy - crpix
        focal = uv + monomials(uv / half, order)[:, 3:] @ (pixel_terms * half ** (i + j)).T
        back = np.linalg.lstsq(monomials(focal / half, order), uv - focal, rcond=None)[0].T
        inverse = np.zeros((2, order + 1, order + 1))
        i, j = powers.T
        inverse[:, i, j] = back / half ** (i + j)
        wcs.sip = Sip(forward[0], forward[1], inverse[0], inverse[1], crpix + 1)
    return _finished(wcs, shape)


def _fit_tpv(xy: Float, sky: Float, origin: Float, order: int, shape: tuple[int, int]) -> WCS:
    """Fit CD, CRPIX and PV of one degree."""
    plane = gnomonic(sky, origin)
    wcs, _ = _tangent_wcs(plane, xy, origin, order, "TPV" if order > 1 else "TAN")
    if order > 1:
        flat = (xy - (wcs.wcs.crpix - 1)) @ wcs.wcs.cd.T
        half = _half(flat)
        i, j = exponents(order).T
        terms = np.linalg.lstsq(monomials(flat / half, order), plane, rcond=None)[0] / half ** (i + j)[:, None]
        # terms of odd powers of r stand behind each odd degree: 3, 11, 23, 39
        first = np.array([0, 1, 4, 7, 12, 17, 24, 31])[i + j]
        cards = [(1, int(m), value) for m, value in zip(first + j, terms[:, 0].tolist(), strict=True)]
        cards += [(2, int(m), value) for m, value in zip(first + i, terms[:, 1].tolist(), strict=True)]
        wcs.wcs.set_pv(cards)
    return _finished(wcs, shape)


def _pixel_error(wcs: WCS, xy: Float, sky: Float) -> Float:
    """Return the error of a WCS in pixels, shape (N, 2): through the plane, so that no iteration enters."""
    got = np.asarray(wcs.all_pix2world(xy, 0))
    miss = gnomonic(got, np.asarray(wcs.wcs.crval)) - gnomonic(sky, np.asarray(wcs.wcs.crval))
    return np.linalg.solve(wcs.wcs.cd, miss.T).T
