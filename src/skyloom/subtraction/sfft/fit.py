"""The real-space form: weights from the noise, masks, clipping, and the template's own noise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skyloom._threads import serial_blas
from skyloom.background import MAD_TO_SIGMA
from skyloom.convolution import exponents
from skyloom.errors import InputError, SkyloomWarning, TooFewPixelsError
from skyloom.exposure import BoolArray
from skyloom.subtraction.sfft.clip import outliers
from skyloom.subtraction.sfft.design import DeltaModel, Design, Float64Array
from skyloom.subtraction.sfft.solve import Penalties, Solver

log = logging.getLogger("skyloom.subtraction.sfft")

# of the statistical errors: as accurate as weights, and the choice of pixels, need the fit to be
_BEFORE_WEIGHING = 3.0
_WHILE_CLIPPING = 5.0  # of some ten of all unknowns' errors, taken together, that noise leaves
_IN_THE_END = 3e-8
_CORRECTIONS, _WORTH_ONE = 4, 1.0  # of the bias by the template's noise, at most; in errors of all unknowns together
_SHARED_NOISE = 0.5  # mean chi^2 of residuals below which both images have noise in common, as in `al_hotpants.fit`
_AS_GOOD = 3e-4  # a choice of pixels that differs by this part is none
_CUT, _SIGNIFICANT = 0.1, 5.0  # share of the sum in a kernel's outermost pixels, and deviations of it, to warn of


@dataclass(frozen=True)
class FitOptions:
    """How to fit; see `run_sfft` for the meaning of each.

    Parameters
    ----------
    model : DeltaModel
    penalties : Penalties
    sigma_clip : float or None
    max_iter : int
        Fits, without the one after the weights have learnt of the template's noise.
    rebuild : bool
        Sum the matrix anew after each clipping; the result is the same.
    log : callable, optional
        Is told how it goes.
    accuracy : float
        How near to the minimum the unknowns are brought, in units of their statistical errors, of all taken together.
    noise_correlation : ndarray, optional
        That of the template's noise in units of `FitPlanes.template_variance`, see `Design.noise_product`.
    like_one_pixel : bool
        The kernel is expected to be one pixel of 1, and is so where noise leaves nothing to measure.
    """

    model: DeltaModel
    penalties: Penalties
    sigma_clip: float | None = 3.0
    max_iter: int = 5
    rebuild: bool = False
    log: Callable[[str], None] | None = None
    accuracy: float = _IN_THE_END
    noise_correlation: Float64Array | None = None
    like_one_pixel: bool = False

    def __post_init__(self) -> None:
        if self.sigma_clip is not None and not self.sigma_clip >= 0:
            raise InputError(f"sigma_clip is {self.sigma_clip}; it must be None, 0 (no clipping) or above.")


@dataclass(frozen=True, eq=False)
class FitPlanes:
    """What is fitted.

    Parameters
    ----------
    science, template : ndarray of float64, shape (ny, nx)
        Finite; the template is 0 where it cannot be used, its sky subtracted.
    usable : ndarray of bool, shape (ny, nx)
        The pixels of the fit.
    variance, template_variance : ndarray of float64, optional
        Of the pixels; positive where usable. Without a variance all weights are the same.
    unit : float
        Of the science image, for messages.
    wings : ndarray of float64, shape (ny, nx), optional
        The template convolved with the wings of kernels, see `Design`.
    """

    science: Float64Array
    template: Float64Array
    usable: BoolArray
    variance: Float64Array | None
    template_variance: Float64Array | None
    unit: float = 1.0
    wings: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class DeltaFit:
    """A fitted kernel and background.

    Parameters
    ----------
    design : Design
    unknowns : ndarray
    residual : ndarray, shape (ny, nx)
        Science minus model.
    used : ndarray of bool, shape (ny, nx)
        The pixels of the last fit.
    n_iter : int
        Number of fits.
    edge_error : float
        Standard deviation of the sum of the kernel's outermost pixels, averaged over the field.
    """

    design: Design
    unknowns: Float64Array
    residual: Float64Array
    used: BoolArray
    n_iter: int
    edge_error: float

    @property
    def kernel(self) -> Float64Array:
        """c_ij, shape (terms, ky, kx), in the order of `skyloom.convolution.exponents`."""
        return self.design.model.kernel(self.unknowns)

    @property
    def background(self) -> Float64Array:
        """b_kl, in the order of `skyloom.convolution.exponents`."""
        return self.design.model.background(self.unknowns)

    @property
    def edge(self) -> float:
        """Share of the kernel's sum, averaged over the field, in its outermost pixels and in the wings beyond.

        What both take up with opposite signs is not light of stars, but a sky that the background does not follow.
        """
        return float(self.unknowns @ _mean_sum(self.design.model, edge=True)) / self._sum

    @property
    def is_cut(self) -> bool:
        """True if the kernel clearly goes on beyond its border."""
        edge = self.edge
        return edge > _CUT and edge > _SIGNIFICANT * self.edge_error / abs(self._sum)

    @property
    def _sum(self) -> float:
        return float(self.unknowns @ _mean_sum(self.design.model)) or np.inf


def _mean_sum(model: DeltaModel, *, edge: bool = False) -> Float64Array:
    """Return what takes the unknowns to the field's mean of the kernel's sum, or of that in its last pixels and wings.

    The mean of X^i Y^j over the field is 1 / ((i + 1) (j + 1)) for even i and j, and 0 for others.
    """
    pixels = np.ones(model.kernel_shape)
    if edge:
        pixels[1:-1, 1:-1] = 0
        pixels *= min(model.kernel_shape) > 1  # a row of pixels has no border
    means = [float(i % 2 == j % 2 == 0) / ((i + 1) * (j + 1)) for i, j in exponents(model.kernel_order)]
    rest = np.zeros(model.size - model.n_kernel)
    rest[: model.wings] = 1
    return np.concatenate([np.outer(means, pixels).ravel(), rest])


def warn_of_edge(fit: DeltaFit, advice: str) -> None:
    """Warn of a kernel that does not hold the light that it should move: its sum is too small then.

    For Moffat stars of 4.2 and 3.0 pixels, 24 % of the sum of 7 x 7 pixels lie in the outermost ones, and the sum is
    2.7 % low; 15 % and 1.6 % for 9 x 9, 9 % and 1.0 % for 11 x 11, 3 % and 0.1 % for 15 x 15.
    """
    if fit.is_cut:
        ky, kx = fit.design.model.kernel_shape
        warnings.warn(
            f"The kernel of {ky} x {kx} pixels is too small for the stars: {100 * fit.edge:.0f} % of its sum lie on "
            f"its border, so that its sum will be too low, and bright stars leave rings. {advice}",
            SkyloomWarning,
            stacklevel=3,
        )


def fit_delta(planes: FitPlanes, options: FitOptions) -> DeltaFit:
    """Fit kernel and background to the usable pixels by weighted least squares.

    The weights are 1 / (V_S + sum_a K(a)^2 V_R): the first fit knows V_S only, its kernel gives the rest. Then pixels
    that the model does not describe are left out (see `clip.outliers`) and the fit is repeated, `max_iter` times at
    most. The template's noise, which adds to the expectation of A^T W A as a part N that is known, biases a kernel
    towards 0; the last fits solve A^T W A x' = A^T W S + N x for the kernel x of the fit before: n of them leave the
    (n + 1)th power of a relative bias N/A. There are so many as change anything, 4 at most, and one for images that
    share noise, which biases nothing.

    Raises
    ------
    TooFewPixelsError
        Fewer usable pixels than unknowns.
    SubtractionError
        The template has no structure.
    """
    with serial_blas():
        return _Fitter(planes, options).run()


def need_enough(used: BoolArray, model: DeltaModel) -> None:
    """Raise a `TooFewPixelsError` unless there are more usable pixels than unknowns."""
    count, needed = int(np.count_nonzero(used)), model.size
    if count <= needed:
        raise TooFewPixelsError(
            f"Too few good pixels: {count} may be used and the model has {needed} unknowns. Check masks, errors and "
            "overlap, or give a smaller kernel or lower orders.",
            found=count,
            needed=needed,
        )


class _Fitter:
    def __init__(self, planes: FitPlanes, options: FitOptions) -> None:
        self.planes, self.options = planes, options
        self.design = Design(planes.template, options.model, planes.wings)
        self.expected: Float64Array | None = None
        if options.like_one_pixel:
            self.expected = np.zeros(options.model.size)
            self.expected[options.model.taps // 2] = 1
        self.solver = Solver(self.design, planes.science, options.penalties, self.expected)
        self.clipped = np.zeros(planes.usable.shape, bool)
        self.science = planes.science.astype(np.float32)
        self.n_iter = 0

    def run(self) -> DeltaFit:
        self.set_variance(self.planes.variance)
        self.solver.start(self.weight)
        if self.planes.template_variance is not None:
            self.fit(_BEFORE_WEIGHING)
            before = self.unit
            self.set_variance(self.full_variance())
            self.solver.scale_prior(self.unit / before)
            self.solver.go_on(self.weight)
        for attempt in range(self.options.max_iter):
            self.fit(_WHILE_CLIPPING)
            if attempt + 1 == self.options.max_iter or not self.clip():
                break
        self.refine()
        used = self.weight > 0
        return DeltaFit(self.design, self.solver.x, self.solver.residual, used, self.n_iter, self.edge_error(used))

    def refine(self) -> None:
        """Bring the unknowns to the minimum, without the bias by the template's noise."""
        if self.planes.template_variance is None:
            self.solver.refine(self.options.accuracy)
            return
        moments = self.design.noise_moments(self.weight, self.planes.template_variance)
        change = np.inf
        pixel = float(np.sqrt(np.vdot(self.weight, self.solver.residual**2) / np.count_nonzero(self.weight)))
        independent = pixel**2 >= _SHARED_NOISE * self.unit
        for attempt in range(_CORRECTIONS if self.expected is None and independent else 1):
            like = self.solver.x if self.expected is None else self.expected
            correction = self.design.noise_product(like, moments, self.options.noise_correlation)
            before, change = change, self.solver.distance(correction - self.solver.correction)
            # changes that grow are those of images with less noise than their variances tell
            if attempt and (change < _WORTH_ONE * pixel or change >= before):
                break
            self.solver.correction = correction
            self.solver.refine(self.options.accuracy)

    def edge_error(self, used: BoolArray) -> float:
        """Return the deviation of the sum of the kernel's outermost pixels: from the inverse of the normal matrix."""
        edge = _mean_sum(self.options.model, edge=True)
        energy = float(np.vdot(self.weight, self.solver.residual**2)) / np.count_nonzero(used)
        return float(np.sqrt(max(self.solver.variance(edge), 0.0) * energy))

    def set_variance(self, variance: Float64Array | None) -> None:
        usable = self.planes.usable
        need_enough(usable, self.options.model)
        self.variance = variance
        self.inverse = usable.astype(np.float32)
        self.unit = 1.0
        if variance is not None:
            # in units of their mean, so that single precision holds them whatever the unit of the images
            self.unit = float(np.mean(variance[usable]))
            np.divide(self.unit, variance, out=self.inverse, where=usable, casting="unsafe")
        self.weight = self.inverse
        self.sigma = np.float32(1) if variance is None else np.sqrt(np.where(usable, variance, 1.0), dtype=np.float32)

    def fit(self, tolerance: float) -> None:
        self.solver.solve(tolerance)
        self.n_iter += 1
        if self.options.log is not None:
            used = self.weight > 0
            rms = self.planes.unit * float(np.sqrt(np.mean(self.solver.residual[used] ** 2)))
            self.options.log(f"SFFT fit {self.n_iter}: rms {rms:.6g} over {np.count_nonzero(used)} pixels")

    def full_variance(self) -> Float64Array:
        """Return V_S + sum K^2 V_R; V_S, if not given, is a constant that explains the residual's scatter."""
        assert self.planes.template_variance is not None
        usable = self.planes.usable
        template = self.design.convolved_variance(self.solver.x, self.planes.template_variance)
        if self.planes.variance is not None:
            return self.planes.variance + template
        scatter = (MAD_TO_SIGMA * float(np.median(np.abs(self.solver.residual[usable])))) ** 2
        typical = float(np.median(template[usable]))
        return template + max(scatter - typical, 0.01 * scatter, 1e-12 * typical)

    def clip(self) -> bool:
        """Leave out what the model does not describe; return whether that changed anything."""
        if not self.options.sigma_clip:
            return False
        usable, residual = self.planes.usable, self.solver.residual
        signal = self.science - residual
        signal -= self.design.background(self.solver.x)
        clipped = outliers(residual, self.sigma, signal, usable, self.options.sigma_clip)
        if np.count_nonzero(clipped != self.clipped) <= _AS_GOOD * np.count_nonzero(usable):
            return False
        self.clipped = clipped
        need_enough(usable & ~clipped, self.options.model)
        self.weight = np.where(clipped, np.float32(0), self.inverse)
        self.solver.go_on(self.weight, rebuild=self.options.rebuild)
        return True


def flux_scale(fit: DeltaFit, order: int) -> Float64Array:
    """Return the kernel's sum as a polynomial: its coefficients in the order of `exponents`, 0 beyond `order`."""
    sums = fit.kernel.sum(axis=(1, 2))
    return np.array(
        [
            value if i + j <= order else 0.0
            for value, (i, j) in zip(sums, exponents(fit.design.model.kernel_order), strict=True)
        ]
    )
