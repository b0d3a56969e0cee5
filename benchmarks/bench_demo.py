"""The demo's bars on real frames: noise, the variable star, residuals under bright stars, time.

For each science frame of the demo this prints mean and standard deviation of difference / error over the unmasked sky,
whether the known variable is in the candidate list, and what is left of bright constant stars: PSF flux of the
difference at their places, in units of sqrt(photon error^2 + (flat-field error x flux)^2), for a flat field good
to 1 %.
A star beyond 3 must be near a flagged candidate.
"""

from __future__ import annotations

import time

import numpy as np

import skyloom
from skyloom.data import SAAO_SCIENCE, SAAO_TEMPLATE, saao_frame
from skyloom.detection import forced_photometry
from skyloom.registration import SourceFlag, detect_sources, register

VARIABLE = np.array([[288.1, 214.9]])  # in frame 100
FLAT = 0.01
BRIGHT = 100.0  # S/N of a bright star


def bright_stars(result: skyloom.Difference) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and fluxes of bright unsaturated stars of the science image."""
    sources = detect_sources(result.science)
    spoilt = int(SourceFlag.SATURATED | SourceFlag.TRUNCATED)
    keep = (sources["snr"] > BRIGHT) & ((np.asarray(sources["flag"]) & spoilt) == 0)
    xy = np.column_stack([sources["x"][keep], sources["y"][keep]])
    inside = result.variance[np.rint(xy[:, 1]).astype(int), np.rint(xy[:, 0]).astype(int)] > 0
    return xy[inside], np.asarray(sources["flux"][keep])[inside]


def main() -> None:
    for number in SAAO_SCIENCE:
        start = time.perf_counter()
        result = skyloom.difference(saao_frame(number), [saao_frame(n) for n in SAAO_TEMPLATE])
        candidates = skyloom.detect(result)
        seconds = time.perf_counter() - start
        numbers = result.diagnostics
        print(
            f"frame {number}: {seconds:.1f} s; {len(candidates)} candidates, {candidates['real'].sum()} without flags"
        )
        print(
            f"  difference / error over the sky: mean {numbers['noise_mean']:+.3f}, std {numbers['noise_std']:.3f} "
            "(bar: 0.95 to 1.05, no offset)"
        )
        place = register(result.science, saao_frame(100)).template_to_source(VARIABLE)[0]
        near = candidates[np.hypot(candidates["x"] - place[0], candidates["y"] - place[1]) < 2]
        print(
            "  variable star: "
            + (f"S/N {near['snr'][0]:+.1f}, flags: {near['flag_text'][0] or 'none'}" if len(near) else "NOT FOUND")
        )
        xy, flux = bright_stars(result)
        far = np.hypot(*(xy - place).T) > 3 * numbers["psf_fwhm"]
        xy, flux = xy[far], flux[far]
        measured = forced_photometry(result, xy)
        error = np.hypot(np.asarray(measured["flux_err"]), FLAT * flux)
        z = np.asarray(measured["flux"]) / error
        valid = np.isfinite(z)
        beyond = valid & (np.abs(z) > 3)
        flagged = candidates[~candidates["real"]]
        reach = 2 * numbers["psf_fwhm"]
        noted = [np.hypot(flagged["x"] - x, flagged["y"] - y).min(initial=np.inf) < reach for x, y in xy[beyond]]
        print(
            f"  {valid.sum()} bright stars: {100 * np.mean(np.abs(z[valid]) < 3):.1f} % within 3 of photon and "
            f"{100 * FLAT:.0f} % flat-field noise, {beyond.sum()} beyond, {sum(noted)} of these flagged"
        )


if __name__ == "__main__":
    main()
