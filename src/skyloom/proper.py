"""Sums of images in Fourier space, each weighted by its PSF and noise: the formulas of Zackay & Ofek.

Zackay & Ofek (2017, ApJ 836, 188, "How to COAAD images. II"): of images M_j = F_j P_j * T + noise with white noise of
standard deviation sigma_j, and PSFs P_j of unit sum, the image

    R^ = sum_j F_j conj(P_j^) M_j^ / sigma_j^2  /  sqrt( sum_j F_j^2 |P_j^|^2 / sigma_j^2 )            (eq. 7)

is a sufficient statistic for the sky T: any optimal measurement (detection, photometry, difference) can be made on it.
Its noise is white, and it has the PSF and the flux scale

    P_R^ = sqrt( sum_j F_j^2 |P_j^|^2 / sigma_j^2 ) / F_R,   F_R = sqrt( sum_j F_j^2 / sigma_j^2 ).      (eqs. 10, 8)

Everything here takes and returns half spectra as of `scipy.fft.rfft2`; nothing knows of exposures, masks or tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from skyloom.errors import ShapeError

Spectrum = npt.NDArray[Any]

_FLOOR = 1e-12
"""Of the largest value of the sum of powers: below, there is no signal, and a division would make noise of rounding."""


def psf_spectrum(stamp: npt.ArrayLike, shape: tuple[int, int]) -> Spectrum:
    """Return the transform of a PSF whose middle pixel is moved to pixel (0, 0), so that it shifts nothing.

    Parameters
    ----------
    stamp : array_like, shape (n, m), n and m odd
        The PSF, centred on the middle pixel.
    shape : (int, int)
        Shape (ny, nx) of the images.

    Returns
    -------
    ndarray of complex, shape (ny, nx // 2 + 1)

    Raises
    ------
    ShapeError
        The stamp is larger than the images, or has no middle pixel.
    """
    small = np.asarray(stamp, np.float64)
    if small.ndim != 2 or any(n % 2 == 0 or n > m for n, m in zip(small.shape, shape, strict=True)):
        raise ShapeError(
            f"A PSF of shape {small.shape} for images of {shape}; odd sides that are not larger are needed.",
            found=small.shape,
            needed=shape,
        )
    return transfer(small, shape)


def transfer(stamp: Spectrum, shape: tuple[int, int], dtype: npt.DTypeLike = np.complex128) -> Spectrum:
    """Return the transform of a stamp whose middle pixel lies on the origin of an FFT grid.

    Written as two products with the (small) matrices of the discrete transform, which costs less than an FFT of the
    whole grid.

    Parameters
    ----------
    stamp : ndarray, shape (..., n, n)
        n odd. What lies beyond the grid wraps around.
    shape : (int, int)
        Shape (ny, nx) of the grid.

    Returns
    -------
    ndarray of complex, shape (..., ny, nx // 2 + 1)
        As `scipy.fft.rfft2` of the embedded stamp.
    """
    ny, nx = shape
    u = np.arange(stamp.shape[-2]) - stamp.shape[-2] // 2
    v = np.arange(stamp.shape[-1]) - stamp.shape[-1] // 2
    along_y = np.exp(-2j * np.pi * fft.fftfreq(ny)[:, None] * u).astype(dtype)
    along_x = np.exp(-2j * np.pi * v[:, None] * fft.rfftfreq(nx)).astype(dtype)
    return (along_y @ (stamp @ along_x)).astype(dtype, copy=False)


def total(half_plane: Spectrum, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the mean over all frequencies of what is known on half of them (the transform of a real image)."""
    ny, nx = shape
    weight = np.full(half_plane.shape[-1], 2.0)
    weight[0] = 1
    if nx % 2 == 0:
        weight[-1] = 1
    return np.asarray((half_plane.sum(axis=-2, dtype=np.float64) @ weight) / (ny * nx))


class ProperSum:
    """The running sums of eq. 7, image by image.

    Parameters
    ----------
    shape : (int, int)
        Shape (ny, nx) of the images.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        half = shape[0], shape[1] // 2 + 1
        self.matched: Spectrum = np.zeros(half, np.complex128)
        """sum_j F_j conj(P_j^) M_j^ / sigma_j^2: the numerator; its image is the matched filter of all images."""
        self.power: Spectrum = np.zeros(half)
        """sum_j F_j^2 |P_j^|^2 / sigma_j^2."""
        self.flux2 = 0.0
        """F_R^2 = sum_j F_j^2 / sigma_j^2."""

    def add(self, image: Spectrum | None, psf: Spectrum, sigma: float, flux: float = 1.0) -> None:
        """Add one image.

        Parameters
        ----------
        image : ndarray of complex, or None
            Transform of the image. None: only its PSF and noise are added (to `power`).
        psf : ndarray of complex
            Transform of its PSF, see `psf_spectrum`.
        sigma : float
            Standard deviation of its noise.
        flux : float
            F_j: what a source of flux 1 has in it.
        """
        if image is not None:
            self.add_change(image, psf, sigma, flux)
        self.power += flux**2 / sigma**2 * np.abs(psf) ** 2
        self.flux2 += flux**2 / sigma**2

    def add_change(self, change: Spectrum, psf: Spectrum, sigma: float, flux: float = 1.0) -> None:
        """Add to one of the images that are in the sum already: its power stays."""
        self.matched += flux / sigma**2 * np.conj(psf) * change

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of `image`: 1 / F_R."""
        return float(self.flux2**-0.5)

    def whitening(self) -> Spectrum:
        """Return 1 / sqrt(power), 0 where there is no power."""
        floor = _FLOOR * float(self.power.max())
        return np.where(self.power > floor, 1 / np.sqrt(np.maximum(self.power, floor)), 0.0)

    def image(self) -> npt.NDArray[np.float64]:
        """Return R / F_R, shape (ny, nx): the proper co-add in units of flux, whose sources have the PSF `psf`."""
        return np.asarray(fft.irfft2(self.matched * self.whitening(), self.shape) * self.noise)

    def psf(self, half: int) -> npt.NDArray[np.float64]:
        """Return P_R, shape (2 half + 1, 2 half + 1), centred on the middle pixel, with unit sum."""
        whole = fft.irfft2(np.sqrt(self.power) * self.noise, self.shape)
        rows, columns = (np.arange(-half, half + 1) % n for n in self.shape)
        stamp = whole[np.ix_(rows, columns)]
        return np.asarray(stamp / stamp.sum())

    def kernel(self, psf: Spectrum, sigma: float, flux: float = 1.0) -> npt.NDArray[np.float64]:
        """Return what an image is convolved with on its way into `image`, middle at (0, 0), shape (ny, nx)."""
        spectrum = flux / sigma**2 * np.conj(psf) * self.whitening() * self.noise
        return np.asarray(fft.irfft2(spectrum, self.shape))

    def signal_to_noise(self, flux: float = 1.0) -> float:
        """Return the S/N of the optimal measurement of a point source: flux (sum over frequencies of power / N)^1/2."""
        return float(flux * np.sqrt(total(self.power, self.shape)))
