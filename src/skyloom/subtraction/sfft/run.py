"""`run_sfft` as stdpipe 0.4.1 has it in `stdpipe.subtraction`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.exposure import BoolArray
from skyloom.subtraction.dropin_arguments import Log, check_gain, error_plane, logger
from skyloom.subtraction.sfft.design import Float64Array
from skyloom.subtraction.sfft.dropin import (
    FitRequest,
    SFFTResult,
    convolved_variance,
    evaluate_background,
    fit_planes,
)
from skyloom.subtraction.sfft.noise_map import noise_map
from skyloom.subtraction.sfft.planes import SfftPlanes
from skyloom.subtraction.sfft.regions import Boxes, box_half_size, object_region

_PIXELS_PER_UNKNOWN = 10  # fewer of them in the boxes of objects, and the whole image is taken


def run_sfft(  # noqa: PLR0917  the reference's signature
    image: npt.ArrayLike,
    template: npt.ArrayLike,
    mask: Any = None,
    template_mask: Any = None,
    err: Any = None,
    template_err: Any = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    kernel_shape: tuple[int, int] | None = FitRequest.kernel_shape,
    kernel_poly_order: int = FitRequest.kernel_poly_order,
    bg_poly_order: int = FitRequest.bg_poly_order,
    flux_poly_order: int = FitRequest.flux_poly_order,
    flux_penalty: float = FitRequest.flux_penalty,
    ridge: float = FitRequest.ridge,
    sigma_clip: float | None = FitRequest.sigma_clip,
    max_iter: int = FitRequest.max_iter,
    obj: Any = None,
    obj_size: int | None = None,
    obj_grid: int = 4,
    obj_per_cell: int | None = 10,
    obj_max_masked_fraction: float = 0.5,
    get_convolved: bool = False,
    get_scaled: bool = False,
    get_noise: bool = False,
    get_kernel: bool = False,
    verbose: Any = False,
) -> Any:
    """Subtract a template that is matched by a delta-function kernel which varies over the field.

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On the same pixels; the template is convolved. Pixels that are not finite count as masked.
    mask, template_mask : array_like of bool, optional
        True where bad.
    err, template_err : array_like or True, optional
        Standard deviations of the pixels. True: from the background's scatter and the photon noise of sources, by the
        gain. They weigh the fit and make the noise map.
    image_gain, template_gain : float, optional
        e-/ADU.
    kernel_shape, kernel_poly_order, bg_poly_order, flux_poly_order, flux_penalty, ridge, sigma_clip, max_iter
        See `solve`.
    obj : Table, optional
        Objects (columns x, y and, if there, flux, fluxerr, flag or flags, fwhm): the fit is restricted to boxes around
        the best of them, unless these hold fewer than 10 pixels for each unknown.
    obj_size : int, optional
        Half the size of a box; 3 median FWHM, or 15, if not given.
    obj_grid, obj_per_cell : int
        At most so many objects in each cell of a grid of so many by so many cells; None: all.
    obj_max_masked_fraction : float
        Boxes with a larger bad fraction are left out.
    get_convolved, get_scaled, get_noise, get_kernel : bool
        Also return the convolved template; the difference over its noise; the noise; the `SFFTResult`.
    verbose : bool or callable
        Print what is done, or call this with it.

    Returns
    -------
    ndarray or list
        The difference; with any `get_...`, [difference, convolved, scaled, noise, kernel], what was asked for of
        these. Difference and scaled are 0 where either image is bad, or the kernel reaches a bad pixel of the template
        or the border.

    Raises
    ------
    InputError
        Shapes differ, or an option cannot be used; a ValueError.
    TooFewPixelsError
        Fewer good pixels than unknowns, as when all is masked; a RuntimeError.
    SubtractionError
        The template is constant.
    """
    log = logger(verbose)
    for gain, what in ((image_gain, "image_gain"), (template_gain, "template_gain")):
        check_gain(gain, what)
    request = FitRequest(
        kernel_shape, kernel_poly_order, bg_poly_order, flux_poly_order, flux_penalty, ridge, sigma_clip, max_iter
    )
    planes, options = request.prepare(image, template, mask, template_mask, log)
    planes = planes.with_errors(
        _errors(err, planes.science, planes.bad_science, image_gain, "err"),
        _errors(template_err, planes.template, planes.bad_template, template_gain, "template_err"),
    )
    region = None
    if obj is not None:
        size = box_half_size(obj) if obj_size is None else int(obj_size)
        boxes = Boxes(size, obj_grid, obj_per_cell, obj_max_masked_fraction)
        region = _region(planes, obj, boxes, needed=_PIXELS_PER_UNKNOWN * options.model.size, log=log)
    result = fit_planes(planes, options, region)
    return _outputs(result, planes, convolved=get_convolved, scaled=get_scaled, noise=get_noise, kernel=get_kernel)


def _outputs(
    result: SFFTResult, planes: SfftPlanes, *, convolved: bool, scaled: bool, noise: bool, kernel: bool
) -> Any:
    """Return the difference, or a list that begins with it and holds what else is wanted."""
    bad = planes.bad_science | planes.dmask
    difference = np.where(bad, 0.0, result.diff)
    found: list[Any] = [difference]
    if convolved:
        found.append(result.model - background_plane(result))
    if scaled or noise:
        deviation = difference_noise(result, planes.err, planes.template_err)
        if scaled:
            found.append(np.divide(difference, deviation, out=np.zeros(bad.shape), where=~bad & (deviation > 0)))
        if noise:
            found.append(deviation)
    if kernel:
        found.append(result)
    return found if len(found) > 1 else difference


def difference_noise(result: SFFTResult, err: Any, template_err: Any) -> Float64Array:
    """Return the deviation of the pixels of a difference: sqrt(err^2 + sum K^2 template_err^2).

    Where an error is not a finite number, the median of the others stands for it. Without `err`, the scatter of the
    fit's residual is split between the template, if its errors are known, and a constant.
    """
    shape = result.diff.shape
    err, template_err = (
        error_plane(err, shape, "argument err"),
        error_plane(template_err, shape, "argument template_err"),
    )
    if err is None and template_err is None:
        return np.full(shape, result.rms)
    convolved = np.zeros(shape)
    if template_err is not None:
        convolved = convolved_variance(result, _filled(template_err) ** 2)
    if err is not None:
        return np.sqrt(_filled(err) ** 2 + convolved)
    return np.sqrt(max(result.rms**2 - float(np.median(convolved)), 0.01 * result.rms**2) + convolved)


def _filled(error: Float64Array) -> Float64Array:
    good = np.isfinite(error) & (error >= 0)
    return error if good.all() else np.where(good, error, np.median(error[good]) if good.any() else 0.0)


def background_plane(result: SFFTResult) -> Float64Array:
    """Return the background of `result.model`."""
    ny, nx = result.diff.shape
    return evaluate_background(result, np.arange(nx)[None, :], np.arange(ny)[:, None], (ny, nx))


def _errors(err: Any, plane: Float64Array, bad: BoolArray, gain: float | None, what: str) -> Float64Array | None:
    if err is not True:
        return error_plane(err, plane.shape, f"argument {what}")
    if bad.all():
        return np.zeros(plane.shape)  # the fit will tell that there are too few pixels
    return noise_map(plane, bad, gain)[0]


def _region(planes: SfftPlanes, obj: Any, boxes: Boxes, *, needed: int, log: Log) -> BoolArray | None:
    """Return the boxes of the objects, or None if they hold too few pixels."""
    region, count = object_region(obj, planes.bad_science | planes.bad_template, boxes)
    pixels = int(np.count_nonzero(region & planes.usable))
    enough = pixels >= needed
    what = "fitting there" if enough else "too few, the whole image is fitted"
    log(f"SFFT: {count} objects with {pixels} pixels: {what}")
    return region if enough else None
