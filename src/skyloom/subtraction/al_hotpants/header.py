"""The header that HOTPANTS writes, and the statistics in it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from skyloom import __version__
from skyloom.subtraction.al_hotpants.fit import RegionFit, clipped
from skyloom.subtraction.al_hotpants.inputs import HotpantsBit
from skyloom.subtraction.al_hotpants.kernel import HotpantsKernel, Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.planes import Products

_SAMPLE = 600  # pixels of a region along each axis, at most, from which its statistics are found


def make_header(
    products: Products, kernel: HotpantsKernel, fitted: list[RegionFit | None], options: HotpantsOptions, *,
    statistics: bool = True,
) -> fits.Header:  # fmt: skip
    """Return the keywords of HOTPANTS; with `okn`, rescale the noise of pixels that are OK.

    The values of each region are strings, as there. SSSIG and SSSCAT are the mean merit of the sub-stamps and its
    scatter, and so are FSIG and FSCAT. Statistics of GOOD pixels (mask 0) and of OK pixels (touched by bad ones) are
    clipped at `ssig` and taken on a lattice of at most 600 x 600 pixels of each region.
    """
    header = fits.Header()
    header["SOFTNAME"] = ("HOTPanTS", "The software that differenced this image")
    header["SOFTVERS"] = (f"skyloom {__version__}", "Version; options of HOTPanTS 5.1.11")
    header["SOFTAUTH"] = ("skyloom", "Maintainer")
    header["DATE"] = (datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "When it was started (GMT)")
    for number, region in enumerate(kernel.regions):
        fit = fitted[number] if number < len(fitted) else None
        cards = _region_cards(number, region, kernel, fit, options)
        if np.isfinite(kernel.solutions[number]).all() and (statistics or options.okn):
            cards |= _statistics_cards(region, products, options)
        for name, (value, comment) in cards.items():
            header[f"{name}{number:02d}"] = (value, comment)
    header["PHOTNORM"] = (options.n, "Direction of photometric normalization")
    header["NREGION"] = (len(kernel.regions), "Number of independent regions")
    header["MASKVAL"] = (options.fi, "Value of Masked Pixels")
    header["KERINFO"] = options.hki
    header["NSTAMPS"] = (sum(len(fit.stamps) for fit in fitted if fit is not None), "Sub-stamps of the fit")
    return header


def _region_cards(
    number: int, region: Region, kernel: HotpantsKernel, fit: RegionFit | None, options: HotpantsOptions
) -> dict[str, tuple[str, str]]:
    """Return the keywords of one region, without its number."""
    limits = f"[{region.x0 + 1}:{region.x1 + 1},{region.y0 + 1}:{region.y1 + 1}]"
    cards = {"REGION": (limits, ""), "CONVOL": (kernel.convolved[number].upper(), "")}
    if not np.isfinite(kernel.solutions[number]).all():
        return cards | {"KSUM": ("0.0000", "Kernel Sum; no solution")}
    cards["KSUM"] = (f"{kernel.solutions[number, 1]:.4f}", "Kernel Sum")
    if fit is not None:
        cards["SSSIG"] = (f"{fit.merit:.4f}", "Average Figure of Merit across Stamps")
        cards["SSSCAT"] = (f"{fit.scatter:.4f}", "Stdev in Figure of Merit")
        if options.fom == "v":
            cards["FSIG"] = (f"{fit.merit:.4f}", "Final SSSIG")
            cards["FSCAT"] = (f"{fit.scatter:.4f}", "Final SSSCAT")
    return cards


def _statistics_cards(region: Region, products: Products, options: HotpantsOptions) -> dict[str, tuple[str, str]]:
    """Return the keywords of one region that tell of the difference; with `okn`, rescale its noise."""
    cards: dict[str, tuple[str, str]] = {}
    if products.noise is None:
        return cards
    box = _lattice(region)
    mask = products.mask[box]
    ok = ((mask & 0xFF) != 0) & ((mask & np.uint16(HotpantsBit.OUTPUT_ISBAD)) == 0)
    good = _statistics(products.diff[box], products.noise[box], mask == 0, options)
    touched = _statistics(products.diff[box], products.noise[box], ok, options)
    cards["X2NRM"] = (f"{good[3]:.4f}", "1/N * SUM (diff/noise)^2")
    cards["NX2NRM"] = (f"{good[4]:d}", "Number of pixels in X2NRM")
    for suffix, what, (mean, sd, noise, _, _) in (("", "good", good), ("O", "OK", touched)):
        cards[f"DMEAN{suffix}"] = (f"{mean:.4f}", f"Mean of diff image; {what} pixels")
        cards[f"DSIGE{suffix}"] = (f"{sd:.4f}", f"Stdev of diff image; {what} pixels")
        cards[f"DSIG{suffix}"] = (f"{noise:.4f}", f"Mean of noise image; {what} pixels")
    if options.okn:
        ratio = (touched[1] / touched[2]) / (good[1] / good[2]) if touched[2] > 0 and good[1] > 0 else 1.0
        cards["NSCALO"] = (f"{ratio:.4f}", "Rescaling factor of OK noise pixels")
        if ratio > 1:
            here = slice(region.y0, region.y1 + 1), slice(region.x0, region.x1 + 1)
            mask = products.mask[here]
            all_ok = ((mask & 0xFF) != 0) & ((mask & np.uint16(HotpantsBit.OUTPUT_ISBAD)) == 0)
            products.noise[here][all_ok] *= np.float32(ratio)
    return cards


def _lattice(region: Region) -> tuple[slice, slice]:
    """Return the pixels of a region from which statistics are taken."""
    spans = (region.y0, region.y1 + 1), (region.x0, region.x1 + 1)
    y, x = (slice(low, high, -(-(high - low) // _SAMPLE)) for low, high in spans)
    return y, x


def _statistics(
    diff: npt.NDArray[np.float32], noise: npt.NDArray[np.float32], which: npt.NDArray[np.bool_],
    options: HotpantsOptions,
) -> tuple[float, float, float, float, int]:  # fmt: skip
    """Return clipped mean and deviation of the difference, mean noise, reduced chi2, and its number of pixels."""
    d, n = diff[which].astype(np.float64), noise[which].astype(np.float64)
    if not len(d):
        return 0.0, 0.0, 0.0, 0.0, 0
    mean, sd = clipped(d, options.ssig)
    return mean, sd, clipped(n, options.ssig)[0], float(np.mean((d / n) ** 2)), len(d)
