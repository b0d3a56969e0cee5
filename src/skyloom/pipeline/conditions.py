"""What the sky did to an exposure: how much light came through, and which images of a run are ruined by clouds.

Noise alone does not tell: an image with 2 % of its light has a quiet difference, few candidates, and shows nothing.
Two measures do, and a third is known before the night is over:

- the *limit*: the flux of a point source of 5 standard deviations, in units of the template (`limit_flux_template`);
- the *light*: the flux scale divided by the exposure time (if the unit is plain counts, ADU or electrons);
- the *transparency*: the flux scale divided by what the exposure times of the science image and the template let
  expect. It is defined where both are of one telescope, instrument and filter, as far as their headers tell.

An image is poor if its transparency is below `DIM`; or if its light is less than `DIM` of that of the better images of
the run; or if its limit is `SHALLOW` times (1 mag) theirs. The better ones are the quartile of the images with the same
filter; for the limit, which depends on the exposure time, of those with similar times. So up to three quarters of a run
may be cloudy. Less than `FEWEST` images are not compared.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skyloom.io.keywords import EXPTIME, as_number, first, grows_with_time, lookup, mean
from skyloom.stacking.light import DIM

if TYPE_CHECKING:
    from skyloom.exposure import Exposure
    from skyloom.pipeline.outcome import Outcome

SHALLOW = 2.5
"""Ratio of limits: 1 mag."""
FEWEST = 3
SIMILAR = 1.5
"""Ratio of exposure times."""

_MJD = ("MJD-OBS", "MJD_OBS", "MJDOBS", "OBSMJD", "MJD", "MJD-BEG")
_JD = ("JD-OBS", "JD_OBS", "OBSJD", "JD")
_DATE = ("DATE-OBS", "DATE_OBS", "DATE-BEG")
_TIME = ("TIME-OBS", "UTC-OBS", "UT-OBS", "UTSTART", "UTC", "UT")
_FILTER = ("FILTER", "FILTERS", "FILTER1", "FILTNAM", "FILTERID", "ESO INS FILT1 NAME", "BAND")
_EPOCH = dt.datetime(1858, 11, 17)  # of MJD; headers tell the scale, or nobody does
_LAST_DAY = 2e5  # MJD, in the year 2406; a Julian date in its place is beyond


def observed(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return when, how long and through which filter an image was taken, as far as its header tells.

    Returns
    -------
    dict
        `date` (ISO 8601) and `mjd` of the beginning, in the time scale of the header; `exptime` (s); `filter`.
    """
    headers = (header,)
    numbers = [as_number(header, key) for key in _MJD]
    numbers += [None if (value := as_number(header, key)) is None else value - 2400000.5 for key in _JD]
    day = next((value for value in numbers if value is not None and 0 < value < _LAST_DAY), None)
    date = _text(headers, _DATE)
    began = _moment(date, _text(headers, _TIME))
    if day is None and began is not None:
        day = (began - _EPOCH) / dt.timedelta(days=1)
    if day is not None and began is None:
        began = _EPOCH + dt.timedelta(days=day)
    return {
        "date": date if began is None else began.isoformat(timespec="seconds"),
        "mjd": day,
        "exptime": lookup(headers, EXPTIME, mean, above=0),
        "filter": _text(headers, _FILTER),
    }


def _text(headers: tuple[Mapping[str, Any], ...], keys: Sequence[str]) -> str:
    return next((text for key in keys if (text := str(first(headers, key) or "").strip())), "")


def _moment(date: str, time: str) -> dt.datetime | None:
    """Return the moment of DATE-OBS and, where that holds only a day, of the card with the time; None without."""
    if old := re.fullmatch(r"(\d\d)/(\d\d)/(\d\d)", date):  # FITS before 1997: DD/MM/YY, of the 20th century
        date = "19{2}-{1}-{0}".format(*old.groups())
    time = re.sub(r"(?<![\d.])(\d)(?!\d)", r"0\1", time)  # some leave out leading zeros
    for text in (date, f"{date}T{time}"):
        try:
            moment = dt.datetime.fromisoformat(text).replace(tzinfo=None)
        except ValueError:
            continue
        if "T" in text or " " in text.strip():
            return moment
    return None


def transparency(flux_scale: float, science: Exposure, template: Exposure) -> float | None:
    """Return the light of the science image over what the template and the exposure times let expect.

    It is f t_T / t_S, with the flux scale f and the exposure times, times the ratio of the gains, g_S / g_T, where that
    is above 1: co-adds, and only they, have larger gains than their exposures. In other units than plain counts, ADU or
    electrons it is f.

    Returns
    -------
    float or None
        None if the images are of different instruments or filters, or if their exposure times are not known.
    """
    for keys in (("TELESCOP",), ("INSTRUME",), _FILTER):
        one, other = (_text((image.header,), keys).casefold() for image in (science, template))
        if one != other:
            return None
    if science.unit != template.unit or not (math.isfinite(flux_scale) and flux_scale > 0):
        return None
    if grows_with_time(science.unit):
        if science.exptime is None or template.exptime is None:
            return None
        flux_scale *= template.exptime / science.exptime
        if science.gain is not None and template.gain is not None:
            flux_scale *= max(1.0, science.gain / template.gain)
    return flux_scale


def too_dim(share: float | None) -> str:
    """Return a warning about an image that got this share of its light; nothing if it is enough."""
    if share is None or share >= DIM:
        return ""
    return (
        f"Only {share:.2g} of the light that the template and the exposure times let expect is in this image: clouds, "
        "or a closed dome? Its difference is quiet because it shows nothing; see its limiting flux."
    )


def compare(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of a run, those of poor depth with a warning that says so; see the module."""
    scale, limit, times = (
        np.array([getattr(one, name) or np.nan for one in outcomes], float)
        for name in ("flux_scale", "limit_flux_template", "exptime")
    )
    rates = np.array([not grows_with_time(one.unit) for one in outcomes], bool)
    light = scale / np.where(rates | np.isnan(times[np.isfinite(scale)]).any(), 1.0, times)
    filters = np.array([one.filter.casefold() for one in outcomes])
    judged = []
    for number, one in enumerate(outcomes):
        alike = filters == filters[number]
        timed = alike & (np.abs(np.log(times / times[number])) <= np.log(SIMILAR))
        timed |= alike & np.isnan(times) & np.isnan(times[number])
        dim = light[number] / _quartile(light[alike], 0.75)
        shallow = limit[number] / _quartile(limit[timed], 0.25)
        text = ""
        if dim < DIM:
            text = f"It has only {dim:.2g} of the light of the better images of this run (in units of the template)."
        elif shallow > SHALLOW:
            text = f"Its limiting flux is {shallow:.2g} times that of the better images of this run."
        if text and one.depth != "poor":
            text = f"{text} Clouds, bad seeing or a bright sky? Faint changes are missing."
            one = replace(one, depth="poor", warnings="\n".join(filter(None, (one.warnings, text))))  # noqa: PLW2901
        judged.append(one)
    return judged


def _quartile(values: npt.NDArray[np.float64], which: float) -> float:
    """Return a quantile of what is known; NaN if that is too little."""
    known = values[np.isfinite(values)]
    return float(np.quantile(known, which)) if known.size >= FEWEST else math.nan
