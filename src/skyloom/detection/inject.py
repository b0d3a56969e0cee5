"""Put artificial sources into images, to measure what is found of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError
from skyloom.exposure import Exposure, MaskBit
from skyloom.psf import Psf, stamp_at


def inject(
    exposure: Exposure,
    psf: Psf,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    flux: npt.ArrayLike,
    *,
    rng: np.random.Generator | None = None,
) -> Exposure:
    """Return a copy of an exposure with point sources added.

    With a gain and a random generator the sources bring their photon noise, and the variance plane grows by
    ``model / gain``. Sources of negative flux bring no noise.

    Parameters
    ----------
    exposure : Exposure
    psf : Psf
    x, y : array_like, shape (N,)
        Positions, 0-based pixels; a source may lie partly, or wholly, outside of the image.
    flux : array_like, shape (N,)
        Fluxes in the unit of the data.
    rng : numpy.random.Generator, optional
        Without it, the noiseless sources are added.

    Returns
    -------
    exposure : Exposure
        Its mask is that of the input, and where the sum is above the saturation level, `MaskBit.SATURATED`.

    Raises
    ------
    InputError
        Positions and fluxes differ in number or are not finite; or noise is asked for and the gain is unknown.
    """
    x, y, flux = (np.atleast_1d(np.asarray(values, float)) for values in (x, y, flux))
    if not (x.shape == y.shape == flux.shape and x.ndim == 1):
        raise InputError(f"x, y and flux have the shapes {x.shape}, {y.shape} and {flux.shape}; they must be the same.")
    if not np.isfinite([x, y, flux]).all():
        raise InputError("A position or flux to inject is not finite; leave such sources out.")
    if rng is not None and exposure.gain is None:
        raise InputError(
            f"{exposure.name} has no gain, so the photon noise of the sources is unknown; set the gain, or "
            "pass rng=None for sources without noise."
        )
    half, (ny, nx) = psf.half, exposure.shape
    model = np.zeros((ny + 2 * half + 1, nx + 2 * half + 1))
    for px, py, f in zip(x, y, flux, strict=True):
        ix, iy = round(px), round(py)
        if not (-half <= ix < nx + half and -half <= iy < ny + half):
            continue
        stamp = f * stamp_at(psf, px, py, px - ix, py - iy)
        y0, x0 = max(iy, 0), max(ix, 0)
        target = model[y0 : iy + 2 * half + 1, x0 : ix + 2 * half + 1]
        target += stamp[y0 - iy :, x0 - ix :][: target.shape[0], : target.shape[1]]
    model = model[half : half + ny, half : half + nx]
    added, variance = model, exposure.variance
    if rng is not None and exposure.gain is not None:
        light = np.maximum(model, 0)
        added = rng.poisson(light * exposure.gain) / exposure.gain + np.minimum(model, 0)
        if variance is not None:
            variance = np.where(variance > 0, variance + light / exposure.gain, 0)
    seen = (exposure.mask & np.uint32(MaskBit.NO_DATA)) == 0  # pixels without data stay at 0
    data = (exposure.data + np.where(seen, added, 0)).astype(exposure.data.dtype)
    return exposure.replace(data=data, variance=variance)
