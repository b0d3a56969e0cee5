"""The numbers of a difference and what they mean in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.detection.flags import found
from skyloom.report.candidates import CandidateList
from skyloom.report.images import robust_location
from skyloom.report.planes import DifferenceLike, View, sigma_of

CALIBRATED = (0.9, 1.1)
"""Standard deviations of D/sigma and of the score that count as calibrated: a 5 sigma threshold is one of 4.5-5.5."""
REGISTRATION_GOOD, REGISTRATION_FAIR = 0.04, 0.10
"""Rms of the matched stars in units of the FWHM. The lobes of the dipole that a shift d leaves reach
2.3548 exp(-1/2) d / FWHM = 1.43 d / FWHM of the central intensity (steepest slope of a Gaussian)."""


@dataclass(frozen=True)
class Fact:
    """One number of the header: its name, the number with its unit as text, and a remark."""

    label: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """One sentence of the verdict: its state is 'good', 'fair', 'poor' or 'plain' (no judgement)."""

    state: str
    text: str


@dataclass(frozen=True)
class Summary:
    """The numbers of a difference, None where unknown; pixels are pixels of the science image.

    Attributes
    ----------
    candidates, flagged : int
        The former are all, with those that are flagged.
    error_scale : float
        The factor on the errors of the candidates.
    pull_std, score_std : float or None
        Standard deviation of D/sigma and of the score: the diagnostics' `noise_std` and `score_std` or, without them,
        from the median absolute deviation of all usable pixels.
    n_matched : int or None
    rms_px, rms_arcsec, pixel_scale : float or None
        Registration residual, and arcsec per pixel.
    kernel_sum : float or None
        At the middle of the image.
    fwhm : float or None
        Of the point spread function of the difference, pixels.
    stamps_used, stamps : int or None
    usable : float
        Part of the pixels of the difference that can be used.
    seconds : float or None
        Total run time.
    warning : str
        What is wrong with the image as a whole; nothing if nothing is known.
    """

    candidates: int
    flagged: int
    pull_std: float | None
    score_std: float | None
    n_matched: int | None
    rms_px: float | None
    rms_arcsec: float | None
    pixel_scale: float | None
    kernel_sum: float | None
    fwhm: float | None
    stamps_used: int | None
    stamps: int | None
    usable: float
    seconds: float | None
    warning: str = ""
    error_scale: float = 1.0


def summarize(difference: DifferenceLike, candidates: CandidateList, views: Mapping[str, View]) -> Summary:
    """Measure or look up the numbers of a difference."""
    view = views["difference"]
    registration = getattr(difference, "registration", None)
    diagnostics = getattr(difference, "diagnostics", None) or {}
    rms = number(getattr(registration, "rms", diagnostics.get("registration_rms")))  # a file holds only the latter
    scale = pixel_scale(getattr(difference, "wcs", None), view.values.shape)
    used = stamps_used(getattr(difference, "stamps", None))
    timings = _timings(difference)
    matched = number(getattr(registration, "n_matched", diagnostics.get("registration_n")))
    score = views.get("score")
    return Summary(
        candidates=len(candidates),
        flagged=int(candidates.flagged.sum()),
        pull_std=_known(diagnostics, "noise_std", view.values / sigma_of(difference), view.usable),
        score_std=_known(diagnostics, "score_std", score.values, score.usable) if score is not None else None,
        n_matched=None if matched is None else int(matched),
        rms_px=rms,
        rms_arcsec=rms * scale if rms is not None and scale is not None else None,
        pixel_scale=scale,
        kernel_sum=_kernel_sum(getattr(difference, "kernel", None), view.values.shape),
        fwhm=psf_fwhm(getattr(difference, "psf", None)),
        stamps_used=None if used is None else int(used.sum()),
        stamps=None if used is None else len(used),
        usable=float(view.usable.mean()),
        seconds=sum(timings.values()) if timings else None,
        warning=str(diagnostics.get("warning", "")),
        error_scale=candidates.error_scale,
    )


def number(value: Any) -> float | None:
    """Return a finite float, or None of anything else."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _known(
    diagnostics: Mapping[str, Any], name: str, values: npt.NDArray[np.floating], usable: npt.NDArray[np.bool_]
) -> float | None:
    """Return a standard deviation from the diagnostics, else that of the usable values."""
    known = number(diagnostics.get(name))
    if known is not None:
        return known
    good = values[usable & np.isfinite(values)]
    return float(robust_location(good)[1]) if good.size else None


def psf_fwhm(psf: Any, *position: float) -> float | None:
    """Return the FWHM of a point spread function in pixels, or None."""
    fwhm = getattr(psf, "fwhm", None)
    return number(fwhm(*position) if callable(fwhm) else fwhm)


def stamps_used(stamps: Any) -> npt.NDArray[np.bool_] | None:
    """Return which stamps the kernel was fitted to, or None."""
    if stamps is None or "used" not in getattr(stamps, "colnames", ()):
        return None
    return np.asarray(stamps["used"], dtype=bool)


def _kernel_sum(kernel: Any, shape: tuple[int, ...]) -> float | None:
    middle = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    if callable(getattr(kernel, "sum_at", None)):
        return number(np.squeeze(kernel.sum_at(*middle)))
    return number(np.sum(kernel.image_at(*middle))) if callable(getattr(kernel, "image_at", None)) else None


def _timings(difference: DifferenceLike) -> dict[str, float]:
    timings = (getattr(difference, "diagnostics", None) or {}).get("timings") or {}
    return {str(name): seconds for name, value in timings.items() if (seconds := number(value)) is not None}


def pixel_scale(wcs: Any, shape: tuple[int, ...]) -> float | None:
    """Return the side of a pixel at the middle of the image, in arcsec, or None without a celestial WCS."""
    sky = sky_vectors(wcs, np.array([[0, 0], [1, 0], [0, 1]]) + (np.array(shape[::-1]) - 1) / 2)
    if sky is None or not np.isfinite(sky).all():
        return None
    area = np.linalg.norm(np.cross(sky[1] - sky[0], sky[2] - sky[0]))
    return number(np.rad2deg(np.sqrt(area)) * 3600)


def sky_vectors(wcs: Any, xy: npt.NDArray[np.floating]) -> npt.NDArray[np.float64] | None:
    """Return ICRS unit vectors of pixel positions, (N, 3), NaN where the WCS gives none; None without a usable WCS."""
    if wcs is None:
        return None
    try:
        sky = wcs.pixel_to_world(xy[:, 0], xy[:, 1]).icrs.spherical
        lon, lat = np.asarray(sky.lon.rad, dtype=float), np.asarray(sky.lat.rad, dtype=float)
    except Exception:  # noqa: BLE001  # any WCS may come here: a page without RA/Dec is better than none
        return None
    vectors = np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    return vectors if np.isfinite(vectors).any() else None


def judge(summary: Summary) -> list[Judgement]:
    """Say in plain words how many candidates there are and whether one can trust them."""
    return [
        *([Judgement("poor", summary.warning)] if summary.warning else []),
        Judgement("plain", f"{found(summary.candidates - summary.flagged, summary.flagged)}."),
        _judge_noise(summary),
        _judge_registration(summary),
        *_judge_coverage(summary),
    ]


def _judge_noise(summary: Summary) -> Judgement:
    name, std = ("score", summary.score_std) if summary.score_std is not None else ("D/σ", summary.pull_std)
    if std is None:
        return Judgement("poor", "Noise unknown: there are no usable pixels with a variance.")
    low, high = CALIBRATED
    facts = f"the {name} has a standard deviation of {std:.3f}"
    if std < low:
        return Judgement("fair", f"Noise overestimated: {facts}, so real signal-to-noise is higher than quoted.")
    if std > high:
        allowed = summary.error_scale > 1
        ending = (
            f"the S/N of the candidates allow for it (errors x {summary.error_scale:.3g})."
            if allowed
            else "expect false candidates."
        )
        state, name = "fair" if allowed else "poor", "Noise underestimated"
        if summary.pull_std is not None and low <= summary.pull_std <= high:
            name += f" for sources: single pixels are right (D/σ {summary.pull_std:.3f}), but neighbours are correlated"
            name += " or carry residuals"
        return Judgement(state, f"{name}: {facts}; {ending}")
    return Judgement("good", f"Noise calibrated: {facts} (1 is perfect).")


def _judge_registration(summary: Summary) -> Judgement:
    if summary.rms_px is None:
        return Judgement("plain", "Registration not measured: no matched stars were given.")
    facts = f"{summary.rms_px:.3f} px rms"
    if summary.n_matched is not None:
        facts += f" over {summary.n_matched:,} stars"
    if not summary.fwhm:
        return Judgement("plain", f"Registration: {facts}.")
    ratio = summary.rms_px / summary.fwhm
    facts += f", {ratio:.1%} of the FWHM"
    if ratio <= REGISTRATION_GOOD:
        return Judgement("good", f"Registration good: {facts}.")
    if ratio <= REGISTRATION_FAIR:
        return Judgement("fair", f"Registration fair: {facts}; bright stars may leave weak dipoles.")
    return Judgement("poor", f"Registration poor: {facts}; expect dipoles at stars.")


def _judge_coverage(summary: Summary) -> Iterable[Judgement]:
    if summary.usable < 0.8:
        yield Judgement(
            "fair" if summary.usable > 0.4 else "poor",
            f"Only {summary.usable:.0%} of the pixels can be used; the rest is masked or not covered.",
        )


def facts(summary: Summary, difference: DifferenceLike) -> list[Fact]:
    """Return the key numbers of the header, without those that are not known."""
    diagnostics = getattr(difference, "diagnostics", None) or {}
    s = summary
    rms = None if s.rms_px is None else f"{s.rms_px:.3f} px"
    stamps = None if s.stamps is None else f"{s.stamps_used} of {s.stamps}"
    science_fwhm, template_fwhm = (number(diagnostics.get(f"{image}_fwhm")) for image in ("science", "template"))
    fwhm = s.fwhm if science_fwhm is None else science_fwhm  # by the same stars as the template's
    convolved = diagnostics.get("convolved")
    scaled = f"errors of candidates x {s.error_scale:.3g}" if s.error_scale > 1 else "1 is perfect"
    rows = [
        ("Matched stars", None if s.n_matched is None else f"{s.n_matched:,}", ""),
        ("Registration rms", rms, "" if s.rms_arcsec is None else f"{s.rms_arcsec:.3f}″"),
        ("Kernel sum", _text(s.kernel_sum, "{:.4f}"), f"{convolved} convolved" if convolved else ""),
        ("Flux scale", _text(number(diagnostics.get("flux_scale")), "{:.4g}"), "science / template"),
        ("Limiting flux", _limit(diagnostics), "5 sigma, point source"),
        ("FWHM", _text(fwhm, "{:.2f} px"), _arcsec(fwhm, s)),
        ("Template FWHM", _text(template_fwhm, "{:.2f} px"), _arcsec(template_fwhm, s)),
        ("Stamps used", stamps, "kernel fit"),
        ("Std of D/σ", _text(s.pull_std, "{:.3f}"), "1 is perfect"),
        ("Std of the score", _text(s.score_std, "{:.3f}"), scaled),
        ("Usable pixels", f"{s.usable:.1%}", ""),
        ("Run time", _text(s.seconds, "{:.2f} s"), ""),
    ]
    return [Fact(label, text, note) for label, text, note in rows if text is not None]


def _limit(diagnostics: Mapping[str, Any]) -> str | None:
    flux, magnitude = (number(diagnostics.get(name)) for name in ("limit_flux", "limit_mag"))
    if flux is None:
        return None
    return f"{flux:.4g} {diagnostics.get('unit', '')}".strip() + (
        "" if magnitude is None else f" = {magnitude:.2f} mag"
    )


def _arcsec(pixels: float | None, summary: Summary) -> str:
    return f"{pixels * summary.pixel_scale:.2f}″" if pixels and summary.pixel_scale else ""


def _text(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def details(difference: DifferenceLike) -> dict[str, list[tuple[str, str]]]:
    """Return all diagnostics, run times and parameters as text, for the fold-out tables."""
    diagnostics = dict(getattr(difference, "diagnostics", None) or {})
    diagnostics.pop("timings", None)
    parameters = getattr(difference, "parameters", None) or {}
    groups = {
        "Diagnostics": [(str(name), _plain(value)) for name, value in diagnostics.items()],
        "Run times": [(name, f"{seconds:.3f} s") for name, seconds in _timings(difference).items()],
        "Parameters": [(str(name), _plain(value)) for name, value in parameters.items()],
    }
    return {name: rows for name, rows in groups.items() if rows}


def _plain(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 400 else text[:399] + "…"


HEADER_WORDS = (
    ("Date", ("DATE-OBS", "DATE_OBS", "MJD-OBS", "MJD")),
    ("Field", ("OBJECT", "FIELD", "FIELDID", "TARGNAME")),
    ("Filter", ("FILTER", "FILTERS", "FILTER1", "BAND")),
    ("Telescope", ("TELESCOP", "OBSERVAT")),
    ("Instrument", ("INSTRUME", "CAMERA")),
)


def describe(exposure: Any) -> list[tuple[str, str]]:
    """Return name, date, field and so on of an exposure, as far as its header tells."""
    header = getattr(exposure, "header", None) or {}
    rows = [("Image", str(getattr(exposure, "name", "image")))]
    for label, words in HEADER_WORDS:
        found = [text for word in words if word in header and (text := str(header[word]).strip())]
        if found:
            rows.append((label, _plain(found[0])))
    exptime = number(getattr(exposure, "exptime", None))
    if exptime is not None:
        rows.append(("Exposure", f"{exptime:g} s"))
    return rows
