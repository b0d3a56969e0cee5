"""`register`: the transform between two images, with the proof that it is right."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from skyloom.errors import InputError, NoMatchError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.registration.detect import LOWER, WHERE, SourceFlag, detect_sources, image_fwhm
from skyloom.registration.fit import StarList
from skyloom.registration.flux import flux_ratio
from skyloom.registration.prior import prior_transform
from skyloom.registration.result import Registration
from skyloom.registration.search import Solution, refine, search
from skyloom.registration.stamps import FWHM_PER_SIGMA

log = logging.getLogger("skyloom.registration")

Float = npt.NDArray[np.float64]

FEWEST = 4
"""Sources per image: two pairs define a similarity, and only further ones can confirm it."""

_ERROR_FLOOR = 0.01
"""Pixels: what pixelation and undersampling leave of the best centroid."""


@dataclass(frozen=True)
class RegistrationOptions:
    """How `register` works. The defaults serve for any pair of images.

    Parameters
    ----------
    threshold : float
        Detection threshold, see `detect_sources`.
    positions : {'windowed', 'psf'}
        How the stars of images are measured, see `detect_sources`: 'psf' for crowded fields.
    max_order : int
        Highest degree of the polynomial, 1 to 5; the data decide below that. Above 1, a smooth surface may be added.
    min_log_odds : float
        Accept a transform if the probability that chance brings as many stars together is below exp(-min_log_odds),
        over all transforms tried.
    max_error : float
        Largest standard error of the transform, RMS over the overlap, that is accepted; in the larger of both pixels.
    scale_range : (float, float)
        Smallest and largest scale in source pixels per template pixel.
    use_wcs : bool
        Try first what the WCS of both images says. It is verified like any other guess.
    source_shape, template_shape : (int, int), optional
        Shapes (ny, nx) of the images, where tables are given that do not carry them in ``meta["shape"]``.
    """

    threshold: float = 5.0
    positions: str = "windowed"
    max_order: int = 5
    min_log_odds: float = 12.0
    max_error: float = 0.2
    scale_range: tuple[float, float] = (0.2, 5.0)
    use_wcs: bool = True
    source_shape: tuple[int, int] | None = None
    template_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 5:
            raise InputError(f"max_order is {self.max_order}; it must be 1 to 5.", max_order=self.max_order)
        if not 0 < self.scale_range[0] < self.scale_range[1]:
            raise InputError(f"scale_range is {self.scale_range}; two increasing positive numbers are needed.")
        if not self.min_log_odds > 0:
            raise InputError(f"min_log_odds is {self.min_log_odds}; it must be above 0.")
        if not self.max_error > 0:
            raise InputError(f"max_error is {self.max_error}; it must be above 0.", max_error=self.max_error)


def checked_options(options: RegistrationOptions | None) -> RegistrationOptions:
    """Return the options, the defaults for None."""
    if options is None:
        return RegistrationOptions()
    if not isinstance(options, RegistrationOptions):
        raise InputError(f"options is a {type(options).__name__}; a RegistrationOptions or None is needed.")
    return options


def register(source: Any, template: Any, options: RegistrationOptions | None = None) -> Registration:
    """Find the transform from the template's pixels to the source's.

    Neither position, nor scale, rotation, parity or a WCS need to be known.

    Parameters
    ----------
    source, template : Exposure, Table, or what `skyloom.io.read` accepts
        The image to be registered and the one that gives the frame. A table needs the columns x and y (0-based pixels),
        and flux unless it is sorted by decreasing flux already; x_err, y_err (pixels) and flag are used where present,
        and from its ``meta`` shape (ny, nx), wcs and name.
    options : RegistrationOptions, optional
        How to work.

    Returns
    -------
    Registration
        The verified transform. There is no unverified one: what cannot be proven raises.

    Raises
    ------
    NoUsableDataError
        An image has no usable pixel.
    TooFewSourcesError
        An image has fewer than four sources.
    NoMatchError
        No transform brings the sources together better than chance would, or the one that does is too inexact.
    InputError
        `options` are no RegistrationOptions, or a table lacks a column.
    """
    options = checked_options(options)
    source, source_table = find_sources(source, options, "source")
    template, template_table = find_sources(template, options, "template")
    source_stars = star_list(source_table, options.source_shape, "source image")
    template_stars = star_list(template_table, options.template_shape, "template")
    wcs = (_wcs(source, source_table), _wcs(template, template_table))
    solution = None
    if options.use_wcs and None not in wcs:
        solution = _from_wcs(wcs[0], wcs[1], template_stars, source_stars, options)
    if solution is None:
        solution = search(
            template_stars,
            source_stars,
            max_order=options.max_order,
            threshold=options.min_log_odds,
            scale_range=options.scale_range,
        )
    result = Registration.from_solution(solution, source_table, template_table, wcs[1])
    if source is not None and template is not None:
        measured = flux_ratio(result, source, template, (image_fwhm(source_table), image_fwhm(template_table)))
        result = result if measured is None else replace(result, flux_ratio=measured.value)
    error = result.overlap_error() / max(result.scale, 1.0)
    if not error <= options.max_error:
        raise NoMatchError(
            f"The transform is beyond chance, but its {result.n_matched} matched stars leave it uncertain by "
            f"{error:.2f} pixels (at most {options.max_error:g}): they are few, faint or saturated. Detect more stars "
            f"with a lower threshold ({WHERE}), or raise RegistrationOptions.max_error.",
            log_odds=-solution.log_chance,
            position_error=error,
            needed=options.max_error,
        )
    log.debug("%s", result)
    return result


def find_sources(image: Any, options: RegistrationOptions, role: str = "image") -> tuple[Exposure | None, Table]:
    """Return the exposure (None for a table) and its table of sources; messages call an array by its role."""
    if callable(image):
        image = image()
    if isinstance(image, Table):
        return None, image
    if not isinstance(image, Exposure):
        from skyloom.io import read
        from skyloom.io.reader import named

        image = read(named(image, role))
    return image, detect_sources(image, threshold=options.threshold, positions=options.positions)


def _wcs(image: Exposure | None, table: Table) -> Any:
    return table.meta.get("wcs") if image is None else image.wcs


def star_list(table: Table, shape: tuple[int, int] | None, role: str) -> StarList:
    """Return the stars of a table, saturated ones last, in order of decreasing flux."""
    name = str(table.meta.get("name", role))
    if missing := {"x", "y"} - set(table.colnames):
        raise InputError(
            f"The table of {name} has no column {sorted(missing)}; x and y (0-based pixels) are needed.",
            columns=table.colnames,
        )
    for column in {"x", "y", "flux", "x_err", "y_err"} & set(table.colnames):
        if np.asarray(table[column]).dtype.kind not in "fiub":
            raise InputError(f"The column {column} of {name} does not hold real numbers.", column=column)
    xy = np.column_stack([np.asarray(table[c], np.float64) for c in ("x", "y")])
    finite = np.isfinite(xy).all(axis=1)
    order = np.flatnonzero(finite)
    if "flux" in table.colnames:
        flux = np.asarray(table["flux"], np.float64)
        order = order[np.argsort(-np.nan_to_num(flux[order], nan=-np.inf), kind="stable")]
    if len(order) < FEWEST:
        raise TooFewSourcesError(
            f"{name} has {len(order)} sources; at least {FEWEST} are needed to register it. "
            f"Take a deeper image, or {LOWER}.",
            name=name,
            found=len(order),
            needed=FEWEST,
        )
    shape = shape or table.meta.get("shape")
    # an unknown image reaches at least to its outermost sources
    nx, ny = np.ceil(xy[order].max(axis=0)) + 1 if shape is None else (shape[1], shape[0])
    return StarList(xy[order], _errors(table)[order], (int(ny), int(nx)), order)


def _errors(table: Table) -> Float:
    """Return the standard error of each position along an axis, pixels."""
    if {"x_err", "y_err"} <= set(table.colnames):
        error = np.hypot(np.asarray(table["x_err"], np.float64), np.asarray(table["y_err"], np.float64)) / np.sqrt(2)
    elif {"fwhm", "flux", "flux_err"} <= set(table.colnames):
        snr = np.asarray(table["flux"], np.float64) / np.asarray(table["flux_err"], np.float64)
        error = np.asarray(table["fwhm"], np.float64) / FWHM_PER_SIGMA / np.maximum(snr, 1.0)
    else:
        error = np.full(len(table), 0.05)
    error = np.hypot(np.where(np.isfinite(error), error, 1.0), _ERROR_FLOOR)
    if "flag" in table.colnames:
        # the centroid of a clipped or cut profile is off by a good part of a pixel
        bad = int(SourceFlag.SATURATED | SourceFlag.TRUNCATED)
        error = np.where(np.asarray(table["flag"]) & bad, np.hypot(error, 0.3), error)
    return error


def _from_wcs(
    source_wcs: Any, template_wcs: Any, template: StarList, source: StarList, options: RegistrationOptions
) -> Solution | None:
    """Return the solution near the one that the WCS predict, or None if they are wrong."""
    guess = prior_transform(source_wcs, template_wcs, template, source)
    if guess is None:
        return None
    transform, trials = guess
    solution = refine(transform, template, source, max_order=options.max_order, trials=trials, method="WCS")
    if solution is None or -solution.log_chance <= options.min_log_odds:
        log.info("the WCS of the two images do not agree with their stars; searching without them")
        return None
    return solution
