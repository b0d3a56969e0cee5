"""`coadd`: many exposures of one field into one image, each drizzled once from its own pixels."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, NoOverlapError, SkyloomWarning, WcsError
from skyloom.exposure import BoolArray, Exposure, MaskBit
from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.frames import Frame, flux_scales, make_frame, match_levels, sky_variance
from skyloom.resampling.maps import Map, SampledMap, XYArray, invert_map, wcs_map
from skyloom.resampling.outliers import RejectionOptions, find_outliers
from skyloom.resampling.output_wcs import output_wcs_from
from skyloom.resampling.overlap import spread_bits

_WEIGHTS = ("ivm", "exptime", "uniform")
_BACKGROUNDS = ("match", "subtract", "none")
_SATURATED = ("fill", "flag")
_PROBED_ROWS = 4  # the noise correlation is taken from every so manieth row


@dataclass(frozen=True)
class CoaddOptions:
    """How exposures are co-added.

    Parameters
    ----------
    pixfrac : float
        Side of a drop in input pixels, above 0 and at most 1 (Fruchter & Hook 2002, section 2).
    weight : {'ivm', 'exptime', 'uniform'}
        Inverse variance of the sky, exposure time, or the same for all.
    background : {'match', 'subtract', 'none'}
        'match' subtracts one number from each exposure, so that their skies agree; 'subtract' subtracts a smooth sky
        (and with it whatever is larger than its boxes); 'none' leaves the data as they are.
    flux_scale : {'auto', 'zeropoint', 'exptime', 'none'}
        What brings the exposures to the flux scale of the first one, see `flux_scales`.
    reject : bool
        Whether to look for cosmic rays and other outliers; needs at least two exposures at a place, better three.
    rejection : RejectionOptions
        How to tell them from noise.
    saturated : {'fill', 'flag'}
        What becomes of places where some exposures are saturated. 'fill': the others fill them. 'flag': they get
        `MaskBit.SATURATED`, because the PSF there is that of the others alone; right for a template.
    pixel_scale, rotation : float, optional
        Of a new output grid, see `output_wcs_from`.
    covariance : int, optional
        Keep the noise covariances between output pixels, averaged over blocks of so many pixels a side; see `Drizzle`.

    Raises
    ------
    InputError
        An option makes no sense.
    """

    pixfrac: float = 1.0
    weight: str = "ivm"
    background: str = "match"
    flux_scale: str = "auto"
    reject: bool = True
    rejection: RejectionOptions = field(default_factory=RejectionOptions)
    saturated: str = "fill"
    pixel_scale: float | None = None
    rotation: float | None = None
    covariance: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.pixfrac <= 1:
            raise InputError(f"pixfrac is {self.pixfrac}; it must be above 0 and at most 1.", pixfrac=self.pixfrac)
        for name, choices in (("weight", _WEIGHTS), ("background", _BACKGROUNDS), ("saturated", _SATURATED)):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.", **{name: value})
        if self.covariance is not None and self.covariance < 1:
            raise InputError(
                f"covariance is {self.covariance}; blocks have at least 1 pixel.", covariance=self.covariance
            )


@dataclass(frozen=True, eq=False)
class Coadd:
    """A co-added image.

    Parameters
    ----------
    exposure : Exposure
        The image on the output grid, on the flux scale (and with the `zeropoint`, `exptime` and `unit`) of the first
        exposure; with variance, mask, wcs, and the noise correlation that drizzling brings.
    weight : ndarray of float, shape (ny, nx)
        Sum of weights; 0 where there are no data. For 'ivm' the inverse of the variance that independent sky pixels
        would have.
    context : ndarray of int32, shape (planes, ny, nx)
        Bit b of plane p is set where exposure 32 p + b (in the order of `names`) contributes.
    exptime_map : ndarray of float32, shape (ny, nx)
        Total exposure time of the contributing exposures, seconds.
    names : tuple of str
        The exposures that contribute.
    n_rejected : tuple of int
        Outlying pixels that were found in each of them.
    scales : tuple of float
        Flux scale of each of them.
    options : CoaddOptions
        What it was made with.
    covariance : CovarianceMap, optional
        Noise covariances between neighbouring pixels, for the errors of apertures; if the options asked for it.
    """

    exposure: Exposure
    weight: npt.NDArray[Any]
    context: npt.NDArray[np.int32]
    exptime_map: npt.NDArray[np.float32]
    names: tuple[str, ...]
    n_rejected: tuple[int, ...]
    scales: tuple[float, ...]
    options: CoaddOptions
    covariance: CovarianceMap | None = None

    @property
    def n_exposures(self) -> int:
        """Number of exposures that contribute."""
        return len(self.names)

    @property
    def wcs(self) -> Any:
        """WCS of the output grid; None if it was given as maps without one."""
        return self.exposure.wcs

    def contributors(self, x: int, y: int) -> list[str]:
        """Return the names of the exposures that contribute to one pixel."""
        return [name for k, name in enumerate(self.names) if self.context[k // 32, y, x] >> (k % 32) & 1]

    def write(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Sequence[str | os.PathLike[str]] = ()
    ) -> Path:
        """Write the co-add: SCI, ERR, DQ, WHT (weight), CTX (context), EXPTIME, and COVAR if there are covariances.

        Parameters
        ----------
        path : path-like
            FITS file to write.
        overwrite : bool
            Replace an existing file.
        inputs : sequence of path-like
            Files that went in, for the provenance.

        Returns
        -------
        Path
            `path`.

        Raises
        ------
        WriteError
            The file exists or cannot be written.
        """
        from skyloom.io import Provenance, write_exposure

        parameters = {"options": dataclasses.asdict(self.options), "names": self.names, "scales": self.scales}
        parameters["n_rejected"] = self.n_rejected
        return write_exposure(
            self.exposure,
            path,
            overwrite=overwrite,
            provenance=Provenance("coadd", parameters, inputs),
            planes={"WHT": self.weight, "CTX": self.context, "EXPTIME": self.exptime_map},
            more=[] if self.covariance is None else [self.covariance.to_hdu()],
        )

    def __repr__(self) -> str:
        ny, nx = self.exposure.shape
        return f"<Coadd of {self.n_exposures} exposures, {nx}x{ny}, {(self.weight > 0).mean():.1%} covered>"


def coadd(
    exposures: Sequence[Any],
    options: CoaddOptions | None = None,
    *,
    wcs: Any = None,
    shape: tuple[int, int] | None = None,
    maps: Sequence[Map] | None = None,
    scales: Sequence[float] | None = None,
) -> Coadd:
    """Co-add exposures: drizzle each of them once, from its own pixels, onto one grid.

    Data, variance and mask of an exposure go through the geometry together. The value of an output pixel is
    sum_i a_i w_i d_i / sum_i a_i w_i over the drops i that overlap it by a_i (Fruchter & Hook 2002, eqs. 3-5), its
    variance sum_i (a_i w_i)^2 v_i / (sum_i a_i w_i)^2.

    Parameters
    ----------
    exposures : sequence of Exposure, or of whatever `skyloom.read` takes
        The images. The first one gives the flux scale. Those without variance get one from `skyloom.noise`.
    options : CoaddOptions, optional
        Kernel, weights, sky, flux scale, rejection.
    wcs : APE-14 WCS, optional
        Output grid. By default a tangent plane that holds all exposures, see `output_wcs_from`.
    shape : (int, int), optional
        Shape (ny, nx) of the output grid. By default that of `wcs`, or, with `maps`, of the first exposure.
    maps : sequence of callable, optional
        For exposures without WCS: from the pixels of each exposure to output pixels, ``(N, 2) -> (N, 2)``.
    scales : sequence of float, optional
        Factor for each exposure, instead of ``options.flux_scale``.

    Returns
    -------
    Coadd

    Raises
    ------
    NoOverlapError
        No exposure has a usable pixel on the output grid. A single one that has none is left out with a
        `SkyloomWarning`.
    WcsError
        An exposure has neither WCS nor map, or the grid that would hold all is absurd.
    InputError
        No exposures, or an option that makes no sense.
    """
    from skyloom.io import read

    exposures = [each if isinstance(each, Exposure) else read(each) for each in exposures]
    options = options or CoaddOptions()
    if not exposures:
        raise InputError("There are no exposures to co-add; at least one is needed.")
    factors = _given_scales(exposures, options, scales)
    wcs, shape = _grid(exposures, options, wcs, shape, maps)
    frames, used = [], []
    for k, exposure in enumerate(exposures):
        to_grid, from_grid = _maps_of(exposure, wcs, None if maps is None else maps[k])
        sampled = SampledMap(to_grid, exposure.shape)
        if not _overlaps(sampled, exposure.usable, shape):
            warnings.warn(
                f"{exposure.name} has no usable pixel on the output grid and is left out.", SkyloomWarning, stacklevel=2
            )
            continue
        subtract = options.background == "subtract"
        frames.append(make_frame(exposure, sampled, from_grid(), factors[k], subtract_sky=subtract))
        used.append(k)
    if not frames:
        raise NoOverlapError(
            f"None of the {len(exposures)} exposures has a usable pixel on the output grid of {shape[1]} x {shape[0]} "
            "pixels. Check the WCS or the maps.",
            names=[exposure.name for exposure in exposures],
        )
    if options.background == "match":
        frames = match_levels(frames, shape)
    nothing = [np.zeros(frame.data.shape, bool) for frame in frames]
    outliers = find_outliers(frames, shape, options.rejection) if options.reject else nothing
    result = _drizzle(frames, outliers, shape, options)
    exposure = _exposure(result, frames, [exposures[k] for k in used], exposures[0], wcs)
    if options.saturated == "flag":
        exposure = exposure.replace(mask=exposure.mask | (result.culprits & np.uint32(MaskBit.SATURATED)))
    return Coadd(
        exposure=exposure,
        weight=result.weight,
        context=result.context,
        exptime_map=_exptime_map(result.context, frames),
        names=tuple(frame.name for frame in frames),
        n_rejected=tuple(int(found.sum()) for found in outliers),
        scales=tuple(factors[k] for k in used),
        options=options,
        covariance=result.covariance,
    )


# --- geometry -----------------------------------------------------------------------------------


def _given_scales(exposures: Sequence[Exposure], options: CoaddOptions, scales: Sequence[float] | None) -> list[float]:
    if scales is None:
        return flux_scales(exposures, options.flux_scale)
    factors = [float(scale) for scale in scales]
    if len(factors) != len(exposures) or not all(np.isfinite(factor) and factor > 0 for factor in factors):
        raise InputError(
            f"scales is {factors}; it must hold a finite number above 0 for each of the {len(exposures)} exposures.",
            scales=factors,
        )
    return factors


def _grid(
    exposures: Sequence[Exposure], options: CoaddOptions, wcs: Any, shape: Any, maps: Sequence[Map] | None
) -> tuple[Any, tuple[int, int]]:
    """Return the WCS (None if there is none) and the shape of the output grid."""
    if maps is not None:
        if len(maps) != len(exposures):
            raise InputError(f"There are {len(maps)} maps for {len(exposures)} exposures; give one for each.")
        shape = exposures[0].shape if shape is None else shape
    elif wcs is None:
        if shape is not None:
            raise InputError("A shape was given without wcs= or maps=; the output grid needs one of them too.")
        return output_wcs_from(exposures, pixel_scale=options.pixel_scale, rotation=options.rotation)
    elif shape is None:
        shape = getattr(wcs, "array_shape", None)
        if shape is None:
            raise WcsError("The output WCS does not know the shape of its image; give shape=(ny, nx).")
    ny, nx = (int(n) for n in shape)
    if ny < 1 or nx < 1:
        raise InputError(f"The output shape is {shape}; both numbers must be at least 1.", shape=shape)
    return wcs, (ny, nx)


def _maps_of(exposure: Exposure, wcs: Any, given: Map | None) -> tuple[Map, Any]:
    """Return the map to the output grid, and a function that makes the one back."""
    if given is not None:
        return given, lambda: invert_map(given, exposure.shape)
    if exposure.wcs is None:
        raise WcsError(
            f"{exposure.name} has no WCS. Register the exposures and give maps=, or leave it out.", name=exposure.name
        )
    return wcs_map(exposure.wcs, wcs), lambda: wcs_map(wcs, exposure.wcs)


def _overlaps(sampled: SampledMap, usable: BoolArray, shape: tuple[int, int]) -> bool:
    step = 64
    for start in range(0, sampled.shape[0], step):
        stop = min(start + step, sampled.shape[0])
        x, y = np.moveaxis(sampled.rows(start, stop), 2, 0)
        inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
        if (inside & usable[start:stop]).any():
            return True
    return False


# --- the sum ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Sum:
    """What drizzling gives, on the output grid."""

    data: npt.NDArray[Any]
    variance: npt.NDArray[Any]
    weight: npt.NDArray[Any]
    dq: npt.NDArray[np.uint32]
    context: npt.NDArray[np.int32]
    culprits: npt.NDArray[np.uint32]
    shares: tuple[float, ...]  # part of the total weight that each frame has
    correlation: float
    covariance: CovarianceMap | None


def _drizzle(
    frames: Sequence[Frame], outliers: Sequence[BoolArray], shape: tuple[int, int], options: CoaddOptions
) -> _Sum:
    dtype = np.result_type(*(frame.data for frame in frames))
    data, weights = np.zeros(shape, dtype), np.zeros(shape, dtype)
    drizzle = Drizzle(
        fillval=0.0,
        out_img=data,
        out_wht=weights,
        out_dq=np.zeros(shape, np.uint32),
        out_img2=[np.zeros(shape, dtype)],
        max_ctx_id=len(frames) - 1,
        covariance=options.covariance,
    )
    culprits = np.zeros(shape, np.uint32)
    shares = []
    # sum_i a_i w_i^2 v_i: over W^2, the variance that means of many pixels have, as the shares a_i of a drop sum to 1
    total = np.zeros((len(range(0, shape[0], _PROBED_ROWS)), shape[1]))
    before = np.zeros_like(total)
    for frame, found in zip(frames, outliers, strict=True):
        pixmap: XYArray = frame.to_grid.rows(0, frame.data.shape[0])
        use = frame.usable & ~found
        mask = np.where(found, frame.mask | np.uint32(MaskBit.COSMIC_RAY), frame.mask)
        culprits |= spread_bits(mask, pixmap, shape)
        weight = np.where(use, _weight(frame, options), 0.0)
        drizzle.add_image(
            frame.data,
            exptime=frame.exptime or 1.0,
            pixmap=pixmap,
            weight_map=weight,
            data2=[frame.variance],
            dq=np.where(use, frame.mask, np.uint32(0)),
            pixfrac=options.pixfrac,
        )
        after = weights[::_PROBED_ROWS].astype(np.float64)
        shares.append(float((after - before).sum()))
        noise = float(np.median((weight * frame.variance)[use])) if use.any() else 0.0
        total += (after - before) * noise
        before = after
    assert drizzle.out_img2 is not None
    assert drizzle.out_ctx is not None
    variance = drizzle.out_img2[0]
    # both variances weighted by W^2, so that the ragged border, with its few drops, counts little
    shared = float((variance[::_PROBED_ROWS] * before**2).sum())
    return _Sum(
        data=data,
        variance=variance,
        weight=weights,
        dq=np.asarray(drizzle.out_dq, np.uint32),
        context=drizzle.out_ctx,
        culprits=culprits,
        shares=tuple(np.array(shares) / max(sum(shares), np.finfo(float).tiny)),
        correlation=max(1.0, float(total.sum()) / shared) if shared > 0 else 1.0,
        covariance=drizzle.covariance,
    )


def _weight(frame: Frame, options: CoaddOptions) -> Any:
    if options.weight == "ivm":
        return 1 / sky_variance(frame)
    if options.weight == "uniform":
        return 1.0
    if not frame.exptime > 0:
        raise InputError(f"{frame.name} has no exposure time, but weight is 'exptime'.", name=frame.name)
    # data of exposure time t were scaled by 1/t: the weight is that of the counts
    return frame.exptime


def _exptime_map(context: npt.NDArray[np.int32], frames: Sequence[Frame]) -> npt.NDArray[np.float32]:
    """Return the sum of the exposure times of the frames whose bits are set."""
    seconds = np.zeros(context.shape[1:], np.float32)
    for k, frame in enumerate(frames):
        seconds += np.float32(frame.exptime) * ((context[k // 32] >> (k % 32)) & 1)
    return seconds


def _exposure(
    result: _Sum, frames: Sequence[Frame], inputs: Sequence[Exposure], reference: Exposure, wcs: Any
) -> Exposure:
    empty = result.weight <= 0
    if empty.all():
        raise NoOverlapError("No output pixel has a usable input pixel: all that overlap are masked or rejected.")
    mask = np.where(empty, result.culprits | np.uint32(MaskBit.NO_DATA), result.dq)
    times = [frame.exptime for frame in frames]
    header: dict[str, Any] = {"NCOMBINE": len(frames)}
    if all(times):
        header["TEXPTIME"] = sum(times)
    return Exposure(
        data=np.where(empty, 0, result.data),
        variance=np.where(empty, 0, result.variance),
        mask=mask,
        wcs=wcs,
        gain=_gain(frames, inputs, result.shares),
        exptime=reference.exptime,
        zeropoint=reference.zeropoint,
        correlation=result.correlation
        * float(np.average([exposure.correlation for exposure in inputs], weights=result.shares)),
        unit=reference.unit,
        header=header,
        name=f"co-add of {len(frames)} exposures",
    )


def _gain(frames: Sequence[Frame], inputs: Sequence[Exposure], shares: Sequence[float]) -> float | None:
    """Return the electrons per unit of the co-add: the photon noise of a source of F units is F / gain."""
    if any(exposure.gain is None for exposure in inputs):
        return None
    # an exposure multiplied by f has gain g / f; a mean with shares A has the variance F sum_k A_k^2 f_k / g_k
    terms = [a**2 * f.factor / float(e.gain or 1) for a, f, e in zip(shares, frames, inputs, strict=True)]
    return 1 / sum(terms)
