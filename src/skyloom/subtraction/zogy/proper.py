"""The proper difference of two images with known point spread functions, in Fourier space.

Science image N and template R see the same sky T through their point spread functions, in noise that is white::

    N = P_n * T + n,    R = beta P_r * T + r,    Var n = s_n^2,  Var r = s_r^2       (flux scales F_n = 1, F_r = beta)

Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27; their equation numbers) derive, with transforms written as is::

    den^2 = s_n^2 beta^2 |P_r|^2 + s_r^2 |P_n|^2
    D     = (beta P_r N - P_n R) / den                                       (13)  white, of unit variance
    F_D   = beta / sqrt(s_n^2 beta^2 + s_r^2)                                (15)  its flux scale
    P_D   = beta P_r P_n / (F_D den)                                         (14)  its point spread function
    S     = F_D conj(P_D) D = k_n N - k_r R                                  (12), (17)
    k_n   = beta^2 conj(P_n) |P_r|^2 / den^2,    k_r = beta conj(P_r) |P_n|^2 / den^2

S(x) over its standard deviation is the significance of a change of a point source at x, and S / F_S its flux, where
F_S = sum_k k_n P_n over the number of frequencies is the answer of S to a source of unit flux.

Where both P vanish (frequencies beyond the resolution of both images, errors of measured stamps) the ratio P / den has
neither size nor phase, and D would be scrambled there over the whole image. `FLOOR` adds a point of that part of the
flux to both filters, though not to the P of sources: then D tends to the plain difference of the images, white still.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from skyloom.proper import total

Array = npt.NDArray[Any]

FLOOR = 5e-4
"""Part of a star's flux, far below what point spread functions are known to, that the filters take for a point."""


@dataclass(frozen=True, eq=False)
class ProperPair:
    """The filters of a proper difference on one FFT grid (or on a stack of such grids: leading axes broadcast).

    Parameters
    ----------
    n, r : ndarray of complex, shape (..., ny, nx // 2 + 1)
        Transforms P_n and P_r of the unit-sum point spread functions of science image and template.
    sigma_n, sigma_r : float
        Standard deviations of the pixels' background noise, each in the unit of its image.
    beta : float
        Flux of a source in the template over its flux in the science image.
    shape : (int, int)
        Shape (ny, nx) of the grid.
    """

    n: Array
    r: Array
    sigma_n: float
    sigma_r: float
    beta: float
    shape: tuple[int, int]

    @cached_property
    def _filters(self) -> tuple[Array, Array, Array]:
        """P_n and P_r as the filters take them, and den."""
        n, r = ((1 - FLOOR) * p + FLOOR for p in (self.n, self.r))
        real = n.real.dtype.type
        den = np.sqrt(
            real((self.sigma_n * self.beta) ** 2) * (r.real**2 + r.imag**2)
            + real(self.sigma_r**2) * (n.real**2 + n.imag**2)
        )
        return n, r, den

    @property
    def flux_scale(self) -> float:
        """F_D: the flux in D, whose noise is 1, of a source of unit flux in the science image."""
        return self.beta / float(np.hypot(self.sigma_n * self.beta, self.sigma_r))

    @cached_property
    def difference_filters(self) -> tuple[Array, Array]:
        """What N and R are multiplied with in D / F_D: the difference in the flux unit of the science image."""
        n, r, den = self._filters
        scale = 1 / (self.flux_scale * den)
        return self.beta * scale * r, scale * n

    @property
    def psf(self) -> Array:
        """P_D, of a source that is seen in the science image only."""
        return self.difference_filters[0] * self.n

    @cached_property
    def score_filters(self) -> tuple[Array, Array]:
        """k_n and k_r: S = k_n N - k_r R."""
        n, r, den = self._filters
        square = self.beta / den**2
        r2, n2 = r.real**2 + r.imag**2, n.real**2 + n.imag**2
        return self.beta * square * r2 * n.conj(), square * n2 * r.conj()

    @cached_property
    def score_flux(self) -> npt.NDArray[np.float64]:
        """F_S: what a source of unit flux in the science image adds to S on its own pixel, shape (...)."""
        return total((self.score_filters[0] * self.n).real, self.shape)

    def beta_derivative(self, n: Array, r: Array) -> Array:
        """Return dD / dbeta of the whitened difference D, for the transforms of the images.

        dD/dbeta = P_r P_n (s_r^2 conj(P_n) N + beta s_n^2 conj(P_r) R) / den^3: den depends on beta as well, and so
        noise in N and R does not draw the fit of beta to one side.
        """
        p_n, p_r, den = self._filters
        both = self.sigma_r**2 * p_n.conj() * n + self.beta * self.sigma_n**2 * p_r.conj() * r
        return p_r * p_n * both / (den * den * den)


def moved(shift: tuple[float, float], shape: tuple[int, int]) -> Array:
    """Return what multiplies the transform of an image, shape (ny, nx // 2 + 1), to move it by (x, y) pixels."""
    ny, nx = shape
    return np.exp(-2j * np.pi * (shift[0] * fft.rfftfreq(nx)[None, :] + shift[1] * fft.fftfreq(ny)[:, None]))


def centred(grid: Array, half: int) -> Array:
    """Return the (2 half + 1) x (2 half + 1) pixels around the origin of periodic planes, shape (..., ny, nx)."""
    index = np.arange(-half, half + 1)
    return grid[..., index[:, None] % grid.shape[-2], index % grid.shape[-1]]
