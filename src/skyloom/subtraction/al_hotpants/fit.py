"""The fit of one region: kernel and background from its sub-stamps, those that do not fit replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.background import MAD_TO_SIGMA
from skyloom.convolution import Float32Array, convolve_stamps, exponents, monomials
from skyloom.errors import TooFewStampsError
from skyloom.exposure import BoolArray
from skyloom.subtraction.al_hotpants.kernel import Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.stamps import Substamp
from skyloom.subtraction.basis import Float64Array, KernelBasis
from skyloom.subtraction.fit import systematic_fraction
from skyloom.subtraction.normal import Model, StampSums, local_coefficients, normal_matrix, solve
from skyloom.subtraction.stamps import dilate

log = logging.getLogger("skyloom.subtraction")

_CLIP_FRACTION = 0.02  # of the signal: the cores of bright stars are kept for the merit to judge
_PIXEL_CLIP = 6.0  # standard deviations; brighter deviations are cosmic rays and variable stars
_MAX_SYSTEMATIC = 0.003  # as in `skyloom.subtraction.fit`
_SHARED_NOISE = 0.5
_ROUNDS = 25  # of replacing sub-stamps
_QUARTILES = 1.35
_GROUP = 16  # stamps that are worked on together


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two images, as the fit sees it.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Less a pedestal; 0 where bad.
    bad : callable
        (rows, columns), slices -> where that part is bad.
    variance : callable
        (rows, columns), slices -> variance of that part, float32.
    """

    data: npt.NDArray[np.float32]
    bad: Callable[[slice, slice], BoolArray]
    variance: Callable[[slice, slice], Float32Array]


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
        self, source: Side, target: Side, region: Region, queues: list[list[Substamp]], *,
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
        rows = np.arange(count)
        self.take_next(rows)
        # the first fit, on every second pixel, is only there to find the weights of the second
        self.sum_up(rows, 2 if self.weighted else 1)

    def take_next(self, rows: npt.NDArray[np.intp]) -> None:
        """Load the next sub-stamp of these stamps."""
        n, half, reach = len(self.basis), self.options.rss, self.options.rss + self.basis.half
        inner = (slice(self.basis.half, -self.basis.half),) * 2
        near = (self.basis.half + 1) // 2  # the middle half of the kernel holds nearly all of its weight
        for k in rows:
            self.stars[k], self.waiting[k] = self.waiting[k][0], self.waiting[k][1:]
        axis = np.arange(-half, half + 1)
        x, y = (np.array([getattr(self.stars[k], name) for k in rows], int) for name in "xy")
        pixels = x[:, None, None] + axis, y[:, None, None] + axis[:, None]
        background = monomials(*pixels, self.options.bgo, self.region.centre, self.region.scale)

        def load(number: int) -> None:
            k = rows[number]
            x, y = self.stars[k].x, self.stars[k].y
            box, wide = (np.s_[y - h : y + h + 1, x - h : x + h + 1] for h in (half, reach))
            planes = self.planes[k]
            planes[:n] = self.basis.convolve(self.source.data[wide]).reshape(n, -1)
            planes[n:-1] = background[:, number].reshape(len(background), -1)
            planes[-1] = self.target.data[box].ravel()
            self.target_variance[k] = self.target.variance(*box).ravel()
            self.source_variance[k] = self.source.variance(*wide)
            # before there is a kernel, the source's noise is taken as it is
            self.convolved_variance[k], self.gain[k] = self.source_variance[k][inner].ravel(), 1.0
            if self.weighted:
                touched = dilate(self.source.bad(*wide), near)[inner]
                self.usable[k] = ~(touched | self.target.bad(*box)).ravel()
            self.good[k], self.signal[k] = self.usable[k], 0

        map_bands(load, range(len(rows)))

    def total_variance(self, eps: float, which: Any = slice(None)) -> Float32Array:
        """Variance of the residuals, with their systematic part, a share `eps` of the signal; of some stamps."""
        variance = self.target_variance[which] + self.convolved_variance[which]
        return variance + np.square(np.float32(eps) * self.signal[which])

    def sum_up(self, rows: npt.NDArray[np.intp], step: int = 1) -> None:
        """Sum the equations of these sub-stamps over each `step`-th pixel, with their present weights if any.

        The products of weighted pixels are summed in float32: that rounds to 1e-7 of a star's signal-to-noise ratio
        squared, which is below that ratio, the uncertainty of the sums.
        """
        size = self.grams.shape[1]
        if self.weighted:
            total = self.total_variance(self.eps, rows)
            roots = np.where(self.good[rows] & self.alive[rows, None], 1 / np.sqrt(total), np.float32(0))
            roots[:, np.arange(roots.shape[1]) % step > 0] = 0
            self.noise[rows] = np.einsum("kp,kp,kp->k", roots, roots, self.convolved_variance[rows]) / self.gain[rows]

        def one(number: int) -> None:
            k, products = rows[number], np.empty((size + 1, size + 1))
            if self.weighted:
                _kernels.weighted_gram(self.planes[k], roots[number], products)
            else:
                planes = self.planes[k].astype(np.float64) * self.alive[k]
                np.matmul(planes, planes.T, out=products)
            self.grams[k], self.moments[k] = products[:size, :size], products[:size, -1]

        map_bands(one, range(len(rows)))
        self.normal = normal_matrix(self.model, self.terms(), self.grams)

    def terms(self) -> Float64Array:
        """Return the monomials of the kernel at each sub-stamp."""
        x, y = (np.array([getattr(star, axis) for star in self.stars]) for axis in "xy")
        return monomials(x, y, self.options.ko, self.region.centre, self.region.scale).T

    def solve(self) -> None:
        """Fit the kernel, and look at the residuals."""
        terms, n = self.terms(), len(self.basis)
        noise = self.noise * (self.independent & self.alive)
        sums = StampSums(self.grams, self.moments, np.zeros(len(noise)), noise, self.noise_gram)
        self.solution = solve(self.model, terms, sums, normal=self.normal)
        self.local = local_coefficients(self.model, self.solution, terms)
        local = self.local.astype(np.float32)

        def some(band: tuple[int, int]) -> None:
            which = slice(*band)
            planes, factors = self.planes[which], local[which, None]
            self.signal[which] = np.matmul(factors[..., :n], planes[:, :n])[:, 0]
            self.residual[which] = planes[:, -1] - self.signal[which]
            self.residual[which] -= np.matmul(factors[..., n:], planes[:, n:-1])[:, 0]

        map_bands(some, row_bands(len(local), _GROUP))

    def reweight(self, rows: npt.NDArray[np.intp], local: Float64Array) -> None:
        """Variances with the kernel that was found, given by its coefficients at each of these stamps."""
        squared = np.tensordot(local, self.basis.images, axes=1) ** 2
        convolved = convolve_stamps(self.source_variance[rows], squared)
        self.convolved_variance[rows] = convolved.reshape(len(rows), self.usable.shape[1])
        self.gain[rows] = squared.sum(axis=(1, 2))

    def find_systematic(self) -> None:
        """Find what the residuals of bright stars scatter beyond their noise, and pixels that do not fit."""
        used = self.good & self.alive[:, None]
        eps = systematic_fraction(self.residual[used], self.total_variance(0.0)[used], self.signal[used])
        self.eps = min(eps, _MAX_SYSTEMATIC)

    def clip_pixels(self) -> None:
        """Leave out single pixels that do not fit."""
        total = self.total_variance(max(self.eps, _CLIP_FRACTION))
        self.good = self.usable & (self.residual**2 <= _PIXEL_CLIP**2 * total)

    def judge(self) -> tuple[float, float]:
        """Give each sub-stamp its merit; return their clipped mean and deviation."""
        if self.options.fom == "v":
            # one cosmic ray does not make a bad sub-stamp, a variable star does
            most = np.float32(_PIXEL_CLIP**2 if self.weighted else np.inf)

            def some(band: tuple[int, int]) -> None:
                which = slice(*band)
                ratio = np.minimum(self.residual[which] ** 2 / self.total_variance(self.eps, which), most)
                self.merits[which] = np.mean(ratio, axis=1, where=self.usable[which], dtype=np.float64)

            map_bands(some, row_bands(len(self.merits), _GROUP))
        else:
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
        self.alive[bad[~more]] = False
        self.take_next(bad[more])
        if self.weighted:
            middle = self.local[self.alive, : len(self.basis)].mean(axis=0)
            self.reweight(bad[more], np.broadcast_to(middle, (more.sum(), len(middle))))
        self.sum_up(bad)
        self.need_enough()
        return True

    def need_enough(self) -> None:
        needed, left = len(exponents(max(self.options.ko, self.options.bgo))), int(self.alive.sum())
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
    centre, sigma = np.median(values), MAD_TO_SIGMA * np.median(np.abs(values - np.median(values)))
    for _ in range(10):
        kept = values[np.abs(values - centre) <= limit * sigma] if sigma > 0 else values
        before = len(values)
        values = kept if len(kept) else values
        centre, sigma = values.mean(), values.std()
        if len(values) == before:
            break
    return float(centre), float(sigma)


def fit_region(
    source: Side, target: Side, region: Region, queues: list[list[Substamp]], *,
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
        everything = np.arange(len(queues))
        fit.reweight(everything, fit.local[:, : len(basis)])
        fit.find_systematic()
        fit.clip_pixels()
        merit, _ = fit.judge()
        fit.independent = bool(merit > _SHARED_NOISE)
        fit.sum_up(everything)
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
