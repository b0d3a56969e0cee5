"""`estimate_psf`: measure the point spread function of an image from its stars."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skyloom._threads import serial_blas
from skyloom.background import MAD_TO_SIGMA, estimate_background, median
from skyloom.errors import InputError, NoUsableDataError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.noise import with_variance
from skyloom.psf.analytic import Profile, fit_profile
from skyloom.psf.fit import StarStamps, effective_profile, fit_basis, refined_profile, residuals
from skyloom.psf.model import PsfModel, is_whole, polynomial_terms
from skyloom.psf.order import JUDGES, MIN_STARS, choose_order
from skyloom.psf.sources import Sources, core_pixels, mean_star
from skyloom.psf.stars import SourceField, choose_stars, in_flux_unit

logger = logging.getLogger("skyloom.psf")

Array = npt.NDArray[np.float64]

MAX_STARS = 100
ORDINARY = 1e-4, 1e5
"""Noise of images in units in which single precision holds all that is computed here."""
PASSES = 4
"""The fourth still moves the light within small circles by 0.1 %."""
PIXEL = 0.68
"""FWHM, in pixels, by which a pixel widens a star, in quadrature: sqrt(8 ln 2 / 12)."""
SAMPLES, MAX_OVERSAMPLING = 2.6, 4
"""The PSF is sampled more often than the pixels until there are so many samples per FWHM, along its short axis."""


@dataclass(frozen=True)
class _Options:
    """What was asked for, see `estimate_psf`."""

    half: int | None = None
    order: int | Literal["auto"] = "auto"
    fallback: str | None = None
    stars: Any = None
    oversampling: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name, words, (low, high) in (
            ("half", (None,), (2, 200)),
            ("order", ("auto",), (0, max(MIN_STARS))),
            ("fallback", (None, "moffat", "gaussian"), (1, 0)),
            ("oversampling", ("auto",), (1, MAX_OVERSAMPLING)),
        ):
            value = getattr(self, name)
            word = (value is None or isinstance(value, str)) and value in words
            if not word and not (is_whole(value) and low <= value <= high):
                known = ", ".join(map(repr, words)) + (f", or a whole number from {low} to {high}," * (low < high))
                raise InputError(f"{name} is {value!r}; {known} is needed.", **{name: value})

    @property
    def needed(self) -> int:
        """Fewest stars."""
        return MIN_STARS[0 if self.order == "auto" else self.order]


def estimate_psf(
    exposure: Exposure,
    sources: Any = None,
    *,
    half: int | None = None,
    order: int | Literal["auto"] = "auto",
    fallback: Literal["moffat", "gaussian"] | None = None,
    stars: Any = None,
    oversampling: int | Literal["auto"] = "auto",
) -> PsfModel:
    """Measure the point spread function from the stars of an image.

    The samples of the PSF, as polynomials of the position, are fitted to all chosen stars at once by weighted least
    squares (a forward model, as Bertin 2011 does; the effective PSF of Anderson & King 2000): every star is the PSF
    of its place, interpolated at its pixels (see `PsfModel`), times its flux. Fluxes, positions and
    the neighbours' light are refined in turn with the PSF; stars that the model does not describe are left out.

    Parameters
    ----------
    exposure : Exposure
        Image; without a variance plane, the noise is measured from the background.
    sources : table, optional
        Known sources with columns x, y (pixels) and optionally flux. All of them, not only stars: neighbours must be
        known. Default: detect them.
    half : int, optional
        Half size of the stamps. Default 3.5 FWHM, at least 7 and at most 50 pixels.
    order : {'auto', 0, 1, 2}
        Degree of the variation over the image. 'auto' takes the highest one that predicts stars left out of the fit
        as well as the lower ones.
    fallback : {'moffat', 'gaussian'}, optional
        With fewer than 3 good stars, but at least one, fit that profile to what there is, instead of an error.
    stars : table, optional
        Columns x, y: which of the sources (to a pixel) may be chosen as stars. By default all of them.
    oversampling : {'auto', 1, 2, 3, 4}, optional
        Samples of the PSF per pixel. 'auto' takes one, and more for stars too narrow for that.

    Returns
    -------
    psf : PsfModel
        With the statistics 'chi2' (median over stars of the reduced chi-square in the core, with a model error of 2 %),
        'residual' (median over stars of the RMS residual in the core, relative to the peak), 'fwhm',
        'n_candidates' and 'n_rejected'.

    Raises
    ------
    TooFewSourcesError
        Fewer than 3 good stars (no good star with a `fallback`), or too few for the asked order.
    NoUsableDataError
        The exposure has no usable pixel.
    InputError
        An option is out of its range, or `sources` has no columns x and y.
    """
    options = _Options(half, order, fallback, stars, oversampling)
    return _estimate(*_prepare(exposure), sources, options, exposure.name)


def estimate_psf_of_planes(
    image: npt.NDArray[Any],
    variance: npt.NDArray[Any],
    usable: npt.NDArray[np.bool_],
    sources: Any = None,
    *,
    order: int | Literal["auto"] = "auto",
    fallback: Literal["moffat", "gaussian"] | None = None,
    name: str = "the image",
) -> PsfModel:
    """Measure the point spread function of an image whose background is known; see `estimate_psf`.

    Parameters
    ----------
    image, variance : ndarray, shape (ny, nx)
        Without background; the variance holds all noise, that of faint sources that nobody can tell apart, too.
    usable : ndarray of bool, shape (ny, nx)
    sources, order, fallback
        As of `estimate_psf`.
    name : str
        For messages.
    """
    return _estimate(image, variance, usable, sources, _Options(order=order, fallback=fallback), name)


def _estimate(  # noqa: PLR0917
    image: npt.NDArray[Any],
    variance: npt.NDArray[Any],
    usable: npt.NDArray[np.bool_],
    sources: Any,
    options: _Options,
    name: str,
) -> PsfModel:
    shape = image.shape[0], image.shape[1]
    unit = _unit(variance, usable)
    if image.dtype != np.float32 or unit != 1:  # in which single precision holds what is to be squared
        image, variance = (image / unit).astype(np.float32), (variance / unit**2).astype(np.float32)
        sources = in_flux_unit(sources, unit)
    field = choose_stars(image, variance, usable, sources, max_stars=MAX_STARS, stars=options.stars)
    if field.stars.size < options.needed and (options.fallback is None or field.stars.size == 0):
        raise _too_few(name, field, options.needed)
    # a first look at the mean star: half-light radii are too large in crowded fields
    first = int(np.clip(np.ceil(2 * field.fwhm), 5, 50))
    profile = fit_profile(*mean_star(image, usable, field, first), field.fwhm, tolerance=1e-3)
    fwhm = profile.fwhm
    field = dataclasses.replace(field, fwhm=fwhm)
    half = int(np.clip(np.ceil(3.5 * fwhm), 7, 50)) if options.half is None else options.half
    analytic = field.stars.size < options.needed
    if analytic:
        profile = fit_profile(*mean_star(image, usable, field, half), fwhm, gaussian=options.fallback == "gaussian")
    oversampling = options.oversampling
    if oversampling == "auto":
        oversampling = int(np.clip(np.ceil(SAMPLES / profile.narrowest), 1, MAX_OVERSAMPLING))
    if analytic:
        return _analytic_model(profile, half, shape, field, oversampling)
    if oversampling > 1:  # the mean star says little of its wings, and holds the pixels
        profile = dataclasses.replace(profile, fwhm=max(profile.fwhm**2 - PIXEL**2, 0.5) ** 0.5, beta=3.0)
    with serial_blas():  # of small matrices: threads would only wait for each other
        work = Sources.of(image, variance, usable, field, half, oversampling)
        return _sampled_model(work, profile, options, shape, field=field, name=name)


def _unit(variance: npt.NDArray[Any], usable: npt.NDArray[np.bool_]) -> float:
    """Return 1, or a power of 2 near the noise of an image in an extreme unit."""
    sigma = float(np.sqrt(median(variance[usable])))
    return 1.0 if not sigma > 0 or ORDINARY[0] < sigma < ORDINARY[1] else 2.0 ** round(np.log2(sigma))


def _sampled_model(
    work: Sources, profile: Profile, options: _Options, shape: tuple[int, int], *, field: SourceField, name: str
) -> PsfModel:
    """Alternate between the stars' parameters and the samples of the PSF."""
    half, oversampling = work.half, work.oversampling
    start = effective_profile(profile, half, oversampling)
    psf = PsfModel(start[None], 0, shape, oversampling=oversampling)
    chosen = 0
    for passage in range(PASSES):
        stars = work.star_stamps(psf, profile, JUDGES if passage <= 1 else None)
        stars, chi2 = _reject(stars, psf, profile.fwhm)
        if stars.x.size < options.needed:
            raise _too_few(name, field, options.needed, left=stars.x.size)
        if passage <= 1:
            profile = refined_profile(stars, profile)
        if passage == 1:  # the first PSF made by stars has cleaned the stamps: now the order can be judged
            order = options.order
            chosen = choose_order(stars, psf.basis, profile.fwhm, shape) if order == "auto" else order
        terms = polynomial_terms(stars.x, stars.y, chosen, shape)
        psf = PsfModel(fit_basis(stars, terms, profile), chosen, shape, stars.x.size, oversampling=oversampling)
    core = core_pixels(half, profile.fwhm)
    model = psf.stamps(stars.x, stars.y).max(axis=(1, 2)) * stars.flux
    scatter = np.sqrt(np.mean(residuals(stars, psf.basis, terms)[:, core] ** 2, axis=1)) / model
    statistics = {
        "chi2": float(np.median(chi2)),
        "residual": float(np.median(scatter)),
        "fwhm": psf.fwhm(),
        "n_candidates": float(field.stars.size),
        "n_rejected": float(field.stars.size - stars.x.size),
    }
    logger.info("%s: %r", name, psf)
    return dataclasses.replace(psf, statistics=statistics)


def _reject(stars: StarStamps, psf: PsfModel, fwhm: float) -> tuple[StarStamps, Array]:
    """Leave out the stars whose core the PSF does not describe; return the others and their reduced chi-squares."""
    core = core_pixels(psf.half, fwhm)
    weight = stars.weight[:, core]
    chi2 = (weight * residuals(stars, psf.basis, psf.terms(stars.x, stars.y))[:, core] ** 2).sum(axis=1)
    chi2 = chi2 / np.maximum((weight > 0).sum(axis=1) - 4, 1)
    middle = float(np.median(chi2))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(chi2 - middle)))
    # half of the stars are never left out; stars good to the noise never either
    keep = (chi2 <= max(middle + 5 * spread, 2.0)) & (stars.flux > 0) & ((weight > 0).mean(axis=1) > 0.8)
    return stars.select(keep), chi2[keep]


def _analytic_model(
    profile: Profile, half: int, shape: tuple[int, int], field: SourceField, oversampling: int
) -> PsfModel:
    stamp = profile.stamp(half, oversampling=oversampling)
    stamp /= stamp[::oversampling, ::oversampling].sum()
    psf = PsfModel(stamp[None], 0, shape, field.stars.size, oversampling=oversampling)
    statistics = {"fwhm": psf.fwhm(), "n_candidates": float(field.stars.size), "beta": profile.beta}
    return dataclasses.replace(psf, statistics=statistics)


def _too_few(name: str, field: SourceField, needed: int, left: int | None = None) -> TooFewSourcesError:
    counts = dict(field.counts)
    if left is not None:
        counts["described by one PSF"] = left
    found = field.stars.size if left is None else left
    passed = ", ".join(f"{number} {what}" for what, number in counts.items())
    return TooFewSourcesError(
        f"{name} has {found} good stars for a point spread function ({passed}); at least {needed} are needed. "
        "Give a deeper image or a mask for artefacts; in Python also a lower order=, or an analytic profile with "
        "fallback='moffat'.",
        found=found,
        needed=needed,
        counts=counts,
    )


def _prepare(exposure: Exposure) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the background-subtracted data, their variance, and what may be used, in the precision of the data."""
    usable = exposure.usable
    if not usable.any():
        raise NoUsableDataError(f"{exposure.name} has no usable pixel, so no star either; check its mask.")
    known = with_variance(exposure) if exposure.variance is None else exposure
    background = estimate_background(exposure)
    variance: npt.NDArray[Any] = np.asarray(known.variance, exposure.data.dtype)
    usable = usable & (variance > 0)
    image = np.where(usable, exposure.data - background.level, 0).astype(exposure.data.dtype, copy=False)
    # faint sources that nobody can tell apart are noise, too: in a crowded field the sky scatters more than its pixels
    confusion = max(background.global_rms**2 - float(np.median(variance[usable])), 0.0)
    return image, variance + variance.dtype.type(confusion), usable
