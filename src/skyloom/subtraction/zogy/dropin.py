"""`run_zogy`: the signature, defaults and results of stdpipe's function of that name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._threads import num_threads
from skyloom.background import median
from skyloom.errors import InputError, NoUsableDataError, ShapeError, SkyloomWarning, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.psf import Psf, as_psf
from skyloom.psf.estimate import estimate_psf_of_planes
from skyloom.psf.stars import detect
from skyloom.subtraction.dropin_arguments import bad_plane, check_gain, error_plane, logger, usable_errors
from skyloom.subtraction.sfft.noise_map import sky_and_noise
from skyloom.subtraction.zogy.match import Match, Planes
from skyloom.subtraction.zogy.result import ZogyOptions, ZogyResult
from skyloom.subtraction.zogy.subtract import difference_planes, fit_match, fits_single_precision

Array = npt.NDArray[np.float64]

LARGEST_ERROR = 1e3
"""Of pixels that are used, relative to the median: they weigh a millionth, and their variance would bring rounding
errors of its size into those of others, by the transforms."""


def run_zogy(  # noqa: PLR0917  the reference's signature
    image: Any,
    template: Any,
    mask: Any = None,
    template_mask: Any = None,
    err: Any = None,
    template_err: Any = None,
    image_psf: Any = None,
    template_psf: Any = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    image_fwhm: float | None = None,  # noqa: ARG001
    template_fwhm: float | None = None,  # noqa: ARG001
    scale: float | None = None,
    psf_clean: float = 0,
    dx: float = 0.25,
    dy: float = 0.25,
    nx: int = 1,
    ny: int | None = None,
    overlap: int = 50,
    fit_scale: bool = True,
    fit_shift: bool = True,
    good_regions: Any = None,
    image_obj: Any = None,
    template_obj: Any = None,
    get_psf: bool = False,
    get_Fpsf: bool = False,
    nthreads: int = 0,
    verbose: bool | Callable[..., Any] = False,
    **kwargs: Any,
) -> list[Array]:
    """Subtract a template from an image with the algorithm of Zackay, Ofek & Gal-Yam (2016).

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On one pixel grid.
    mask, template_mask : array_like of bool, optional
        True where a pixel is bad. So are pixels that are not finite.
    err, template_err : array_like, optional
        Standard deviation of every pixel; by default that of the background and, with a gain, the photon noise of
        sources. Pixels where it is not finite and above 0, or more than 1000 times the median, are bad.
    image_psf, template_psf : mapping, array_like, path or Psf, optional
        Point spread functions, see `skyloom.psf.as_psf`; measured on the images by default.
    image_gain, template_gain : float, optional
        e-/ADU. Without it the noise map holds the noise of the background only.
    image_fwhm, template_fwhm : float, optional
        Accepted as in the original, which needs them to normalise measured point spread functions; not needed here.
    scale : float, optional
        Flux of a source in the template over its flux in the image. By default from the stars.
    psf_clean : float
        Pixels of the point spread functions below this part of their maximum are set to 0.
    dx, dy : float
        Standard deviations of positions in the template relative to the image, in pixels. The scatter of the stars'
        positions is measured; these are the largest values that are believed, and what is taken where there are too few
        stars.
    nx, ny, overlap : int
        Accepted as in the original. Point spread functions that vary are followed continuously, without sub-images.
    fit_scale, fit_shift : bool
        Fit the flux scale and a shift of the template to the stars.
    good_regions : array_like of bool, optional
        Where the fit may look.
    image_obj, template_obj : Table, optional
        Stars (columns x, y, optionally flux and flags) for the fit. Both lists are used if both are given.
    get_psf, get_Fpsf : bool
        Whether to return P_D; flux and its error.
    nthreads : int
        Threads of the transforms; 0: as many as `SKYLOOM_NUM_THREADS` or the processors allow. The result does not
        depend on it.
    verbose : bool or callable
        Print (or call with) what is done.
    **kwargs
        ``order``, the degree to which measured point spread functions vary over the image; by default as the stars show
        it. The other arguments of
        stdpipe's `run_psfex` (thresh, aper, r0, gain, ...) tune programs that are not run here: without effect.

    Returns
    -------
    list of ndarray of float64
        D (science minus template, in the flux unit of the image), S_corr, and, if asked for, P_D (of the middle of the
        image), and Fpsf and Fpsf_err. Where a pixel is bad in either image, D, S_corr and Fpsf are 0 and Fpsf_err is
        infinite.

    Raises
    ------
    InputError, ShapeError
        An argument cannot be used.
    NoUsableDataError
        All pixels of an image are bad.
    TooFewSourcesError
        Too few stars for a point spread function or for the fit.
    SubtractionError
        The stars do not tell the flux scale: the images are not of one field, or not registered.
    """
    say = logger(verbose)
    _check_options(dx, dy, nx, ny, overlap, nthreads, kwargs)
    science = _planes(image, mask, err, image_gain, "image", None)
    reference = _planes(template, template_mask, template_err, template_gain, "template", science.data.shape)
    order = kwargs.get("order", "auto")
    stars = _stars(image_obj, template_obj)
    sources = detect(science.data, science.variance, science.usable) if image_psf is None else None
    psfs = (
        _psf(image_psf, science, "image", order, psf_clean, sources),
        _psf(template_psf, reference, "template", order, psf_clean),
    )
    say(f"point spread functions: {psfs[0]!r}, {psfs[1]!r}")
    options = ZogyOptions(flux_ratio=scale, fit_ratio=bool(fit_scale), fit_shift=bool(fit_shift))
    region = None if good_regions is None else bad_plane(good_regions, science.data.shape, "good_regions")
    match = _match((science, reference), psfs, sources if stars is None else stars, options, region, (dx, dy))
    say(f"template flux scale {match.flux_ratio:.4f}, shift {match.shift}, scatter of positions {match.scatter}")
    result = difference_planes(
        (science, reference), psfs, match, variances=False, flatten=True, threads=nthreads or num_threads()
    )
    del science, reference  # memory of two images
    return _products(result, get_psf, get_Fpsf)


def _match(  # noqa: PLR0917
    planes: tuple[Planes, Planes],
    psfs: tuple[Psf, Psf],
    stars: Any,
    options: ZogyOptions,
    region: npt.NDArray[np.bool_] | None,
    largest_scatter: tuple[float, float],
) -> Match:
    """Fit to the stars; without them, what is given holds."""
    try:
        match = fit_match(planes, psfs, stars, options, good=region)
    except TooFewSourcesError as error:
        if options.flux_ratio is None:
            raise
        if options.fit_ratio or options.fit_shift:
            text = f"{error} The scale that was given, {options.flux_ratio}, is used."
            warnings.warn(text, SkyloomWarning, stacklevel=3)
        return Match(options.flux_ratio, (0.0, 0.0), scatter=largest_scatter)
    x, y = (min(*pair) for pair in zip(match.scatter, largest_scatter, strict=True))
    return dataclasses.replace(match, scatter=(x, y))


_RUN_PSFEX = {
    "thresh", "aper", "r0", "gain", "minarea", "vignet_size", "psf_size", "order", "sex_extra", "checkimages", "extra",
    "psffile", "get_obj", "_workdir", "_tmpdir", "_exe", "_sex_exe",
}  # fmt: skip


def _check_options(  # noqa: PLR0917
    dx: float, dy: float, nx: int, ny: int | None, overlap: int, nthreads: int, kwargs: dict[str, Any]
) -> None:
    unknown = sorted(set(kwargs) - _RUN_PSFEX)
    if unknown:
        raise InputError(f"Unknown arguments {', '.join(unknown)}; those of run_zogy and of run_psfex are known.")
    for what, value, least in (
        ("dx", dx, 0), ("dy", dy, 0), ("nx", nx, 1), ("ny", 1 if ny is None else ny, 1), ("overlap", overlap or 0, 0),
        ("nthreads", nthreads, 0),
    ):  # fmt: skip
        if not (np.isreal(value) and np.isfinite(value) and value >= least):
            raise InputError(f"{what} is {value!r}; a number of at least {least} is needed.", **{what: value})


def _planes(  # noqa: PLR0917
    image: Any, mask: Any, err: Any, gain: float | None, what: str, shape: tuple[int, ...] | None
) -> Planes:
    """Return an image without its background; the noise is that given, or follows from background and gain."""
    check_gain(gain, f"{what}_gain")
    exposure = Exposure(data=image, name=f"the {what}")  # checks type and shape
    if shape is not None and exposure.shape != shape:
        raise ShapeError(
            f"The template has the shape {exposure.shape} and the image {shape}; they must be on one grid. Resample "
            "the template first.",
            found=exposure.shape,
            needed=shape,
        )
    bad = (
        ~exposure.usable
        if mask is None
        else ~exposure.usable | bad_plane(mask, exposure.shape, f"the mask of the {what}")
    )
    if bad.all():
        raise NoUsableDataError(f"All pixels of the {what} are masked or not finite; check its mask.")
    given = error_plane(err, exposure.shape, f"the noise of the {what}")
    if given is not None:
        bad |= ~usable_errors(given)
        bad |= given > LARGEST_ERROR * np.median(given[~bad]) if not bad.all() else False
    found = None if bad.all() else sky_and_noise(np.asarray(exposure.data), bad, gain)
    if found is not None and given is None:
        bad |= ~usable_errors(found.variance)
    if found is None or bad.all():
        raise NoUsableDataError(
            f"The noise of the {what} is a number above 0 in no usable pixel: it is constant, or err is wrong."
        )
    holes = bool(bad.any())
    typical = found.variance if given is None else given
    sigma = median(typical[~bad] if holes else typical)
    sigma = float(np.sqrt(sigma)) * found.unit if given is None else sigma
    kind = np.float32 if fits_single_precision(found.image, sigma / found.unit, found.unit) else np.float64
    if kind == np.float32:
        data = np.multiply(found.image, kind(found.unit), out=found.image)
    else:
        data = np.asarray(exposure.data, np.float64) - found.sky
    if given is not None:
        variance = np.square(given, out=given).astype(kind, copy=False)
    else:
        variance = found.variance * kind(found.unit**2)
    if holes:
        data[bad] = variance[bad] = 0
    return Planes(data, variance, ~bad, sigma)


def _psf(  # noqa: PLR0917
    psf: Any, planes: Planes, what: str, order: Any, clean: float, sources: Any = None
) -> Psf:
    """Return the point spread function as given or measured, without what `clean` takes off."""
    if psf is None:
        found: Psf = estimate_psf_of_planes(
            planes.data, planes.variance, planes.usable, sources, order=order, fallback="moffat", name=f"the {what}"
        )
    else:
        found = as_psf(psf)
    if not clean:
        return found
    return _Cleaned(found, clean)


class _Cleaned:
    """A point spread function without its faint pixels."""

    def __init__(self, psf: Psf, least: float) -> None:
        if not 0 < least < 1:
            raise InputError(f"psf_clean is {least!r}; a part of the maximum between 0 and 1 is needed.")
        self._psf, self._least = psf, least

    @property
    def half(self) -> int:
        return self._psf.half

    def stamp(self, x: float, y: float) -> Array:
        stamp = self._psf.stamp(x, y)
        stamp = np.where(stamp < self._least * stamp.max(), 0, stamp)
        return np.asarray(stamp / stamp.sum())


def _stars(image_obj: Any, template_obj: Any) -> Any:
    """Return the stars to fit: those of the image; with both lists, its entries that the template has as well."""
    if image_obj is None or template_obj is None or len(image_obj) == 0 or len(template_obj) == 0:
        return image_obj if image_obj is not None else template_obj
    from scipy.spatial import cKDTree

    positions = [np.column_stack([np.asarray(table["x"], float), np.asarray(table["y"], float)])
                 for table in (image_obj, template_obj)]  # fmt: skip
    finite = np.isfinite(positions[1]).all(axis=1)
    here = np.isfinite(positions[0]).all(axis=1)
    distance = np.full(len(positions[0]), np.inf)
    distance[here] = cKDTree(positions[1][finite]).query(positions[0][here])[0]
    return image_obj[distance < 2.0]


def _products(result: ZogyResult, get_psf: bool, get_flux: bool) -> list[Array]:
    shape = result.image.shape
    products: list[Array] = [np.asarray(result.image, np.float64), np.asarray(result.significance, np.float64)]
    if get_psf:
        products.append(result.psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2))
    if get_flux:
        known = result.flux_variance > 0
        error = np.full(shape, np.inf)
        np.sqrt(result.flux_variance, where=known, out=error)
        products += [np.asarray(result.flux, np.float64), error]
    return products
