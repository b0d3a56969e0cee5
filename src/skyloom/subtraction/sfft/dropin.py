"""`solve`, `SFFTResult` and `evaluate_*` as stdpipe 0.4.1 has them in `stdpipe.sfft`.

The terms of polynomials come in the order 1, x, y, x^2, xy, y^2, ... there, with x and y running from -1 to 1 over the
image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.convolution import exponents, monomials
from skyloom.errors import InputError
from skyloom.exposure import BoolArray
from skyloom.subtraction.dropin_arguments import Log, error_plane, logger
from skyloom.subtraction.sfft.design import DeltaModel, Design, Float64Array
from skyloom.subtraction.sfft.fit import FitOptions, fit_delta, flux_scale, warn_of_edge
from skyloom.subtraction.sfft.noise_map import power_of_two
from skyloom.subtraction.sfft.planes import SfftPlanes, make_planes
from skyloom.subtraction.sfft.regions import kernel_shape_for
from skyloom.subtraction.sfft.solve import Penalties


@dataclass
class SFFTResult:
    """What `solve` returns.

    Parameters
    ----------
    diff : ndarray, shape (ny, nx)
        Image minus model; 0 where the image is not finite.
    model : ndarray, shape (ny, nx)
        The template, convolved, with the background.
    kernel_coeffs : ndarray, shape (ky * kx, terms)
        The kernel k[hy + dy, hx + dx], row by row, times each term of its polynomial:
        model(p) = sum k[dy, dx] template(p - (dy, dx)) + background(p).
    bg_coeffs : ndarray
        Of the background's terms.
    kernel_shape : (int, int)
    kernel_poly_order, bg_poly_order, flux_poly_order : int
    flux_poly_coeffs : ndarray
        The kernel's sum as a polynomial of `flux_poly_order`.
    n_iter : int
        Number of fits.
    rms : float
        Of `diff` over the pixels of the last fit.
    n_good : int
        Number of those pixels.
    dmask : ndarray of bool, shape (ny, nx)
        True where the kernel reaches a bad pixel of the template, or outside of the image.
    template_level : float
        The kernel acts on template - template_level. 0 unless `bg_poly_order` is smaller than `kernel_poly_order`:
        then the background cannot take up the kernel times the template's sky.
    """

    diff: Float64Array
    model: Float64Array
    kernel_coeffs: Float64Array
    bg_coeffs: Float64Array
    kernel_shape: tuple[int, int]
    kernel_poly_order: int
    bg_poly_order: int
    flux_poly_order: int
    flux_poly_coeffs: Float64Array
    n_iter: int
    rms: float
    n_good: int
    dmask: Any = None
    template_level: float = 0.0


def terms(order: int) -> list[tuple[int, int]]:
    """Return the powers (i, j) of x and y in the order of stdpipe."""
    return [(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)]


def _reordered(values: Float64Array, order: int) -> Float64Array:
    """Return an array whose first axis are the terms, brought from the order of `exponents` to that of `terms`."""
    place = {term: k for k, term in enumerate(exponents(order))}
    return values[[place[term] for term in terms(order)]]


def _ordered_back(values: Float64Array, order: int) -> Float64Array:
    place = {term: k for k, term in enumerate(terms(order))}
    return values[[place[term] for term in exponents(order)]]


@dataclass(frozen=True)
class FitRequest:
    """The options of the fit that `solve` and `run_sfft` share, with their defaults; see `solve`."""

    kernel_shape: tuple[int, int] | None = (7, 7)
    kernel_poly_order: int = 2
    bg_poly_order: int = 2
    flux_poly_order: int = 1
    flux_penalty: float = 1000.0
    ridge: float = 1e-6
    sigma_clip: float | None = 3.0
    max_iter: int = 5

    def prepare(
        self, image: Any, template: Any, mask: Any, template_mask: Any, log: Log, *, rebuild: bool = False
    ) -> tuple[SfftPlanes, FitOptions]:
        """Check the options; return the planes that they are for, and how these are fitted."""
        shape = self.kernel_shape
        if shape is None:
            shape = kernel_shape_for(image, template, mask, template_mask)
        model, penalties = self._model(shape), self._penalties()
        planes = make_planes(image, template, mask, template_mask, model.kernel_shape)
        return planes, FitOptions(model, penalties, self.sigma_clip, self.max_iter, rebuild, log)

    def _model(self, kernel_shape: tuple[int, int]) -> DeltaModel:
        shape = np.ravel(kernel_shape)
        if len(shape) != 2 or any(side != int(side) or side < 1 or side % 2 == 0 for side in shape):
            raise InputError(f"kernel_shape is {kernel_shape}; two odd numbers of pixels are needed, like (7, 7).")
        for what in ("kernel_poly_order", "bg_poly_order", "flux_poly_order"):
            order = getattr(self, what)
            if order != int(order) or order < 0:
                raise InputError(f"{what} is {order}; it must be a whole number of at least 0.")
        if self.flux_poly_order > self.kernel_poly_order:
            raise InputError(
                f"flux_poly_order is {self.flux_poly_order}; it must not be above kernel_poly_order, "
                f"{self.kernel_poly_order}: the kernel's sum varies no more than the kernel."
            )
        if self.max_iter != int(self.max_iter) or self.max_iter < 1:
            raise InputError(f"max_iter is {self.max_iter}; it must be a whole number of at least 1.")
        return DeltaModel((int(shape[0]), int(shape[1])), int(self.kernel_poly_order), int(self.bg_poly_order))

    def _penalties(self) -> Penalties:
        for what in ("flux_penalty", "ridge"):
            value = getattr(self, what)
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{what} is {value}; it must be a finite number of at least 0.")
        return Penalties(int(self.flux_poly_order), float(self.flux_penalty), float(self.ridge))


def solve(  # noqa: PLR0917  the reference's signature
    image: npt.ArrayLike,
    template: npt.ArrayLike,
    mask: Any = None,
    template_mask: Any = None,
    err: Any = None,
    template_err: Any = None,
    kernel_shape: tuple[int, int] | None = FitRequest.kernel_shape,
    kernel_poly_order: int = FitRequest.kernel_poly_order,
    bg_poly_order: int = FitRequest.bg_poly_order,
    flux_poly_order: int = FitRequest.flux_poly_order,
    flux_penalty: float = FitRequest.flux_penalty,
    ridge: float = FitRequest.ridge,
    sigma_clip: float | None = FitRequest.sigma_clip,
    max_iter: int = FitRequest.max_iter,
    verbose: Any = False,
    *,
    rebuild: bool = False,
) -> SFFTResult:
    """Fit a kernel that varies over the field and a background, and subtract.

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On the same pixels. Pixels that are not finite are left out.
    mask, template_mask : array_like of bool, optional
        True where the image is not to be used for the fit, and where the template is bad.
    err, template_err : array_like, optional
        Standard deviations of the pixels, for the weights. True, and None, mean the same weight for all.
    kernel_shape : (int, int) or None
        (ky, kx), odd. None: 3 FWHM of the wider stars, 7 to 31 pixels: a kernel that is too small for the wings of the
        stars has too small a sum, and is warned of.
    kernel_poly_order, bg_poly_order : int
        Orders of the polynomials with which kernel and background vary.
    flux_poly_order : int
        The kernel's sum varies as a polynomial of this order,
    flux_penalty : float
        with this weight, in units of the median diagonal of the normal matrix.
    ridge : float
        Weight of the squares of the kernel's coefficients, in the same unit.
    sigma_clip : float or None
        Pixels that lie so many times the scatter off the model are left out.
    max_iter : int
        Fits with clipping; one more comes first if there is a `template_err`.
    verbose : bool or callable
        Print what is done, or call this with it.
    rebuild : bool
        Sum the normal matrix anew after each clipping: slower, and the result is the same.

    Returns
    -------
    SFFTResult

    Raises
    ------
    InputError
        Shapes differ, an order or the kernel's shape cannot be used; a ValueError.
    TooFewPixelsError
        Fewer good pixels than unknowns; a RuntimeError.
    """
    request = FitRequest(
        kernel_shape, kernel_poly_order, bg_poly_order, flux_poly_order, flux_penalty, ridge, sigma_clip, max_iter
    )
    planes, options = request.prepare(image, template, mask, template_mask, logger(verbose), rebuild=rebuild)
    shape = planes.science.shape
    errors = error_plane(err, shape, "argument err"), error_plane(template_err, shape, "argument template_err")
    return fit_planes(planes.with_errors(*errors), options)


def fit_planes(planes: SfftPlanes, options: FitOptions, region: BoolArray | None = None) -> SFFTResult:
    """Fit to the pixels of a region, and put the result together."""
    units = planes.units
    fit = fit_delta(planes.restricted(units, region), options)
    warn_of_edge(fit, "Give a larger kernel_shape, or None: then it follows from the stars.")
    model = fit.design.model
    kernel, background, residual = (
        fit.kernel * (units[0] / units[1]),
        fit.background * units[0],
        fit.residual * units[0],
    )
    background[exponents(model.background_order).index((0, 0))] += planes.science_level
    level = planes.template_level
    flux_order = options.penalties.flux_order
    if model.background_order >= model.kernel_order:
        # K * (R - r) = K * R - r sum K, whose last part the background can take up
        sums = dict(zip(exponents(model.kernel_order), kernel.sum(axis=(1, 2)), strict=True))
        background -= level * np.array([sums.get(term, 0.0) for term in exponents(model.background_order)])
        level = 0.0
    flux = flux_scale(fit, flux_order) * (units[0] / units[1])
    image = planes.science + planes.science_level
    return SFFTResult(
        diff=np.where(planes.finite, residual, 0.0),
        model=image - residual,
        kernel_coeffs=_reordered(kernel.reshape(len(kernel), -1), model.kernel_order).T.copy(),
        bg_coeffs=_reordered(background, model.background_order),
        kernel_shape=model.kernel_shape,
        kernel_poly_order=model.kernel_order,
        bg_poly_order=model.background_order,
        flux_poly_order=flux_order,
        flux_poly_coeffs=_reordered(flux, model.kernel_order)[: len(terms(flux_order))],
        n_iter=fit.n_iter,
        rms=float(np.sqrt(np.mean(fit.residual[fit.used] ** 2))) * units[0],
        n_good=int(np.count_nonzero(fit.used)),
        dmask=planes.dmask,
        template_level=level,
    )


def evaluate_kernel_at(result: SFFTResult, x: float, y: float, image_shape: tuple[int, int]) -> Float64Array:
    """Return the kernel at pixel (x, y), shape `result.kernel_shape`, its middle pixel the origin."""
    return (result.kernel_coeffs @ _monomials(x, y, result.kernel_poly_order, image_shape)).reshape(result.kernel_shape)


def evaluate_flux_scale(result: SFFTResult, x: Any, y: Any, image_shape: tuple[int, int]) -> Any:
    """Return the kernel's sum at pixels (x, y), numbers or arrays of the same shape."""
    return np.tensordot(result.flux_poly_coeffs, _monomials(x, y, result.flux_poly_order, image_shape), axes=1)[()]


def evaluate_background(result: SFFTResult, x: Any, y: Any, image_shape: tuple[int, int]) -> Any:
    """Return the background at pixels (x, y), numbers or arrays of the same shape."""
    return np.tensordot(result.bg_coeffs, _monomials(x, y, result.bg_poly_order, image_shape), axes=1)[()]


def convolved_variance(result: SFFTResult, variance: Float64Array) -> Float64Array:
    """Return sum K^2 V for the variance V of the template's pixels."""
    model = DeltaModel(result.kernel_shape, result.kernel_poly_order, 0)
    planes = _ordered_back(result.kernel_coeffs.T, result.kernel_poly_order).reshape(-1, *result.kernel_shape)
    unknowns = np.append(planes[:, ::-1, ::-1].ravel(), 0.0)
    units = power_of_two(unknowns, unknowns != 0), power_of_two(variance, variance > 0)  # sums are in single precision
    convolved = Design(np.zeros(variance.shape), model).convolved_variance(unknowns / units[0], variance / units[1])
    return np.maximum(convolved.astype(np.float64), 0.0) * units[0] ** 2 * units[1]


def _monomials(x: Any, y: Any, order: int, image_shape: tuple[int, int]) -> Float64Array:
    ny, nx = image_shape
    scale = max(nx - 1, 1) / 2, max(ny - 1, 1) / 2
    return _reordered(monomials(x, y, order, ((nx - 1) / 2, (ny - 1) / 2), scale), order)
