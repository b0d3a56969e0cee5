"""The fit of one region: kernel and background from its sub-stamps, those that do not fit replaced."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.background import MAD_TO_SIGMA, median
from skyloom.convolution import Float32Array, convolve_stamps, exponents, monomials
from skyloom.errors import TooFewStampsError
from skyloom.exposure import BoolArray
from skyloom.subtraction.al_hotpants.inputs import Plane
from skyloom.subtraction.al_hotpants.kernel import Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.stamps import Substamp
from skyloom.subtraction.basis import Float64Array, KernelBasis
from skyloom.subtraction.fit import systematic_fraction
from skyloom.subtraction.normal import Model, StampSums, gram_sums, local_coefficients, placed, solve
from skyloom.subtraction.stamps import dilate

log = logging.getLogger("skyloom.subtraction")

_CLIP_FRACTION = 0.02  # of the signal: the cores of bright stars are kept for the merit to judge
_PIXEL_CLIP = 6.0  # standard deviations; brighter deviations are cosmic rays and variable stars
_BRIGHT = 9.0  # deviations: `systematic_fraction`, which needs 10, is spared the copies of all fainter pixels
_MAX_SYSTEMATIC = 0.003  # as in `skyloom.subtraction.fit`
_SHARED_NOISE = 0.5
_ROUNDS = 25  # of replacing sub-stamps
_QUARTILES = 1.35
_GROUP = 16  # stamps that are worked on together, at most
_BANDS = 8  # into which they are cut, if they are fewer


@dataclass(frozen=True, eq=False)
class RegionFit:
    """What the fit of a region found.

    Parameters
    ----------
    coefficients : ndarray, shape (n_basis, n_terms)
        Of the functions of the basis that the fit was given.
    background : ndarray
        Coefficients of the background's monomials.
    stamps : list of Substamp
        Those in the final fit.
    merits : ndarray
        Of each of them.
    merit, scatter : float
        Clipped mean and deviation of the merits.
    n_rejected : int
        Stamps without a sub-stamp that fits.
    """

    coefficients: Float64Array
    background: Float64Array
    stamps: list[Substamp]
    merits: Float64Array
    merit: float
    scatter: float
    n_rejected: int

    @property
    def figure(self) -> float:
        """Figure of merit by which the directions of the convolution are compared: smaller is better."""
        return self.merit / self.coefficients[0, 0] if self.coefficients[0, 0] > 0 else np.inf


class _Fit:
    """The active sub-stamp of each stamp, row by row of all arrays, and the solution."""

    def __init__(
        self, source: Plane, target: Plane, region: Region, queues: list[list[Substamp]], *,
        basis: KernelBasis, options: HotpantsOptions,
    ) -> None:  # fmt: skip
        self.source, self.target, self.region, self.basis, self.options = source, target, region, basis, options
        self.model = Model(len(basis), options.ko, options.bgo, options.bgo, vary_sum=False)
        self.weighted = self.independent = options.fit == "weighted"
        self.eps = 0.0
        self.waiting = queues
        count, size, side = len(queues), (2 * options.rss + 1) ** 2, 2 * (options.rss + basis.half) + 1
        n = len(basis) + len(exponents(options.bgo))
        flat = basis.images.reshape(len(basis), -1)
        self.noise_gram = np.zeros((n, n))
        self.noise_gram[: len(basis), : len(basis)] = flat @ flat.T
        self.alive = np.ones(count, bool)  # stamps that still have a sub-stamp
        self.stars = [queue[0] for queue in queues]
        # source convolved with each function, monomials of the background, target
        self.planes = np.empty((count, n + 1, size), np.float32)
        self.target_variance, self.convolved_variance = (np.empty((count, size), np.float32) for _ in range(2))
        self.source_variance = np.empty((count, side, side), np.float32)
        self.usable, self.good = (np.ones((count, size), bool) for _ in range(2))
        self.signal, self.residual = (np.zeros((count, size), np.float32) for _ in range(2))
        self.gain, self.noise, self.merits = np.ones(count), np.zeros(count), np.full(count, np.nan)
        self.grams, self.moments = np.zeros((count, n, n)), np.zeros((count, n))
        self.terms = np.empty((count, len(exponents(options.ko))))  # monomials of the kernel
        self.everything = np.arange(count)
        # the first fit, on every second pixel, is only there to find the weights of the second
        self.take_next(self.everything, step=2 if self.weighted else 1)
        self.totals = gram_sums(self.model, self.terms, self.grams)

    def take_next(self, rows: npt.NDArray[np.intp], local: Float64Array | None = None, step: int = 1) -> None:
        """Load the next sub-stamp of these stamps, and sum its equations as `sum_up` does.

        `local` are coefficients of a kernel for their weights; without it, the source's noise is taken as it is.
        """
        for k in rows:
            self.stars[k], self.waiting[k] = self.waiting[k][0], self.waiting[k][1:]
        x, y = (np.array([getattr(self.stars[k], name) for k in rows], int) for name in "xy")
        where = self.region.centre, self.region.scale
        self.terms[rows] = monomials(x, y, self.options.ko, *where).T

        def load(band: tuple[int, int]) -> None:
            part = slice(*band)
            self._load(rows[part], x[part], y[part])
            if local is not None:
                self._reweight(rows[part], np.broadcast_to(local, (band[1] - band[0], len(local))))
            self._sum(rows[part], step)

        map_bands(load, row_bands(len(rows), min(_GROUP, 1 + len(rows) // _BANDS)))

    def _load(self, rows: npt.NDArray[np.intp], x: npt.NDArray[np.intp], y: npt.NDArray[np.intp]) -> None:
        """Load the pixels of these stamps' sub-stamps, which are at x and y."""
        n, half, count = len(self.basis), self.options.rss, len(rows)
        boxes, wide = ([np.s_[v - h : v + h + 1, u - h : u + h + 1] for u, v in zip(x, y, strict=True)]
                       for h in (half, half + self.basis.half))  # fmt: skip
        axis = np.arange(-half, half + 1)
        for k, box in zip(rows, wide, strict=True):
            self.basis.convolve(self.source.data[box], self.planes[k, :n].reshape(n, len(axis), len(axis)))
        pixels = x[:, None, None] + axis, y[:, None, None] + axis[:, None]
        background = monomials(*pixels, self.options.bgo, self.region.centre, self.region.scale)
        self.planes[rows, n:-1] = background.swapaxes(0, 1).reshape(count, len(background), -1)
        self.planes[rows, -1] = np.stack([self.target.data[box] for box in boxes]).reshape(count, -1)
        self.target_variance[rows] = self.target.finite_variance(boxes).reshape(count, -1)
        self.source_variance[rows] = self.source.finite_variance(wide)
        self.convolved_variance[rows] = self.source.finite_variance(boxes).reshape(count, -1)
        self.gain[rows], self.signal[rows] = 1.0, 0
        if self.weighted:
            self.usable[rows] = ~(self._touched(wide) | self.target.bad(boxes)).reshape(count, -1)
        self.good[rows] = self.usable[rows]

    def _touched(self, wide: list[tuple[slice, slice]]) -> BoolArray:
        """Return the pixels of sub-stamps that bad pixels of the source reach, by the middle half of the kernel.

        That holds nearly all of its weight.
        """
        bad, reach = self.source.bad(wide), (self.basis.half + 1) // 2
        for number in np.flatnonzero(bad.any(axis=(1, 2))):
            bad[number] = dilate(bad[number], reach)
        return bad[:, self.basis.half : -self.basis.half, self.basis.half : -self.basis.half]

    def total_variance(self, eps: float) -> Float32Array:
        """Variance of the residuals, with their systematic part, a share `eps` of the signal."""
        return self.target_variance + self.convolved_variance + np.square(np.float32(eps) * self.signal)

    def sum_up(self) -> None:
        """Sum the equations of all sub-stamps with their present weights, if any.

        The products of weighted pixels are summed in float32: that rounds to 1e-7 of a star's signal-to-noise ratio
        squared, which is below that ratio, the uncertainty of the sums.
        """
        map_bands(lambda band: self._sum(self.everything[slice(*band)]), row_bands(len(self.everything), 2))
        self.totals = gram_sums(self.model, self.terms, self.grams)

    def _sum(self, rows: npt.NDArray[np.intp], step: int = 1) -> None:
        """Sum the equations of these sub-stamps over each `step`-th pixel."""
        if self.weighted:
            _kernels.stamp_sums(
                self.planes, self.target_variance, self.convolved_variance, self.good, self.signal, self.eps, step,
                rows, self.grams, self.moments, self.noise,
            )  # fmt: skip
            self.noise[rows] /= self.gain[rows]
            return
        for k in rows:
            planes = self.planes[k].astype(np.float64) * self.alive[k]
            products = planes[:-1] @ planes.T
            self.grams[k], self.moments[k] = products[:, :-1], products[:, -1]

    def solve(self) -> None:
        """Fit the kernel, and look at the residuals."""
        noise = self.noise * (self.independent & self.alive)
        sums = StampSums(self.grams, self.moments, np.zeros(len(noise)), noise, self.noise_gram)
        normal = placed(self.model, self.terms.shape[1], self.totals)
        self.solution = solve(self.model, self.terms, sums, normal=normal)
        self.local = local_coefficients(self.model, self.solution, self.terms)
        local = self.local.astype(np.float32)

        def some(band: tuple[int, int]) -> None:
            rows = self.everything[slice(*band)]
            _kernels.stamp_residuals(self.planes, local, len(self.basis), rows, self.signal, self.residual)
            self._compare(rows)

        map_bands(some, row_bands(len(local), _GROUP))

    def _compare(self, rows: npt.NDArray[np.intp]) -> None:
        """Find the mean squared residuals of these sub-stamps, in units of the variance."""
        # one cosmic ray does not make a bad sub-stamp, a variable star does
        most = _PIXEL_CLIP**2 if self.weighted else np.inf
        _kernels.stamp_merits(
            self.residual, self.signal, self.target_variance, self.convolved_variance, self.usable, self.eps, most,
            rows, self.merits,
        )  # fmt: skip

    def reweight(self) -> None:
        """Find the variances with the kernel of the solution, and what the residuals scatter beyond them."""

        def some(band: tuple[int, int]) -> None:
            rows = self.everything[slice(*band)]
            self._reweight(rows, self.local[rows, : len(self.basis)])

        map_bands(some, row_bands(len(self.local), _GROUP))
        self.find_systematic()
        self.clip_pixels()
        self._compare(self.everything)

    def _reweight(self, rows: npt.NDArray[np.intp], local: Float64Array) -> None:
        """Variances with a kernel that is given by its coefficients at each of these stamps."""
        squared = np.tensordot(local, self.basis.images, axes=1) ** 2
        convolved = convolve_stamps(self.source_variance[rows], squared, threads=1)
        self.convolved_variance[rows] = convolved.reshape(len(rows), -1)
        self.gain[rows] = squared.sum(axis=(1, 2))

    def find_systematic(self) -> None:
        """Find what the residuals of bright stars scatter beyond their noise, and pixels that do not fit."""
        variance = self.total_variance(0.0)
        bright = self.good & self.alive[:, None] & (self.signal > _BRIGHT * np.sqrt(variance))
        eps = systematic_fraction(self.residual[bright], variance[bright], self.signal[bright])
        self.eps = min(eps, _MAX_SYSTEMATIC)

    def clip_pixels(self) -> None:
        """Leave out single pixels that do not fit."""
        total = self.total_variance(max(self.eps, _CLIP_FRACTION))
        self.good = self.usable & (self.residual**2 <= _PIXEL_CLIP**2 * total)

    def judge(self) -> tuple[float, float]:
        """Give each sub-stamp its merit; return their clipped mean and deviation."""
        if self.options.fom != "v":
            for k, usable in enumerate(self.usable):
                used = self.residual[k, usable]
                self.merits[k] = (
                    clipped(used, self.options.ssig)[1]
                    if self.options.fom == "s"
                    else float(np.subtract(*np.quantile(used, (0.75, 0.25)))) / _QUARTILES
                )
        self.merits[~self.alive] = np.nan
        return clipped(self.merits, self.options.ssig)

    def replace_bad(self, mean: float, scatter: float) -> bool:
        """Replace sub-stamps whose merit stands out by the next ones of their stamps; return whether there were any."""
        bad = np.flatnonzero(self.alive & ~(self.merits - mean <= self.options.ks * scatter))
        if not len(bad):
            return False
        more = np.array([bool(self.waiting[k]) for k in bad])
        self.alive[bad[~more]] = self.good[bad[~more]] = False
        self.totals -= gram_sums(self.model, self.terms[bad], self.grams[bad])
        self._sum(bad[~more])
        weigh = self.weighted and more.any()  # if there are none, there may be no stamp left to take a kernel from
        self.take_next(bad[more], self.local[self.alive, : len(self.basis)].mean(axis=0) if weigh else None)
        self.totals += gram_sums(self.model, self.terms[bad], self.grams[bad])
        self.need_enough()
        return True

    def need_enough(self) -> None:
        needed = len(exponents(max(self.options.ko, self.options.bgo)))
        left = int((self.alive & self.usable.any(axis=1)).sum())
        if left < needed:
            raise too_few(self.region, left, len(self.alive) - left, needed)


def too_few(region: Region, found: int, rejected: int, needed: int) -> TooFewStampsError:
    """Return the error for a region without enough stamps."""
    where = f"x={region.x0}..{region.x1}, y={region.y0}..{region.y1}"
    return TooFewStampsError(
        f"The region {where} has {found} stamps for the fit of the kernel ({rejected} more did not fit); {needed} are "
        "needed. Lower ko and bgo or ft, give the positions of stars (obj, ssf), use fewer regions, smaller "
        "r and rss, or check masks and the limits tl, tu, il, iu.",
        found=found,
        rejected=rejected,
        needed=needed,
    )


def clipped(values: Float64Array, limit: float) -> tuple[float, float]:
    """Return mean and standard deviation of the values after clipping at `limit` deviations about the mean."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    centre = median(values)
    sigma = MAD_TO_SIGMA * median(np.abs(values - centre))
    for _ in range(10):
        kept = values[np.abs(values - centre) <= limit * sigma] if sigma > 0 else values
        before = len(values)
        values = kept if len(kept) else values
        centre = float(values.sum()) / len(values)
        sigma = float(np.linalg.norm(values - centre)) / len(values) ** 0.5
        if len(values) == before:
            break
    return centre, sigma


def fit_region(
    source: Plane, target: Plane, region: Region, queues: list[list[Substamp]], *,
    basis: KernelBasis, options: HotpantsOptions,
) -> RegionFit:  # fmt: skip
    """Fit kernel and background so that K * source + b = target, on one sub-stamp of each stamp.

    As in HOTPANTS, sub-stamps whose merit exceeds the clipped mean by `ks` deviations give way to the next of their
    stamp, until none does. With fit='hotpants' the sums are unweighted (Alard 2000). With fit='weighted' the weights
    are inverse variances of the residual, var_target + K^2 * var_source + (eps K * source)^2, pixels that are bad or
    stand out have none, and the noise of the convolved image does not bias the kernel (see
    `skyloom.subtraction.normal`).

    Parameters
    ----------
    queues : list of list of Substamp
        Of each stamp, best first; none empty.
    basis : KernelBasis
        Its first function has the sum 1, the others 0.

    Raises
    ------
    TooFewStampsError
        Fewer stamps than terms of the polynomials.
    """
    if not queues:
        raise too_few(region, 0, 0, len(exponents(max(options.ko, options.bgo))))
    fit = _Fit(source, target, region, queues, basis=basis, options=options)
    fit.need_enough()
    fit.solve()
    if fit.weighted:
        fit.reweight()
        merit, _ = fit.judge()
        fit.independent = bool(merit > _SHARED_NOISE)
        fit.sum_up()
        fit.solve()
    for number in range(_ROUNDS):
        merit, scatter = fit.judge()
        log.debug("region %s, round %d: %d stamps, merit %.3f +- %.3f", region, number, fit.alive.sum(), merit, scatter)
        if not fit.replace_bad(merit, scatter):
            break
        fit.solve()
    coefficients, background = fit.model.unpack(fit.solution)
    return RegionFit(
        coefficients,
        background,
        [star for star, alive in zip(fit.stars, fit.alive, strict=True) if alive],
        fit.merits[fit.alive],
        merit,
        scatter,
        int((~fit.alive).sum()),
    )
