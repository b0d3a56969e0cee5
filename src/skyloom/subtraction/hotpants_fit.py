"""The fit of one region: kernel and background from its sub-stamps, those that do not fit replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands
from skyloom.convolution import PolynomialKernel, convolve_varying, exponents, monomials
from skyloom.errors import TooFewStampsError
from skyloom.exposure import BoolArray
from skyloom.subtraction.basis import Float64Array, KernelBasis
from skyloom.subtraction.fit import systematic_fraction
from skyloom.subtraction.hotpants_kernel import Region
from skyloom.subtraction.hotpants_options import HotpantsOptions
from skyloom.subtraction.hotpants_stamps import Substamp
from skyloom.subtraction.normal import Model, StampSums, local_coefficients, solve
from skyloom.subtraction.stamps import dilate

log = logging.getLogger("skyloom.subtraction")

_CLIP_FRACTION = 0.02  # of the signal: the cores of bright stars are kept for the merit to judge
_PIXEL_CLIP = 6.0  # standard deviations; brighter deviations are cosmic rays and variable stars
_MAX_SYSTEMATIC = 0.003  # as in `skyloom.subtraction.fit`
_SHARED_NOISE = 0.5
_ROUNDS = 25  # of replacing sub-stamps
_QUARTILES = 1.35


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two images, as the fit sees it.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Less a pedestal; 0 where bad.
    bad : ndarray of bool
    variance : callable
        (rows, columns) -> variance of that part, float64; both are slices.
    """

    data: npt.NDArray[np.float32]
    bad: BoolArray
    variance: Callable[[slice, slice], Float64Array]


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


class _Loaded:
    """The pixels of one sub-stamp, flattened, and its share of the normal equations."""

    def __init__(
        self, star: Substamp, source: Side, target: Side, region: Region, *, basis: KernelBasis,
        options: HotpantsOptions,
    ) -> None:  # fmt: skip
        half, reach = options.rss, options.rss + basis.half
        box, wide = ((slice(star.y - h, star.y + h + 1), slice(star.x - h, star.x + h + 1)) for h in (half, reach))
        inner = (slice(basis.half, -basis.half),) * 2
        self.star = star
        self.design = basis.convolve(source.data[wide]).reshape(len(basis), -1).astype(np.float32)
        x, y = np.arange(star.x - half, star.x + half + 1), np.arange(star.y - half, star.y + half + 1)
        background = monomials(x[None, :], y[:, None], options.bgo, region.centre, region.scale)
        self.background = background.reshape(len(background), -1)
        self.target = target.data[box].astype(np.float64).ravel()
        self.target_variance = target.variance(*box).ravel()
        self.source_variance = source.variance(*wide)
        # before there is a kernel, the source's noise is taken as it is
        self.convolved_variance = self.source_variance[inner].ravel()
        self.usable = np.ones(self.target.size, bool)
        if options.fit == "weighted":  # the middle half of the kernel holds nearly all of its weight
            touched = dilate(source.bad[wide], (basis.half + 1) // 2)[inner]
            self.usable = ~(touched | target.bad[box]).ravel()
        self.good = self.usable
        self.gain = 1.0  # sum K^2
        self.signal = np.zeros_like(self.target)
        self.residual = self.target
        self.sums: tuple[Float64Array, Float64Array, float, float]
        self.merit = np.nan

    @property
    def variance(self) -> Float64Array:
        """Variance of the residuals, without the systematic part."""
        return self.target_variance + self.convolved_variance


class _Fit:
    """The active sub-stamp of each stamp, and the solution."""

    def __init__(
        self, source: Side, target: Side, region: Region, queues: list[list[Substamp]], *,
        basis: KernelBasis, options: HotpantsOptions,
    ) -> None:  # fmt: skip
        self.source, self.target, self.region, self.basis, self.options = source, target, region, basis, options
        self.model = Model(len(basis), options.ko, options.bgo, options.bgo, vary_sum=False)
        self.weighted = self.independent = options.fit == "weighted"
        self.eps = 0.0
        self.images = basis.images
        flat = self.images.reshape(len(basis), -1)
        n = len(basis) + len(exponents(options.bgo))
        self.noise_gram = np.zeros((n, n))
        self.noise_gram[: len(basis), : len(basis)] = flat @ flat.T
        self.waiting = [queue[1:] for queue in queues]
        self.n_rejected = 0
        self.active = self.load([queue[0] for queue in queues])
        # the first fit, on every other pixel, is only there to find the weights of the second
        self.sum_up(self.active, 2 if self.weighted else 1)

    def load(self, stars: list[Substamp]) -> list[_Loaded]:
        def one(star: Substamp) -> _Loaded:
            return _Loaded(star, self.source, self.target, self.region, basis=self.basis, options=self.options)

        return map_bands(one, stars)

    def sum_up(self, stamps: list[_Loaded], step: int = 1) -> None:
        """Sum the normal equations over each `step`-th pixel of these stamps, with their present weights if any."""

        def one(stamp: _Loaded) -> None:
            weight = np.ones(len(stamp.target))
            if self.weighted:
                total = stamp.variance + (self.eps * stamp.signal) ** 2
                weight = np.divide(1.0, total, out=np.zeros_like(total), where=stamp.good)
            root = np.sqrt(weight[::step])
            design = np.empty((len(stamp.design) + len(stamp.background), len(root)))
            np.multiply(stamp.design[:, ::step], root, out=design[: len(stamp.design)])
            np.multiply(stamp.background[:, ::step], root, out=design[len(stamp.design) :])
            target = stamp.target[::step] * root
            noise = float(weight[::step] @ stamp.convolved_variance[::step]) / stamp.gain
            stamp.sums = design @ design.T, design @ target, float(target @ target), noise

        map_bands(one, stamps)

    def solve(self) -> None:
        """Fit the kernel, and look at the residuals."""
        x, y = (np.array([getattr(stamp.star, axis) for stamp in self.active]) for axis in "xy")
        terms = monomials(x, y, self.options.ko, self.region.centre, self.region.scale).T
        grams, moments, squares, noise = (np.array(part) for part in zip(*(s.sums for s in self.active), strict=True))
        sums = StampSums(grams, moments, squares, noise * self.independent, self.noise_gram)
        self.solution = solve(self.model, terms, sums)
        local = local_coefficients(self.model, self.solution, terms)
        n = len(self.basis)
        self.kernels = np.tensordot(local[:, :n], self.images, axes=1)
        for stamp, c in zip(self.active, local, strict=True):
            stamp.signal = (c[:n].astype(np.float32) @ stamp.design).astype(np.float64)
            stamp.residual = stamp.target - stamp.signal - c[n:] @ stamp.background

    def reweight(self, stamps: list[_Loaded], kernels: Float64Array) -> None:
        """Variances with the kernel that was found, at each stamp."""
        half, side = self.basis.half, 2 * self.options.rss + 1
        inner = (half, half + side), (half, half + side)

        def one(k: int) -> None:
            squared = PolynomialKernel(kernels[k][None] ** 2)
            variance = convolve_varying(stamps[k].source_variance, squared, part=inner, threads=1).data
            stamps[k].convolved_variance = variance.astype(np.float64).ravel()
            stamps[k].gain = float(squared.planes.sum())

        map_bands(one, range(len(stamps)))

    def find_systematic(self) -> None:
        """Find what the residuals of bright stars scatter beyond their noise, and pixels that do not fit."""
        planes = [(s.residual[s.good], s.variance[s.good], s.signal[s.good]) for s in self.active]
        eps = systematic_fraction(*(np.concatenate(part) for part in zip(*planes, strict=True)))
        self.eps = min(eps, _MAX_SYSTEMATIC)

    def clip_pixels(self, stamps: list[_Loaded]) -> None:
        """Leave out single pixels that do not fit."""
        for stamp in stamps:
            total = stamp.variance + (max(self.eps, _CLIP_FRACTION) * stamp.signal) ** 2
            stamp.good = stamp.usable & (stamp.residual**2 <= _PIXEL_CLIP**2 * total)

    def judge(self) -> tuple[float, float]:
        """Give each sub-stamp its merit; return their clipped mean and deviation."""
        # one cosmic ray does not make a bad sub-stamp, a variable star does
        most = _PIXEL_CLIP**2 if self.weighted else np.inf
        for stamp in self.active:
            used = stamp.residual[stamp.usable]
            if self.options.fom == "v":
                total = (stamp.variance + (self.eps * stamp.signal) ** 2)[stamp.usable]
                stamp.merit = float(np.mean(np.minimum(used**2 / total, most)))
            elif self.options.fom == "s":
                stamp.merit = clipped(used, self.options.ssig)[1]
            else:
                stamp.merit = float(np.subtract(*np.quantile(used, (0.75, 0.25)))) / _QUARTILES
        return clipped(np.array([stamp.merit for stamp in self.active]), self.options.ssig)

    def replace_bad(self, mean: float, scatter: float) -> bool:
        """Replace sub-stamps whose merit stands out by the next ones of their stamps; return whether there were any."""
        new: list[Substamp] = []
        kept, waiting = [], []
        for stamp, queue in zip(self.active, self.waiting, strict=True):
            if stamp.merit - mean <= self.options.ks * scatter:
                kept.append((stamp, queue))
            elif queue:
                new.append(queue[0])
                waiting.append(queue[1:])
            else:
                self.n_rejected += 1
        if len(kept) == len(self.active):
            return False
        loaded = self.load(new)
        if self.weighted:
            self.reweight(loaded, np.broadcast_to(self.kernels.mean(axis=0), (len(loaded), *self.kernels.shape[1:])))
        self.sum_up(loaded)
        self.active = [stamp for stamp, _ in kept] + loaded
        self.waiting = [queue for _, queue in kept] + waiting
        self.need_enough()
        return True

    def need_enough(self) -> None:
        needed = len(exponents(max(self.options.ko, self.options.bgo)))
        if len(self.active) < needed:
            raise too_few(self.region, len(self.active), self.n_rejected, needed)


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
    centre, sigma = np.median(values), 1.4826 * np.median(np.abs(values - np.median(values)))
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
        fit.reweight(fit.active, fit.kernels)
        fit.find_systematic()
        fit.clip_pixels(fit.active)
        merit, _ = fit.judge()
        fit.independent = bool(merit > _SHARED_NOISE)
        fit.sum_up(fit.active)
        fit.solve()
    for number in range(_ROUNDS):
        merit, scatter = fit.judge()
        log.debug("region %s, round %d: %d stamps, merit %.3f +- %.3f", region, number, len(fit.active), merit, scatter)
        if not fit.replace_bad(merit, scatter):
            break
        fit.solve()
    coefficients, background = fit.model.unpack(fit.solution)
    return RegionFit(
        coefficients,
        background,
        [stamp.star for stamp in fit.active],
        np.array([stamp.merit for stamp in fit.active]),
        merit,
        scatter,
        fit.n_rejected,
    )
