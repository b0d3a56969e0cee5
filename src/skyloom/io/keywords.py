"""What FITS headers call the gain, the read noise, the saturation level, the exposure time and the zero point."""

from __future__ import annotations

import math
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
)
SATURATION = (
    ("SATURATE",),
    ("SATURATN",),
    ("ESATUR",),
    ("SATURATA", "SATURATB", "SATURATC", "SATURATD"),
    ("SATLEVEL",),
    ("SATURAT",),
    ("MAXLIN",),
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
ZEROPOINT = (("MAGZERO",), ("MAGZP",), ("PHOTZP",), ("ZEROPT",), ("ZEROPNT",), ("ZEROPOIN",), ("ZPT",))

ELECTRONS = {"electron", "electrons", "e", "e-"}
COUNTS = {"adu", "dn", "count", "counts", "ct", "data_number"}
PER_SECOND = ("/s", "/sec", "/second", ".s-1", " s-1", "*s**-1", " s**-1", " s^-1", " / s")


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
        "zeropoint": lookup(headers, ZEROPOINT, mean, above=0),
        "unit": (quantity or unit) + ("/s" if quantity and per_second else ""),
    }


def split_unit(unit: str) -> tuple[str | None, bool]:
    """Return what a BUNIT counts ("electron", "adu" or None) and whether it is a rate."""
    text = unit.strip().lower()
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
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


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
