"""What FITS headers call the gain, the read noise, the saturation level, the exposure time and the zero point."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

# Each row is one spelling; a row of several keywords is one value per amplifier. The first row that is there wins.
# EGAIN stands before GAIN: where a camera writes both, GAIN is the setting of a knob.
GAIN = (
    ("EGAIN",),
    ("GAIN",),
    ("GAINA", "GAINB", "GAINC", "GAIND"),
    ("ATODGNA", "ATODGNB", "ATODGNC", "ATODGND"),
    ("ESO DET OUT1 CONAD",),
    ("CCDGAIN",),
    ("EPERADU",),
    ("E_GAIN",),
    ("CELL.GAIN",),
    ("CCD_GAIN",),
    ("GAIN1",),
)
READ_NOISE = (
    ("RDNOISE",),
    ("READNOIS",),
    ("READNOISE",),
    ("RDNOISEA", "RDNOISEB", "RDNOISEC", "RDNOISED"),
    ("READNSEA", "READNSEB", "READNSEC", "READNSED"),
    ("ESO DET OUT1 RON",),
    ("ENOISE",),
    ("RON",),
    ("CELL.READNOISE",),
    ("RO_NOISE",),
    ("READ_NOISE",),
)
SATURATION = (
    ("SATURATE",),
    ("SATURATN",),
    ("ESATUR",),
    ("SATURATA", "SATURATB", "SATURATC", "SATURATD"),
    ("SATLEVEL",),
    ("SATURAT",),
    ("MAXLIN",),
    ("CELL.SATURATION",),
    ("SATUR",),
    ("SATLVL",),
    ("SATURLEV",),
)
EXPTIME = (
    ("EXPTIME",),
    ("EXPOSURE",),
    ("XPOSURE",),
    ("EFFEXPTM",),
    ("TEXPTIME",),
    ("EXPTOTAL",),
    ("EXP_TIME",),
    ("ITIME",),
)
ZEROPOINT = (("MAGZERO",), ("MAGZP",), ("PHOTZP",), ("ZEROPT",), ("ZEROPNT",), ("ZEROPOIN",), ("ZPT",), ("MAGZPT",))

ELECTRONS = {"electron", "electrons", "e", "e-", "photoelectron", "photoelectrons", "photo-electrons"}
COUNTS = {"adu", "adus", "dn", "du", "count", "counts", "ct", "cts", "data_number"}
PER_SECOND = ("/s", "/sec", "/second", ".s-1", " s-1", "*s**-1", " s**-1", " s^-1", " / s", " per second", " per sec")
PER_PIXEL = ("/pix", "/pixel", " per pixel", " pix-1", " pixel-1")
JANSKY = {"Jy": 1.0, "mJy": 1e-3, "uJy": 1e-6, "nJy": 1e-9}
JANSKY |= dict.fromkeys(("nanomaggy", "nanomaggies", "nmgy"), 3.631e-6)
"""Units of flux densities, in Jy."""
AB_ZERO = 3631.0
"""Jy of a source of AB magnitude 0."""


def detector_values(headers: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    """Return what headers tell about the detector, as fields of `Exposure`.

    Parameters
    ----------
    headers : tuple of mapping
        Headers, the most specific first: the extension's, then the primary one.

    Returns
    -------
    dict
        ``gain`` (electrons per unit of data, so that it is 1 for data in electrons), ``read_noise`` (electrons),
        ``saturation``, ``exptime`` (seconds), ``zeropoint`` and ``unit``; None where the headers say nothing usable.
    """
    exptime = lookup(headers, EXPTIME, mean, above=0)
    in_days = str(first(headers, "TIMEUNIT") or "").strip().lower() in {"d", "day", "days"}
    if exptime is not None and in_days and lookup(headers, (("EXPTIME",),), mean, above=0) is None:
        exptime *= 86400.0  # Kepler, TESS
    unit = str(first(headers, "BUNIT") or "adu").strip()
    quantity, per_second = split_unit(unit)
    gain = 1.0 if quantity == "electron" else None
    if quantity == "adu":
        gain = lookup(headers, GAIN, mean, above=0)
    if per_second and gain is not None:
        gain = None if exptime is None else gain * exptime
    return {
        "gain": gain,
        "read_noise": lookup(headers, READ_NOISE, root_mean_square, above=-1e-300),
        "saturation": lookup(headers, SATURATION, min, above=0),
        "exptime": exptime,
        "zeropoint": _zeropoint(headers, unit),
        "unit": (quantity or unit) + ("/s" if quantity and per_second else ""),
    }


def _zeropoint(headers: tuple[Mapping[str, Any], ...], unit: str) -> float | None:
    """Return the magnitude of 1 unit: as a header tells it, or the flux of magnitude 0 (LSST), or the unit itself."""
    zeropoint = lookup(headers, ZEROPOINT, mean, above=0)
    if zeropoint is None:
        flux = AB_ZERO / JANSKY[unit] if unit in JANSKY else lookup(headers, (("FLUXMAG0",),), mean, above=0)
        zeropoint = None if flux is None else 2.5 * math.log10(flux)
    return zeropoint


def split_unit(unit: str) -> tuple[str | None, bool]:
    """Return what a BUNIT counts ("electron", "adu" or None) and whether it is a rate."""
    text = unit.strip().lower()
    text = next((text.removesuffix(one).strip() for one in PER_PIXEL if text.endswith(one)), text)
    for suffix in PER_SECOND:
        if text.endswith(suffix):
            text, rate = text[: -len(suffix)].strip(), True
            break
    else:
        rate = False
    if text in ELECTRONS:
        return "electron", rate
    return ("adu", rate) if text in COUNTS else (None, rate)


def grows_with_time(unit: str) -> bool:
    """Return whether values in this unit are proportional to the exposure time: plain counts, ADU or electrons."""
    quantity, rate = split_unit(unit)
    return quantity is not None and not rate


def unit_text(unit: Any) -> str:
    """Return the FITS spelling of an astropy unit, else its own; "adu" for none and for dimensionless."""
    if unit is None:
        return "adu"
    try:
        return unit.to_string("fits") or "adu"
    except ValueError:  # electrons, for one
        return unit.to_string()


def lookup(
    headers: tuple[Mapping[str, Any], ...],
    spellings: tuple[tuple[str, ...], ...],
    combine: Callable[[list[float]], float],
    *,
    above: float,
) -> float | None:
    """Return the first of `spellings` that holds finite numbers larger than `above`, else None."""
    for keywords in spellings:
        for header in headers:
            values = [number for key in keywords if (number := as_number(header, key)) is not None]
            values = [value for value in values if value > above]
            if values:
                return float(combine(values))
    return None


def as_number(header: Mapping[str, Any], key: str) -> float | None:
    """Return the finite number behind a keyword, or None."""
    value = card(header, key)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and (found := _WITH_UNIT.fullmatch(value)):
        value = found.group(1)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


_WITH_UNIT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s+[A-Za-z(\[][-A-Za-z/.()\[\] ]*")
"""A number in a text, with its unit, as ``1.9 e-/ADU``."""


def first(headers: tuple[Mapping[str, Any], ...], key: str) -> Any:
    """Return the value of `key` in the first header that has it, else None."""
    return next((value for header in headers if (value := card(header, key)) is not None), None)


def card(header: Mapping[str, Any], key: str) -> Any:
    """Return a header's value, or None if there is none or its card cannot be parsed."""
    try:
        return header.get(key)
    except Exception:  # noqa: BLE001  # astropy parses cards when they are asked for, and fails in many ways
        return None


def hdu_name(hdu: Any) -> str:
    """Return EXTNAME (LSST before 2017: EXTTYPE) in upper case, or nothing."""
    name = str(card(hdu.header, "EXTNAME") or card(hdu.header, "EXTTYPE") or "").strip().upper()
    return "" if name == "COMPRESSED_IMAGE" else name


def plane_name(hdu: Any) -> tuple[str, str]:
    """Return the detector and the plane that an extension is named after: Euclid's ``1-1.SCI`` is SCI of 1-1."""
    detector, _, plane = hdu_name(hdu).rpartition(".")
    return detector, plane


def hdu_version(hdu: Any) -> int:
    """Return EXTVER, 1 by default."""
    version = card(hdu.header, "EXTVER")
    return version if isinstance(version, int) else 1


def mean(values: list[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def root_mean_square(values: list[float]) -> float:
    """Return the square root of the mean square."""
    return math.sqrt(math.fsum(value * value for value in values) / len(values))
