"""`Coadd`: a co-added image with all that belongs to it, in memory or in the file that it was written to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import NoUsableDataError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.resampling.correlation import CovarianceMap
from skyloom.stacking.light import frame_rows
from skyloom.stacking.memory import Plane, Window
from skyloom.stacking.options import CoaddOptions

_PSF_REGION = 1024  # pixels a side of the part of a large co-add whose stars give the PSF


@dataclass(frozen=True)
class Contribution:
    """What one exposure brings to a co-add.

    Parameters
    ----------
    name : str
        The exposure.
    exptime : float
        Seconds; 0 if unknown.
    scale : float
        Its flux scale: what fluxes were multiplied with.
    factor : float
        What its pixel values were multiplied with.
    sky : (float, float, float)
        Level and gradient that were subtracted, in the units of the co-add; see `skyloom.stacking.sky`.
    n_rejected : int
        Outlying pixels.
    weight : float
        Sum of the weights that it has added.
    gain : float
        Electrons of the exposure per unit of the co-add; 0 if unknown.
    correlation : float
        Noise correlation of the exposure.
    level : float
        Of its sky, in its own unit; NaN if unknown.
    fwhm : float
        Of its stars, pixels; 0 if they were not looked at.
    n_stars : int
        Stars that it was placed by; 0 if by none.
    """

    name: str
    exptime: float
    scale: float
    factor: float
    sky: tuple[float, float, float]
    n_rejected: int
    weight: float
    gain: float
    correlation: float
    level: float = float("nan")
    fwhm: float = 0.0
    n_stars: int = 0


@dataclass(frozen=True, eq=False)
class Coadd:
    """A co-added image.

    Planes are read when they are first asked for, if the co-add lies in a file.

    Parameters
    ----------
    planes : mapping of str to Plane
        SCI, VAR, WHT, DQ, CTX, EXPTIME.
    fields : mapping
        Of the exposure, besides its planes.
    contributions : tuple of Contribution
        The exposures that contribute, in the order of the context.
    options : CoaddOptions
        What it was made with.
    covariance : CovarianceMap, optional
        Noise covariances between neighbouring pixels, for the errors of apertures.
    known_psf : object, optional
        Its PSF, if that is known otherwise than from its stars.
    path : Path, optional
        The file.
    """

    planes: Mapping[str, Plane]
    fields: Mapping[str, Any]
    contributions: tuple[Contribution, ...]
    options: CoaddOptions
    covariance: CovarianceMap | None = None
    known_psf: Any = None
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (ny, nx) of the output grid."""
        ny, nx = self.planes["SCI"].shape
        return ny, nx

    @cached_property
    def exposure(self) -> Exposure:
        """The image on the output grid: on the flux scale (and with `zeropoint`, `exptime`, `unit`) of the first
        exposure, with variance, mask, WCS, and the noise correlation that resampling brings.
        """  # noqa: D205
        data, variance, mask = (self.planes[name].read() for name in ("SCI", "VAR", "DQ"))
        return Exposure(data, variance, mask, **self.fields)

    @cached_property
    def weight(self) -> npt.NDArray[Any]:
        """Sum of weights, float, shape (ny, nx); 0 where there are no data.

        For 'ivm' the inverse of the variance that independent sky pixels would have.
        """
        return self.planes["WHT"].read()

    @cached_property
    def context(self) -> npt.NDArray[np.int32]:
        """Bit b of plane p is set where exposure 32 p + b (in the order of `names`) contributes: (planes, ny, nx)."""
        return self.planes["CTX"].read()

    @cached_property
    def exptime_map(self) -> npt.NDArray[np.float32]:
        """Total exposure time of the contributing exposures, seconds, shape (ny, nx)."""
        return self.planes["EXPTIME"].read()

    @cached_property
    def psf(self) -> Any:
        """PSF of the co-add (see `skyloom.psf.Psf`): known from the method, or measured from its stars.

        None if there are too few of them. Of a large co-add, the middle is measured.
        """
        if self.known_psf is not None:
            return self.known_psf
        from skyloom.psf import estimate_psf

        large = max(self.shape) > 2 * _PSF_REGION
        try:
            return estimate_psf(self.cutout(self._middle()), order=0) if large else estimate_psf(self.exposure)
        except (TooFewSourcesError, NoUsableDataError):
            return None

    def _middle(self) -> Window:
        low = [max(0, (n - _PSF_REGION) // 2) for n in self.shape]
        rows, columns = (slice(a, min(n, a + _PSF_REGION)) for a, n in zip(low, self.shape, strict=True))
        return rows, columns

    def cutout(self, window: Window) -> Exposure:
        """Return a part of the image, without WCS."""
        data, variance, mask = (self.planes[name].read(window) for name in ("SCI", "VAR", "DQ"))
        return Exposure(data, variance, mask, **{**self.fields, "wcs": None})

    @property
    def names(self) -> tuple[str, ...]:
        """The exposures that contribute."""
        return tuple(one.name for one in self.contributions)

    @property
    def n_exposures(self) -> int:
        """Number of exposures that contribute."""
        return len(self.contributions)

    @property
    def n_rejected(self) -> tuple[int, ...]:
        """Outlying pixels that were found in each exposure."""
        return tuple(one.n_rejected for one in self.contributions)

    @property
    def scales(self) -> tuple[float, ...]:
        """Flux scale of each exposure."""
        return tuple(one.scale for one in self.contributions)

    @property
    def wcs(self) -> Any:
        """WCS of the output grid; None if it was given as maps without one."""
        return self.fields["wcs"]

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What each exposure brings, for tables and JSON: see `skyloom.stacking.light.frame_rows`."""
        return frame_rows(self.contributions, str(self.fields["unit"]))

    def contributors(self, x: int, y: int) -> list[str]:
        """Return the names of the exposures that contribute to one pixel."""
        bits = self.planes["CTX"].read((slice(y, y + 1), slice(x, x + 1)))
        return [name for k, name in enumerate(self.names) if bits[k // 32, 0, 0] >> (k % 32) & 1]

    def write(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, inputs: Sequence[str | os.PathLike[str]] = ()
    ) -> Path:
        """Write the co-add: SCI, ERR, DQ, WHT (weight), CTX (context), EXPTIME, INPUTS (what each exposure brings).

        COVAR, the covariances, and PSF follow if they are known. `read_coadd` reads the file, and `coadd` can go on
        with it.

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
        from skyloom.stacking.files import write_coadd

        return write_coadd(self, path, overwrite=overwrite, inputs=inputs)

    def __repr__(self) -> str:
        ny, nx = self.shape
        return f"<Coadd of {self.n_exposures} exposures, {nx}x{ny}, by {self.options.method}>"


def exposure_fields(
    contributions: Sequence[Contribution], reference: Mapping[str, Any], wcs: Any, correlation: float
) -> dict[str, Any]:
    """Return the fields of a co-add's exposure besides its planes.

    Parameters
    ----------
    contributions : sequence of Contribution
        All exposures.
    reference : mapping
        exptime, zeropoint and unit of the first one.
    wcs : object
        Of the output grid.
    correlation : float
        Noise correlation of the co-add.
    """
    shares = np.array([one.weight for one in contributions])
    shares = shares / max(shares.sum(), np.finfo(float).tiny)
    header: dict[str, Any] = {"NCOMBINE": len(contributions)}
    times = [one.exptime for one in contributions]
    if all(times):
        header["TEXPTIME"] = sum(times)
    return {
        **reference,
        "wcs": wcs,
        "gain": _gain(contributions, shares),
        "correlation": correlation,
        "header": header,
        "name": f"co-add of {len(contributions)} exposures",
    }


def _gain(contributions: Sequence[Contribution], shares: npt.NDArray[np.float64]) -> float | None:
    """Return the electrons per unit of the co-add: the photon noise of a source of F units is F / gain."""
    if any(not one.gain for one in contributions):
        return None
    # a mean with shares A has the variance F sum_k A_k^2 / g_k
    total = sum(a**2 / one.gain for a, one in zip(shares, contributions, strict=True))
    return float(1 / total) if total > 0 else None


def options_for_more(earlier: Coadd | None) -> CoaddOptions:
    """Return the options by default: those of the co-add that is extended, but for the factors of its exposures."""
    if earlier is None:
        return CoaddOptions()
    how = earlier.options.flux_scale
    return dataclasses.replace(earlier.options, flux_scale=how if isinstance(how, str) else "auto")


def plain_options(options: CoaddOptions) -> dict[str, Any]:
    """Return the options as JSON can hold them."""
    return dataclasses.asdict(options)
