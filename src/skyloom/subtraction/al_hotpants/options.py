"""The options of HOTPANTS (Becker 2015, ascl:1504.004), under the names that its command line gives them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skyloom.convolution import MAX_ORDER
from skyloom.errors import InputError

_FLAGS = ("sconv", "okn", "convvar", "nim", "ndm", "cim", "allm", "nc", "hki", "sht", "nsht", "afssc", "blend")
_INTEGERS = ("r", "kcs", "nrx", "nry", "nsx", "nsy", "nss", "rss", "ko", "bgo", "v")
_TEXTS = ("c", "n", "fom", "fit", "empty")
_OBJECTS = (  # a file name, or what would be in the file
    "tni", "ini", "tmi", "imi", "ki", "rf", "ssf", "cmp", "savexy", "outim", "omi", "oni", "ond", "oci", "oki",
)  # fmt: skip
_ELSEWHERE = {"inim": "the argument image", "tmplim": "the argument template", "rkw": "rf, the regions themselves"}
_NATIVE = ("fit", "blend", "empty")


@dataclass(frozen=True, eq=False)
class HotpantsOptions:
    """All options of HOTPANTS 5.1.11, and three of our own (`fit`, `blend`, `empty`).

    Options that name an input file (tni, ini, tmi, imi, ki, rf, ssf, cmp) take what would be in it as well.

    Parameters
    ----------
    tu, tl, iu, il : float
        Pixels of the template (image) >= tu (iu) are saturated, those <= tl (il) are low: bad, both.
    tuk, iuk : float, optional
        Upper limit for pixels in the fit of the kernel; tu and iu if not given.
    tg, tr, tp, ig, ir, ip : float
        Gain (e-/ADU), read noise (e-) and pedestal (ADU, subtracted first) of template and image.
    tni, ini, tmi, imi : path or array, optional
        Noise (standard deviation) and mask (bits; every pixel that is not 0 is bad) of template and image.
    ki : path or HotpantsKernel, optional
        Use this kernel, do not fit.
    r : int
        Half width of the kernel; its sides are 2 r + 1.
    kcs : int, optional
        Side of the blocks with one kernel in HOTPANTS. Without effect: the kernel is right at every pixel here.
    ft, sft, nft : float
        Sub-stamps need a pixel of ft standard deviations above the sky. If fewer than nft of the stamps have a
        sub-stamp, ft is multiplied by sft, once.
    mins : float
        The input masks are grown by mins * r / 2 pixels for the output bit 0x40.
    mous : float
        If negative, bad pixels of the difference are not overwritten by fi and fin.
    gd : (xmin, xmax, ymin, ymax), optional
        Use this part of the images only (0-based, xmax and ymax excluded).
    nrx, nry, rf : int, int, path or sequence
        Number of regions in x and y; or the regions themselves, "xmin:xmax,ymin:ymax" (0-based, inclusive).
    nsx, nsy : int
        Stamps of each region, in x and y.
    ssf, cmp : path or (N, 2) array, optional
        Positions x, y for sub-stamps; the first pixel has the number 1.
    afssc : bool
        Fill up with sub-stamps that are found automatically, if positions are given.
    nss, rss : int
        Sub-stamps in the queue of each stamp, and their half width.
    savexy : path, optional
        Write the sub-stamps that were used as a region file of DS9.
    c : {'t', 'i', 'b'}
        Convolve the template, the image, or whatever leaves the smaller residual, region by region.
    sconv : bool
        With c = b: as the first region decides.
    n : {'t', 'i', 'u'}
        Flux scale of the difference: template's, image's, or that of the image which was not convolved.
    fom : {'v', 's', 'h'}
        Merit of a sub-stamp: mean of residual^2 / variance, clipped deviation, or deviation from the quartiles.
    ko, bgo : int
        Orders of the polynomials with which kernel and background vary over a region.
    ssig, ks : float
        Clipping of statistics, and of sub-stamps whose merit lies above the others', in standard deviations.
    kfm : float
        Pixels are bad where less than this share of sum abs(K) lies on good pixels.
    okn : bool
        Rescale the noise of pixels that are OK (touched by bad ones) to their scatter, if that is larger.
    fi, fin : float
        Values of bad pixels of the difference and of the noise.
    convvar : bool
        Convolve the variance with K instead of K^2: right if the convolved image's noise is fully correlated.
    ng : sequence
        Number of Gaussians of the kernel's basis, then degree and width (pixels) of each.
    pca : sequence, optional
        Number of basis images, then the images (arrays or files): the kernel's basis in the place of `ng`.
    outim, omi, oni, ond, oci, oki : path, optional
        Write difference (with all layers that are asked for), mask, noise, scaled difference, convolved image, kernel.
    nim, ndm, cim, allm, hki, nc, sht, obs, obz, nsht, nbs, nbz : bool or float
        What goes into these files: layers; no overwriting; 16-bit integers with BSCALE and BZERO.
    v : int
        Verbosity; messages go to the log.
    fit : {'weighted', 'hotpants'}
        Inverse variances as weights with masks inside of sub-stamps; or the unweighted fit of HOTPANTS.
    blend : bool
        Regions go over into one another smoothly; or, as in HOTPANTS, with steps.
    empty : {'error', 'fill'}
        What to do with a region without enough sub-stamps: raise, or mark all its pixels bad.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    tu: float = 25000.0
    tuk: float | None = None
    tl: float = 0.0
    tg: float = 1.0
    tr: float = 0.0
    tp: float = 0.0
    tni: Any = None
    tmi: Any = None
    iu: float = 25000.0
    iuk: float | None = None
    il: float = 0.0
    ig: float = 1.0
    ir: float = 0.0
    ip: float = 0.0
    ini: Any = None
    imi: Any = None
    ki: Any = None
    r: int = 10
    kcs: int | None = None
    ft: float = 20.0
    sft: float = 0.5
    nft: float = 0.1
    mins: float = 1.0
    mous: float = 1.0
    gd: tuple[int, int, int, int] | None = None
    nrx: int = 1
    nry: int = 1
    rf: Any = None
    nsx: int = 10
    nsy: int = 10
    ssf: Any = None
    cmp: Any = None
    afssc: bool = True
    nss: int = 3
    rss: int = 15
    savexy: Any = None
    c: Literal["t", "i", "b"] = "b"
    sconv: bool = False
    n: Literal["t", "i", "u"] = "t"
    fom: Literal["v", "s", "h"] = "v"
    ko: int = 2
    bgo: int = 1
    ssig: float = 3.0
    ks: float = 2.0
    kfm: float = 0.99
    okn: bool = False
    fi: float = 1e-30
    fin: float = 0.0
    convvar: bool = False
    ng: tuple[float, ...] = (3, 6, 0.7, 4, 1.5, 2, 3.0)
    pca: tuple[Any, ...] | None = None
    outim: Any = None
    omi: Any = None
    oni: Any = None
    ond: Any = None
    oci: Any = None
    oki: Any = None
    nim: bool = False
    ndm: bool = False
    cim: bool = False
    allm: bool = False
    nc: bool = False
    hki: bool = False
    sht: bool = False
    obs: float = 1.0
    obz: float = 0.0
    nsht: bool = False
    nbs: float = 1.0
    nbz: float = 0.0
    v: int = 1
    fit: Literal["weighted", "hotpants"] = "weighted"
    blend: bool = True
    empty: Literal["error", "fill"] = "error"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> HotpantsOptions:
        """Build options from names and values as `run_hotpants` takes them in `extra`.

        Names may have a leading "-" and any case; a value may be a number, a string of numbers, or a sequence. None
        stands for "not given", and so does False for flags.

        Raises
        ------
        InputError
            A name is unknown, or a value cannot be used.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for spelled, value in values.items():
            name = str(spelled).lstrip("-").lower()
            if name in _ELSEWHERE:
                raise InputError(f"The option {spelled!r} of HOTPANTS is not taken here; give {_ELSEWHERE[name]}.")
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
                raise InputError(
                    f"HOTPANTS has no option {spelled!r}; the nearest is {close[0]!r}. Known are: "
                    f"{', '.join(sorted(known))}.",
                    option=spelled,
                    nearest=close[0],
                )
            if value is not None:
                given[name] = _converted(name, value)
        return cls(**given)

    def __post_init__(self) -> None:
        limits = {
            **dict.fromkeys(("r", "nrx", "nry", "nsx", "nsy", "nss", "rss"), (1, np.inf)),
            **dict.fromkeys(("ft", "tg", "ig", "ssig", "ks"), (1e-30, np.inf)),
            **dict.fromkeys(("tr", "ir", "mins"), (0, np.inf)),
            **dict.fromkeys(("nft", "kfm"), (0, 1)),
            **dict.fromkeys(("ko", "bgo"), (0, MAX_ORDER)),
            "sft": (1e-30, np.inf),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"The HOTPANTS option {name} is {value}; it must lie between {low} and {high}.")
        choices = {"c": "tib", "n": "tiu", "fom": "vsh"}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in tuple(allowed):
                raise InputError(f"The HOTPANTS option {name} is {value!r}; it must be one of {', '.join(allowed)}.")
        if self.fit not in ("weighted", "hotpants"):
            raise InputError(f"The option fit is {self.fit!r}; it must be 'weighted' or 'hotpants'.")
        if self.empty not in ("error", "fill"):
            raise InputError(f"The option empty is {self.empty!r}; it must be 'error' or 'fill'.")
        degrees, widths = self.gaussians
        if any(width <= 0 for width in widths) or any(degree not in range(9) for degree in degrees):
            raise InputError(
                f"The HOTPANTS option ng is {list(self.ng)}; degrees 0 to 8 and widths above 0 are needed."
            )

    @property
    def gaussians(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Degrees and widths of the Gaussians of `ng`."""
        count, rest = int(self.ng[0]), self.ng[1:]
        if count < 1 or len(rest) != 2 * count:
            raise InputError(
                f"The HOTPANTS option ng is {list(self.ng)}; a number n, then n pairs of degree and width are needed."
            )
        return tuple(int(degree) for degree in rest[0::2]), tuple(float(width) for width in rest[1::2])

    def replace(self, **changes: Any) -> HotpantsOptions:
        """Return a copy with some options changed."""
        return dataclasses.replace(self, **changes)


def native_names() -> tuple[str, ...]:
    """Return the options that are not HOTPANTS' own."""
    return _NATIVE


def _converted(name: str, value: Any) -> Any:
    """Return a value as the option's type."""
    if name in _OBJECTS:
        return value
    if name == "pca":
        return tuple(value.split() if isinstance(value, str) else value)
    try:
        if name in _FLAGS:
            return bool(int(value)) if isinstance(value, str) else bool(value)
        if name in _TEXTS:
            text = str(value).lower()
            return text if name in ("fit", "empty") else text[:1]
        if name in ("ng", "gd"):
            numbers = tuple(float(one) for one in (value.split() if isinstance(value, str) else value))
            if name == "ng":
                return numbers
            if len(numbers) != 4 or any(one != int(one) for one in numbers):
                raise ValueError(value)
            return tuple(int(one) for one in numbers)
        number = float(value)
        if not np.isfinite(number) or (name in _INTEGERS and number != int(number)):
            raise ValueError(value)
        return int(number) if name in _INTEGERS else number
    except (TypeError, ValueError):
        kind = "whole number" if name in _INTEGERS else "list of numbers" if name in ("ng", "gd") else "number"
        raise InputError(f"The HOTPANTS option {name} is {value!r}; a {kind} is needed.", option=name) from None
