"""Fit the matching kernel and the differential background to stamps, and drop the stamps that do not fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from skyloom._threads import map_bands
from skyloom.background import MAD_TO_SIGMA
from skyloom.convolution import convolve, exponents
from skyloom.errors import TooFewStampsError
from skyloom.exposure import BoolArray, FloatArray
from skyloom.filters import convolve_full
from skyloom.subtraction.basis import Float64Array, ZeroSumDeltaBasis
from skyloom.subtraction.changes import changed_pixels
from skyloom.subtraction.fit_input import FitInput, Stamp, load_stamp
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.noise import convolved_noise_gain, smoothing_kernel
from skyloom.subtraction.normal import Model, StampSums, chi_squares, local_coefficients, solve
from skyloom.subtraction.options import AlardLuptonOptions
from skyloom.subtraction.stamps import Candidate

log = logging.getLogger("skyloom.subtraction")

_AUTO_ORDERS = (0, 1, 2, 3)
_STAMPS_PER_TERM = 2  # a polynomial term is only tried with so many stamps for each
_FOLDS = 5
# in the weights: more would spare the cores of bright stars, which then fit worse, which would call for still more
_MAX_SYSTEMATIC = 0.003
_SHARED_NOISE = 0.5  # reduced chi2 below which the two images share their noise
_AS_GOOD = 0.01  # difference of chi2 per pixel that is none
_DEBIASING = (1, 2, 4, 8)  # iterations against the bias by noise in the source
_MOST_POWER = 1.15  # by which more iterations may raise sum K^2: where they amplify noise, it explodes
_STRENGTHS = tuple(10.0**k for k in range(1, -7, -1))  # of the regularisation that are tried, the strongest first
_MOST_UNKNOWNS = 1500  # of the kernel, if the orders are free: beyond, the fit takes minutes
_VARIATION = 0.05  # prior: a coefficient varies over the field by so much of the kernel's norm
_ENOUGH = 80  # with fewer cells than this, each cell gives more than one stamp


@dataclass(frozen=True, eq=False)
class KernelFit:
    """Result of `fit_kernel`.

    Parameters
    ----------
    kernel : SpatialKernel
    background : ndarray
        Coefficients of the background's monomials.
    background_order : int
    stars : list of Candidate
        Stamps in the final fit.
    chi2 : ndarray
        Reduced chi2 of each of them, over its core.
    rejected : list of Candidate
        Stamps that were dropped.
    systematic : float
        eps: the residuals scatter by sqrt(variance + (eps model)^2).
    regularisation : float or None
        Its strength; None if the basis needs none.
    """

    kernel: SpatialKernel
    background: Float64Array
    background_order: int
    stars: list[Candidate]
    chi2: Float64Array
    rejected: list[Candidate]
    systematic: float
    border: int
    regularisation: float | None = None

    def positions(self, stars: list[Candidate]) -> Float64Array:
        """Return the stars' positions (x, y) in the field, shape (N, 2)."""
        return np.array([(star.x - self.border, star.y - self.border) for star in stars], float).reshape(-1, 2)


class _Fitter:
    """The stamps in the fit and their weights; one `Stamp` for each cell of the field at a time."""

    def __init__(self, images: FitInput, cells: list[list[Candidate]], options: AlardLuptonOptions) -> None:
        self.images, self.options = images, options
        self.max_background = max(_AUTO_ORDERS) if options.background_order == "auto" else options.background_order
        per_tile = options.stamps_per_tile or int(
            np.clip(np.ceil(_ENOUGH / len(cells)), 1, options.candidates_per_tile)
        )
        self.waiting = [cell[per_tile:] for cell in cells]
        self.cell_of = {id(star): k for k, cell in enumerate(cells) for star in cell}
        self.stamps = self._load([star for cell in cells for star in cell[:per_tile]])
        self.rejected: list[Candidate] = []
        self.systematic = 0.0
        self.stiffness = 0.0
        self.independent = False
        self.debiasing = _DEBIASING[0]
        self._images = images.basis.images
        self.strength = options.regularisation if options.regularisation != "auto" else _STRENGTHS[3]
        self._roughness: Float64Array | None = None
        if isinstance(images.basis, ZeroSumDeltaBasis):
            n = len(images.basis) + len(exponents(self.max_background))
            self._roughness = np.zeros((n, n))
            derivative = {"gradient": 1, "curvature": 2}[options.smoothness]
            self._roughness[: len(images.basis), : len(images.basis)] = images.basis.roughness(derivative)
        self._noise_gram = _noise_gram(self._images, images.correlation, len(exponents(self.max_background)))
        order = 0 if options.spatial_order == "auto" else options.spatial_order
        background = 0 if options.background_order == "auto" else options.background_order
        self.model = Model(
            len(images.basis), order, background, self.max_background, options.vary_kernel_sum is True,
            images.basis.n_constant,
        )  # fmt: skip
        # before there is a kernel, the source's noise is taken as it is
        self.source_variances = [_inner(stamp.source_variance, images.basis.half) for stamp in self.stamps]
        self.weights = [
            _inverse(stamp.target_variance + v, stamp.usable)
            for stamp, v in zip(self.stamps, self.source_variances, strict=True)
        ]
        self.sum_up()

    def _load(self, stars: list[Candidate]) -> list[Stamp]:
        return map_bands(lambda star: load_stamp(self.images, star, self.max_background), stars)

    def terms(self, order: int) -> Float64Array:
        x = np.array([stamp.star.x for stamp in self.stamps])
        y = np.array([stamp.star.y for stamp in self.stamps])
        return self.images.monomials(x, y, order).T

    def sum_up(self) -> None:
        """Sum the normal equations of all stamps with their present weights."""
        parts = map_bands(lambda k: _sums(self.stamps[k], self.weights[k]), range(len(self.stamps)))
        noise = [w @ v if self.independent else 0.0 for w, v in zip(self.weights, self.source_variances, strict=True)]
        grams, moments, squares = (np.array(part) for part in zip(*parts, strict=True))
        self.sums = StampSums(grams, moments, squares, np.array(noise), self._noise_gram)
        self.regularise(self.strength)

    def regularise(self, strength: float) -> None:
        """Set the strength of the regularisation: in units of the mean diagonal of a stamp's matrix over that of R."""
        if self._roughness is None:
            return
        n = self.model.n_basis
        scale = np.trace(self.sums.grams[:, :n, :n].mean(axis=0)) / np.trace(self._roughness)
        self.strength, self.sums = strength, replace(self.sums, penalty=strength * scale * self._roughness)

    def choose_regularisation(self) -> None:
        """Set the strength by how well unseen stamps are predicted (Becker et al. 2012, section 4.3).

        It is the greatest one that is not worse than the best by more than the standard error of that over the stamps:
        a weak one costs little there, as a few bright stars decide, while it lets noise into the kernel.
        """
        chi2 = []
        for strength in _STRENGTHS:
            self.regularise(strength)
            chi2.append(self._held_out(self.model))
        worse = np.array(chi2) - min(chi2, key=np.sum)
        as_good = worse.sum(axis=1) <= np.sqrt(worse.shape[1]) * worse.std(axis=1)
        self.regularise(_STRENGTHS[int(np.argmax(as_good))])

    @property
    def regularised(self) -> bool:
        return self._roughness is not None

    def need_enough(self) -> None:
        if len(self.stamps) < self.options.min_stamps:
            raise TooFewStampsError(
                f"Only {len(self.stamps)} good stamps are left to fit the kernel ({len(self.rejected)} were dropped as "
                f"they do not fit); at least {self.options.min_stamps} are needed. Check that both images show "
                "the same stars and are aligned, take a method without stamps (--method sfft), or lower min_stamps.",
                n_stamps=len(self.stamps),
                n_rejected=len(self.rejected),
                needed=self.options.min_stamps,
            )

    def choose_orders(self) -> None:
        """Set the orders that are free to those that predict unseen stamps well.

        The background gets the best one. The kernel gets the highest one that is about as good as the best: its prior
        keeps needless terms small, and a held-out bright star asks for an extrapolation that the full fit does not
        make. The flux ratio varies only where that is clearly better.
        """
        orders = [n for n in _AUTO_ORDERS if _STAMPS_PER_TERM * len(exponents(n)) <= len(self.stamps)] or [0]
        small = [n for n in orders if len(self.images.basis) * len(exponents(n)) <= _MOST_UNKNOWNS] or [0]
        if self.options.background_order == "auto":
            models = [replace(self.model, background_order=n) for n in orders]
            self.model = min(models, key=self._held_out_chi2)
        orders = small if self.options.spatial_order == "auto" else [self.model.spatial_order]
        n_pixels = sum(np.count_nonzero(weight) for weight in self.weights)
        vary = self.options.vary_kernel_sum
        best = np.inf
        for vary_sum in (False, True) if vary == "auto" else (vary,):
            models = [replace(self.model, spatial_order=n, vary_sum=vary_sum) for n in orders]
            chi2 = np.array([self._held_out_chi2(model) for model in models])
            chosen = np.flatnonzero(chi2 <= chi2.min() + _AS_GOOD * n_pixels)[-1]
            if chi2[chosen] < best - _AS_GOOD * n_pixels:
                best, self.model = chi2[chosen], models[chosen]

    def choose_debiasing(self) -> None:
        """Set how far the bias by noise is taken off: as far as that helps to predict unseen stamps.

        Where the source's noise is not what its variance says, the iteration need not converge: the kernel's norm
        tells.
        """
        terms = self.terms(self.model.spatial_order)
        best, first = np.inf, 0.0
        for steps in _DEBIASING:
            solution = solve(self.model, terms, self.sums, self.stiffness, debiasing=steps)
            local = local_coefficients(self.model, solution, terms)
            power = float(np.mean(np.einsum("sm,mn,sn->s", local, self._noise_gram, local, optimize=True)))
            first = first or power
            chi2 = self._held_out_chi2(self.model, steps)
            if chi2 >= best or power > _MOST_POWER * first:
                break
            best, self.debiasing = chi2, steps

    def _held_out_chi2(self, model: Model, debiasing: int | None = None) -> float:
        """Sum of chi2 over stamps, each predicted from the other folds."""
        return float(self._held_out(model, debiasing).sum())

    def _held_out(self, model: Model, debiasing: int | None = None) -> Float64Array:
        """chi2 of each stamp, predicted from the other folds (k-fold cross-validation)."""
        terms = self.terms(model.spatial_order)
        folds = np.arange(len(terms)) % min(_FOLDS, len(terms))
        chi2 = np.zeros(len(terms))
        for fold in range(folds.max() + 1):
            out = folds == fold
            if out.all():
                return chi2
            solution = solve(model, terms[~out], self.sums[~out], self.stiffness, debiasing=debiasing or self.debiasing)
            chi2[out] = chi_squares(model, solution, terms[out], self.sums[out])
        return chi2

    def solve(self) -> None:
        """Fit, and look at the residuals."""
        terms = self.terms(self.model.spatial_order)
        self.solution = solve(self.model, terms, self.sums, self.stiffness, debiasing=self.debiasing)
        local = local_coefficients(self.model, self.solution, terms)
        n = self.model.n_basis
        self.signals = [c[:n] @ stamp.design[:n] for c, stamp in zip(local, self.stamps, strict=True)]
        self.residuals = [stamp.target - c @ stamp.design for c, stamp in zip(local, self.stamps, strict=True)]
        self.kernels = np.tensordot(local[:, :n], self._images, axes=1)
        self.stiffness = 1 / (_VARIATION**2 * np.mean(np.sum(self.kernels**2, axis=(1, 2))))

    def reweight(self, clip_pixels: bool) -> None:
        """Inverse variances with the kernel that was found, pixel clipping, and the systematic term."""
        half = self.images.basis.half
        convolved = [
            _inner(convolve(stamp.source_variance, kernel**2), half)
            for stamp, kernel in zip(self.stamps, self.kernels, strict=True)
        ]
        gains = [convolved_noise_gain(kernel, self.images.correlation) for kernel in self.kernels]
        variances = [
            stamp.target_variance + gain * v for stamp, gain, v in zip(self.stamps, gains, convolved, strict=True)
        ]
        self.source_variances = [v / (kernel**2).sum() for v, kernel in zip(convolved, self.kernels, strict=True)]
        core = [stamp.usable & stamp.core for stamp in self.stamps]
        self.systematic = systematic_fraction(
            *(
                np.concatenate([plane[c] for plane, c in zip(planes, core, strict=True)])
                for planes in (self.residuals, variances, self.signals)
            )
        )
        eps = min(self.systematic, _MAX_SYSTEMATIC)
        totals = [v + (eps * s) ** 2 for v, s in zip(variances, self.signals, strict=True)]
        good = [stamp.usable for stamp in self.stamps]
        if clip_pixels:
            side = 2 * self.images.half + 1
            planes = (np.reshape(plane, (-1, side, side)) for plane in (self.residuals, self.signals, totals, good))
            changed = changed_pixels(*planes, width=self.images.fwhm).reshape(len(good), -1)
            good = [
                g & ~c & (r * r <= self.options.pixel_clip**2 * t)
                for g, c, r, t in zip(good, changed, self.residuals, totals, strict=True)
            ]
        self.chi2 = np.array(
            [
                np.mean(r[c] ** 2 / t[c]) if c.any() else np.inf
                for r, t, c in zip(self.residuals, totals, core, strict=True)
            ]
        )
        self.weights = [_inverse(t, g) for g, t in zip(good, totals, strict=True)]

    def judge_noise(self) -> None:
        """Find out whether the noise of the two images is independent, as the correction of its bias needs.

        It is not when one image is a copy of the other, or when most of the same data went into both: then the
        residuals are far smaller than the variances say.
        """
        self.independent = bool(np.median(self.chi2) > _SHARED_NOISE)

    def drop_bad(self) -> int:
        """Drop stamps with a chi2 far above the others', and bring in the next ones of their cells."""
        centre = np.median(self.chi2)
        spread = max(
            MAD_TO_SIGMA * np.median(np.abs(self.chi2 - centre)), centre * np.sqrt(2 / self.stamps[0].core.sum())
        )
        bad = ~(self.chi2 <= centre + self.options.stamp_clip * spread)
        if not bad.any():
            return 0
        newcomers = []
        for k in np.flatnonzero(bad):
            star = self.stamps[k].star
            self.rejected.append(star)
            queue = self.waiting[self.cell_of[id(star)]]
            if queue:
                newcomers.append(queue.pop(0))
        half, kernel = self.images.basis.half, self.kernels.mean(axis=0)
        gain = convolved_noise_gain(kernel, self.images.correlation)
        for name in ("stamps", "source_variances", "weights"):
            setattr(self, name, [getattr(self, name)[k] for k in np.flatnonzero(~bad)])
        for stamp in self._load(newcomers):
            variance = _inner(convolve(stamp.source_variance, kernel**2), half)
            self.stamps.append(stamp)
            self.source_variances.append(variance / (kernel**2).sum())
            self.weights.append(_inverse(stamp.target_variance + gain * variance, stamp.usable))
        return int(bad.sum())


def fit_kernel(images: FitInput, cells: list[list[Candidate]], options: AlardLuptonOptions) -> KernelFit:
    """Fit the kernel to the best stamp of each cell, replacing those that do not fit.

    Weighted least squares (Alard & Lupton 1998, eq. 3) with weights 1 / (var_target + gamma K^2 * var_source +
    (eps model)^2), where gamma is `convolved_noise_gain` and eps what the residuals of bright stars scatter beyond
    their noise: without it the few brightest stars alone would decide. Stamps (variable stars, moving objects, blends
    with them) whose reduced chi2 stands out are replaced by the next of their cell; single pixels that stand out get
    no weight. Orders left free are chosen by cross-validation.

    Raises
    ------
    TooFewStampsError
        Fewer than `options.min_stamps` are left.
    """
    fitter = _Fitter(images, cells, options)
    fitter.need_enough()
    for iteration in range(options.max_iterations):
        if iteration in (1, 2):
            if fitter.regularised and options.regularisation == "auto":
                fitter.choose_regularisation()
            fitter.choose_orders()
        if iteration in (2, 3) and fitter.independent:
            fitter.choose_debiasing()
        fitter.solve()
        fitter.reweight(clip_pixels=iteration > 1)
        if iteration == 0:
            fitter.judge_noise()
        log.debug(
            "iteration %d: %d stamps, chi2 %.3f, eps %.4f, %s",
            iteration,
            len(fitter.stamps),
            np.median(fitter.chi2),
            fitter.systematic,
            fitter.model,
        )
        dropped = fitter.drop_bad() if iteration > 0 else 0
        fitter.need_enough()
        fitter.sum_up()
        if iteration > 3 and not dropped:
            break
    fitter.solve()
    fitter.reweight(clip_pixels=True)
    coefficients, background = fitter.model.unpack(fitter.solution)
    kernel = SpatialKernel(images.basis, coefficients, images.centre, images.scale)
    return KernelFit(
        kernel,
        background,
        fitter.model.background_order,
        [stamp.star for stamp in fitter.stamps],
        fitter.chi2,
        fitter.rejected,
        fitter.systematic,
        images.border,
        fitter.strength if fitter.regularised else None,
    )


def systematic_fraction(residual: FloatArray, variance: FloatArray, model: FloatArray) -> float:
    """Return eps such that the residuals scatter robustly by sqrt(variance + (eps model)^2).

    Only pixels with a model above 10 standard deviations take part; 0 when they scatter by their noise or less, or
    when there are fewer than 50 of them.
    """
    bright = model > 10 * np.sqrt(variance)
    if bright.sum() < 50:
        return 0.0
    r, v, m = (np.asarray(plane[bright], np.float64) for plane in (residual, variance, model))
    # |r| MAD_TO_SIGMA <= sqrt(v + (eps m)^2) for half of the pixels
    square = float(np.median(((MAD_TO_SIGMA * r) ** 2 - v) / m**2))
    return float(np.sqrt(np.clip(square, 0.0, 1.0)))


def _sums(stamp: Stamp, weight: Float64Array) -> tuple[Float64Array, Float64Array, float]:
    """Return sum w f f^T, sum w f I and sum w I^2 of a stamp."""
    used = weight > 0
    design, target, weight = stamp.design[:, used], stamp.target[used], weight[used]
    weighted = design * weight
    return weighted @ design.T, weighted @ target, float(weight @ (target * target))


def _noise_gram(images: Float64Array, correlation: float, n_background: int) -> Float64Array:
    """Return the covariance of the basis images of noise of variance 1, zero for the background's monomials."""
    smoothing = smoothing_kernel(correlation)
    seen = np.array([convolve_full(image, smoothing) for image in images]).reshape(len(images), -1)
    gram = np.zeros((len(images) + n_background,) * 2)
    gram[: len(images), : len(images)] = seen @ seen.T / (smoothing**2).sum()
    return gram


def _inner(plane: FloatArray, border: int) -> Float64Array:
    return plane[border:-border, border:-border].astype(np.float64).ravel()


def _inverse(variance: Float64Array, good: BoolArray) -> Float64Array:
    return np.divide(1.0, variance, out=np.zeros_like(variance), where=good)
