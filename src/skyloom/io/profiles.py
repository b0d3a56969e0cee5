"""How observatories arrange image, error and quality planes in their files, as tables.

A profile says which extensions hold what, and what the bits of the quality plane mean. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.exposure import MaskBit
from skyloom.io.keywords import first

ALL_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Profile:
    """Extension names, by role, and the meaning of the quality plane.

    Parameters
    ----------
    name : str
        Name of the convention.
    recognised_by : dict
        Keyword: beginning of its value (upper case). All must fit. Empty for the generic profile.
    image, error, variance, inverse_variance, weight, quality : tuple of str
        Extension names that hold the image, its standard deviation, variance, inverse variance, weight in an unknown
        unit (0: no data), and quality plane. Several variances are added up, if there is no error.
    bad, saturated, cosmic_ray : int
        Bits of the quality plane. A pixel is `MaskBit.BAD` if it has any bit of `bad`; the others say why.
    codes : dict of int to MaskBit
        Instead of bits: what whole values of the quality plane mean.
    siblings : dict
        Role: (part of the file name, what stands there in the sibling file with that plane).
    complete : bool
        NEXTEND of such files always tells the number of extensions: fewer mean that the file was cut.
    """

    name: str
    recognised_by: Mapping[str, str]
    image: tuple[str, ...] = ("SCI",)
    error: tuple[str, ...] = ()
    variance: tuple[str, ...] = ()
    inverse_variance: tuple[str, ...] = ()
    weight: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    bad: int = ALL_BITS
    saturated: int = 0
    cosmic_ray: int = 0
    codes: Mapping[int, MaskBit] | None = None
    siblings: Mapping[str, tuple[str, str]] | None = None
    complete: bool = False


SKYLOOM = Profile(
    "skyloom",
    {"CREATOR": "SKYLOOM"},
    error=("ERR",),
    quality=("DQ",),
    complete=True,
)
"""Our own files: the quality plane holds the bits of `MaskBit` themselves."""

HST = Profile(
    "hst",
    {"TELESCOP": "HST"},
    error=("ERR",),
    quality=("DQ",),
    # warm (64) and unstable (32) pixels are calibrated and count as good, as in the drizzle parameter tables
    bad=ALL_BITS & ~(32 | 64),
    saturated=256 | 2048,
    cosmic_ray=4096 | 8192,
    complete=True,
)

JWST = Profile(
    "jwst",
    {"TELESCOP": "JWST"},
    error=("ERR",),
    variance=("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"),
    quality=("DQ",),
    # DO_NOT_USE and NON_SCIENCE; a pixel that saturated, or was hit, late in the ramp keeps a good slope
    bad=1 | 512,
    saturated=2,
    cosmic_ray=4,
)

DECAM = Profile(
    "decam",
    {"INSTRUME": "DECAM"},
    image=("SCI", "IMAGE"),
    quality=("DQ", "MASK"),
    inverse_variance=("WEIGHT",),
    # Community Pipeline codes; 7 is an object that changed between exposures, which is what we look for
    codes={
        1: MaskBit.BAD,
        2: MaskBit.BAD,
        3: MaskBit.SATURATED,
        4: MaskBit.SATURATED,
        5: MaskBit.COSMIC_RAY,
        6: MaskBit.BAD,
        7: MaskBit(0),
        8: MaskBit.COSMIC_RAY,
    },
    siblings={"quality": ("_ooi_", "_ood_"), "inverse_variance": ("_ooi_", "_oow_")},
)

ZTF = Profile(
    "ztf",
    {"INSTRUME": "ZTF"},
    image=("SCI", "IMAGE"),
    quality=("MASK",),
    # all but bits 1 and 11, which mark the pixels of objects
    bad=6141,
    saturated=256,
    siblings={"quality": ("_sciimg", "_mskimg")},
)

PS1 = Profile(
    "ps1",
    {"TELESCOP": "PS1"},
    siblings={"quality": (".fits", ".mask.fits"), "variance": (".fits", ".wt.fits")},
)
"""Pan-STARRS. Bits are named by MSKNAM* cards in the header of the mask, see `ps1_bits`."""

SWARP = Profile("swarp", {"SOFTNAME": "SWARP"}, siblings={"weight": (".fits", ".weight.fits")})
"""Co-adds of SWarp: where the weight is 0, no exposure contributes."""

LSST = Profile(
    "lsst",
    {"EXTTYPE": "IMAGE"},
    image=("IMAGE",),
    variance=("VARIANCE",),
    quality=("MASK",),
)
"""Bits are named by MP_* cards in the header of the mask, see `lsst_bits`."""

GENERIC = Profile(
    "generic",
    {},
    image=("SCI", "IMAGE", "DATA"),
    error=("ERR", "ERROR", "ERRORS", "SIGMA", "RMS", "STDDEV", "UNCERT", "NOISE"),
    variance=("VAR", "VARIANCE", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"),
    inverse_variance=("IVAR", "INVVAR"),
    weight=("WHT", "WEIGHT", "WGT", "WEIGHTMAP", "WMAP"),
    quality=("DQ", "MASK", "MSK", "BPM", "BADPIX", "FLAGS", "FLAG", "DQM"),
)

PROFILES = (SKYLOOM, HST, JWST, DECAM, ZTF, PS1, LSST, SWARP)


def profile_for(headers: tuple[Mapping[str, Any], ...]) -> Profile:
    """Return the profile whose marks stand in the headers, else the generic one."""
    for profile in PROFILES:
        values = {key: str(first(headers, key) or "").strip().upper() for key in profile.recognised_by}
        if all(values[key].startswith(start) for key, start in profile.recognised_by.items()):
            return profile
    return GENERIC


def mask_bits(quality: npt.NDArray[Any], profile: Profile, header: Mapping[str, Any]) -> npt.NDArray[np.uint32]:
    """Translate a quality plane into bits of `MaskBit`.

    Parameters
    ----------
    quality : ndarray of int or bool, shape (ny, nx)
        The plane as it is in the file.
    profile : Profile
        The convention it follows.
    header : mapping
        The header of that plane.

    Returns
    -------
    ndarray of uint32, shape (ny, nx)
    """
    quality = quality.astype(np.int64) & ALL_BITS
    if profile is SKYLOOM:
        return quality.astype(np.uint32)
    mask = np.zeros(quality.shape, np.uint32)
    if profile.codes is not None and quality.max(initial=0) <= max(profile.codes):
        for code, bit in profile.codes.items():
            mask[quality == code] |= np.uint32(bit)
        return mask
    bad, saturated, cosmic_ray = profile.bad, profile.saturated, profile.cosmic_ray
    if profile is LSST:
        bad, saturated, cosmic_ray = lsst_bits(header)
    elif profile is PS1:
        bad, saturated, cosmic_ray = ps1_bits(header)
    unusable = (quality & bad) != 0
    mask[unusable] |= np.uint32(MaskBit.BAD)
    mask[unusable & ((quality & saturated) != 0)] |= np.uint32(MaskBit.SATURATED)
    mask[unusable & ((quality & cosmic_ray) != 0)] |= np.uint32(MaskBit.COSMIC_RAY)
    return mask


def lsst_bits(header: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the (bad, saturated, cosmic ray) bits that the MP_* cards of an LSST mask define."""

    def bits(*names: str) -> int:
        planes = [first((header,), f"MP_{name}") for name in names]
        return sum(1 << plane for plane in planes if isinstance(plane, int) and 0 <= plane < 32)

    bad = bits("BAD", "SAT", "CR", "NO_DATA", "EDGE", "UNMASKEDNAN", "SENSOR_EDGE")
    return bad, bits("SAT"), bits("CR")


def ps1_bits(header: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the (bad, saturated, cosmic ray) bits that the MSKNAM* and MSKVAL* cards of a Pan-STARRS mask define.

    Some bits do not make a pixel bad: those of suspect pixels and of stars' surroundings, and of what a convolution
    has reached with little of its weight.
    """
    harmless = {"SUSPECT", "BURNTOOL", "STARCORE", "CONV.POOR", "MARK", "MARK.VALUE"}
    bits: dict[str, int] = {}
    for number in range(100):
        name, value = (first((header,), f"{key}{number:02d}") for key in ("MSKNAM", "MSKVAL"))
        if name is not None and isinstance(value, int) and 0 <= value <= ALL_BITS:
            bits[str(name).strip().upper()] = value
    if not bits:
        return ALL_BITS, 0, 0
    bad = 0
    for name, value in bits.items():
        bad |= 0 if name in harmless else value
    return bad, bits.get("SAT", 0), bits.get("CR", 0)
