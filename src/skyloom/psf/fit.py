"""Fit a varying point spread function to stars: a linear, regularised least-squares problem.

``P(u; x, y) = Phi_0(u) + sum_{k>0} p_k(x, y) sum_m a_km B_m(u)``: the samples of Phi_0 are free; the variation over the
field is made of smooth modes B_m, because a few hundred noisy stars cannot tell the variation of every single sample.
All are sampled `oversampling` times a pixel, see `PsfModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.polynomial.hermite_e import hermeval
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import correlate1d, maximum_filter

from skyloom.psf.analytic import Profile, parameter_bounds
from skyloom.psf.model import slopes

Array = npt.NDArray[np.float64]

PRIOR_PIXEL = 0.5
"""Prior standard deviation of a sample of Phi_0 around the analytic profile, relative to that profile."""
PRIOR_MODE = 0.05
"""Prior standard deviation of a_km B_m at its extremum, relative to the peak of the PSF."""
BEST = 60
"""So many stars tell the profile, which is the prior of what all of them tell."""
STEP, LARGEST_STEP, STILL = 1e-4, 0.3, 0.02
"""Of the parameters of the analytic profile: differences, the largest change at a time, and the last one."""
MOST_AUREOLE = 0.2
"""Of the profile, relative to the peak of its core."""
ENOUGH = 1e-4
"""Conjugate gradients stop where the squared residual has fallen to this part: far below the noise of the stars."""
MODE_DEGREES = ((1.0, 4), (2.0, 2))
"""Modes: Gauss-Hermite functions of the PSF's width up to degree 4, and of twice its width up to degree 2."""


@dataclass(frozen=True)
class StarStamps:
    """Stamps of stars, all else subtracted.

    Parameters
    ----------
    data, weight : ndarray, shape (n_stars, n, n)
        Background-free data, and the inverse variance of each pixel (0: not used).
    flux : ndarray, shape (n_stars,)
    to_x, to_y : ndarray, shape (n_stars, n, (n - 1) oversampling + 1)
        Matrices that take a PSF to the pixels of the star, see `shift_matrices`.
    x, y : ndarray, shape (n_stars,)
        Positions in the image.
    """

    data: Array
    weight: Array
    flux: Array
    to_x: Array
    to_y: Array
    x: Array
    y: Array

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return self.data.shape[-1] // 2

    @property
    def oversampling(self) -> int:
        """Samples of the PSF per pixel."""
        return (self.to_x.shape[-1] - 1) // (self.data.shape[-1] - 1)

    def select(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> StarStamps:
        """Return some of the stars."""
        return StarStamps(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def trimmed(self, half: int) -> StarStamps:
        """Return the stars with no more than `half` pixels on each side."""
        cut = max(0, self.half - half)
        inner = slice(cut, self.data.shape[-1] - cut)
        samples = slice(cut * self.oversampling, self.to_x.shape[-1] - cut * self.oversampling)
        planes = {name: getattr(self, name)[:, inner, inner] for name in ("data", "weight")}
        return replace(self, **planes, **{name: getattr(self, name)[:, inner, samples] for name in ("to_x", "to_y")})


class StarModel:
    """The linear map from basis images to star stamps, and its transpose.

    ``M_s = f_s Sy_s (sum_k p_k(s) Phi_k) Sx_s^T``, with the matrices S of `shift_matrices`.
    """

    def __init__(self, stars: StarStamps, terms: Array) -> None:
        self.sy, self.sx = stars.to_y, stars.to_x
        self.terms = (terms * stars.flux[:, None]).astype(stars.data.dtype)

    def forward(self, basis: Array) -> Array:
        """Return the stamps of all stars, shape (n_stars, 2 half + 1, 2 half + 1)."""
        basis = basis.astype(self.terms.dtype)
        stamps = (self.terms @ basis.reshape(len(basis), -1)).reshape(-1, *basis.shape[1:])
        return self.sy @ stamps @ self.sx.transpose(0, 2, 1)

    def adjoint(self, stamps: Array) -> Array:
        """Return the transpose of `forward`, of the shape of the basis."""
        moved = self.sy.transpose(0, 2, 1) @ stamps @ self.sx
        return (self.terms.T @ moved.reshape(len(moved), -1)).reshape(-1, *moved.shape[1:])

    def diagonal(self, weight: Array) -> Array:
        """Return the diagonal of ``M^T w M`` for the samples of Phi_0."""
        spread = (self.sy**2).transpose(0, 2, 1) @ weight @ self.sx**2
        return np.tensordot(self.terms[:, 0] ** 2, spread, 1)


def variation_modes(half: int, fwhm: float, oversampling: int = 1) -> Array:
    """Gauss-Hermite functions ``He_i(x/s) He_j(y/s) exp(-(x**2 + y**2) / (2 s**2))``, see `MODE_DEGREES`.

    Returns
    -------
    modes : ndarray, shape (n_modes, n, n), n = 2 half oversampling + 1
        Scaled to extrema of 1.
    """
    axis = np.arange(-half * oversampling, half * oversampling + 1.0) / oversampling
    modes = []
    for scale, degree in MODE_DEGREES:
        t = axis / (scale * fwhm / np.sqrt(8 * np.log(2)))
        functions = hermeval(t, np.eye(degree + 1)) * np.exp(-(t**2) / 2)
        modes += [np.outer(functions[j], functions[i - j]) for i in range(degree + 1) for j in range(i + 1)]
    return np.stack([mode / np.abs(mode).max() for mode in modes])


def refined_profile(stars: StarStamps, profile: Profile, steps: int = 6) -> Profile:
    """Fit the analytic profile m again to the best stars at once; all else about them is known by now.

    Each step is one of Gauss-Newton: ``D_s = M_s (a m + sum_i b_i dm/dp_i)`` is solved for a and b, and the parameters
    p move by b / a. The aureole, at least 0, is one of them.
    """
    stars, half, oversampling = stars.select(slice(BEST)), stars.half, stars.oversampling
    model, root = StarModel(stars, np.ones((stars.x.size, 1))), np.sqrt(stars.weight)
    data = (root * stars.data).ravel()

    def of(p: Array) -> Profile:
        return replace(Profile.of(p[:-1]), aureole=float(p[-1]))

    for _ in range(steps):
        p = np.append(profile.parameters(), profile.aureole)
        image = effective_profile(profile, half, oversampling)
        slope = [(effective_profile(of(p + one), half, oversampling) - image) / STEP for one in STEP * np.eye(p.size)]
        columns = np.stack([(root * model.forward(one[None])).ravel() for one in (image, *slope)])
        normal, right = (columns @ columns.T).astype(float), (columns @ data).astype(float)
        a, *b = np.linalg.lstsq(normal, right, rcond=1e-10)[0]
        if not a > 0:
            break
        change = np.clip(np.array(b) / a, -LARGEST_STEP, LARGEST_STEP)
        low, high = parameter_bounds(half)[:, : p.size - 1]
        profile = of(np.clip(p + change, [*low, 0.0], [*high, MOST_AUREOLE]))
        if np.abs(change).max() < STILL:
            break
    return profile


def fit_basis(stars: StarStamps, terms: Array, profile: Profile, iterations: int = 12) -> Array:
    """Fit the basis images of a varying PSF to stars.

    Minimises ``sum_s w_s (D_s - M_s)**2 + sum_u (theta / (tau n m'))**2 + sum_km (a_km / tau_a)**2`` by preconditioned
    conjugate gradients, where ``Phi_0 = B theta + m``: n is the oversampling, m the analytic profile, blurred by the
    pixels, m' its maximum over 3 x 3 pixels, and B averages over a pixel (`pixel_blur`; nothing for n = 1). The prior
    holds the samples that the stars do not determine, in the wings, near the profile, so that noise in the wings stays
    below the wings. The preconditioner leaves out B, which changes how fast the solution is reached, not the solution.

    Parameters
    ----------
    stars : StarStamps
    terms : ndarray, shape (n_stars, n_terms)
        Polynomial terms p_k at the stars; the first is 1.
    profile : Profile
        m, before the blurring by the pixels; fitted to the best stars.
    iterations : int
        Steps of the conjugate gradients.

    Returns
    -------
    basis : ndarray, shape (n_terms, n, n), n the samples along a side
        Phi_0 with unit sum and its centroid on the middle pixel; the others with sum and first moments 0.
    """
    n, oversampling = stars.to_x.shape[-1], stars.oversampling
    # polynomials without their mean over the stars: what varies is then told apart from Phi_0
    mean = np.average(terms, axis=0, weights=np.maximum(stars.flux, 0))
    mean[0] = 0.0
    centred = terms - mean
    model = StarModel(stars, centred)
    modes = variation_modes(stars.half, profile.fwhm, oversampling).reshape(-1, n * n)
    prior = effective_profile(profile, stars.half, oversampling)
    tau2 = (PRIOR_PIXEL * oversampling * maximum_filter(prior, 2 * oversampling + 1)).ravel() ** 2
    tau2_mode = (PRIOR_MODE * prior.max()) ** 2
    n_varying, weight = terms.shape[1] - 1, stars.weight

    def to_basis(theta: Array) -> Array:
        varying = theta[n * n :].reshape(n_varying, len(modes)) @ modes
        blurred = pixel_blur(theta[: n * n].reshape(1, n, n), oversampling)
        return np.concatenate([blurred, varying.reshape(-1, n, n)])

    def transpose(basis: Array) -> Array:
        blurred = pixel_blur(basis[0], oversampling)
        return np.concatenate([blurred.ravel(), (basis[1:].reshape(-1, n * n) @ modes.T).ravel()])

    inverse_prior = np.concatenate([1 / tau2, np.full(n_varying * len(modes), 1 / tau2_mode)])
    diagonal = model.diagonal(weight).ravel().astype(float) + 1 / tau2
    at_pixels = modes.reshape(-1, n, n)[:, ::oversampling, ::oversampling].reshape(len(modes), -1)
    factor = _mode_block(model.terms[:, 1:], weight, at_pixels, tau2_mode) if n_varying else None

    def precondition(theta: Array) -> Array:
        pixels = theta[: n * n] / diagonal
        return pixels if factor is None else np.concatenate([pixels, cho_solve(factor, theta[n * n :])])

    basis = to_basis(
        _conjugate_gradients(
            lambda t: transpose(model.adjoint(weight * model.forward(to_basis(t)))) + inverse_prior * t,
            transpose(model.adjoint(weight * (stars.data - StarModel(stars, terms[:, :1]).forward(prior[None])))),
            precondition,
            iterations,
        )
    )
    basis[0] += prior
    basis[0] -= np.tensordot(mean[1:], basis[1:], 1)  # back to the plain polynomials
    return constrain(basis, oversampling)


def effective_profile(profile: Profile, half: int, oversampling: int) -> Array:
    """Return the samples of the effective PSF of an analytic profile, which is blurred by the pixels if these count."""
    return pixel_blur(profile.stamp(half, oversampling=oversampling), oversampling, mode="nearest")


def pixel_blur(images: Array, oversampling: int, mode: str = "constant") -> Array:
    """Return images averaged over a pixel around each sample: an effective PSF holds that blurring, and nothing finer.

    Whatever the sub-pixel phase of a star, the pixels of a blurred image have the same sum.
    """
    if oversampling == 1:
        return images
    even = oversampling % 2 == 0
    box = np.ones(oversampling + even) / oversampling
    box[[0, -1]] *= 0.5 if even else 1.0
    # of samples of a box, the variance is not yet that of a box, 1 / 12: so it is
    share = -1 / 12 if even else 1 / 24
    box = np.convolve(box, [share, 1 - 2 * share, share])
    for axis in (-1, -2):
        images = correlate1d(images, box, axis, mode=mode)
    return images


def _mode_block(terms: Array, weight: Array, modes: Array, tau2: float) -> tuple[Array, bool]:
    """Factor the normal matrix of the modes' coefficients, the stars' sub-pixel shifts left out (a preconditioner)."""
    n_terms, n_modes = terms.shape[1], len(modes)
    first, second = np.triu_indices(n_terms)
    pixels = ((terms[:, first] * terms[:, second]).T @ weight.reshape(len(weight), -1)).astype(float)
    blocks = np.empty((n_terms, n_modes, n_terms, n_modes))
    for i, j, one in zip(first, second, pixels, strict=True):
        blocks[i, :, j] = blocks[j, :, i] = (modes * one) @ modes.T
    block = blocks.reshape(n_terms * n_modes, -1)
    return cho_factor(block + np.eye(len(block)) / tau2)


def _conjugate_gradients(
    normal: Callable[[Array], Array], residual: Array, precondition: Callable[[Array], Array], iterations: int
) -> Array:
    """Solve ``normal(x) = residual`` (Hestenes & Stiefel 1952, preconditioned)."""
    x = np.zeros_like(residual)
    direction = z = precondition(residual)
    rho = first = float(residual @ z)
    for _ in range(iterations):
        if rho <= ENOUGH * first:
            break
        image = normal(direction)
        alpha = rho / float(direction @ image)
        x = x + alpha * direction
        residual = residual - alpha * image
        z = precondition(residual)
        rho, previous = float(residual @ z), rho
        direction = z + rho / previous * direction
    return x


def constrain(basis: Array, oversampling: int = 1) -> Array:
    """Give Phi_0 unit sum over the pixels and a centroid on the middle one, and all other terms sum and moments 0.

    The centroid is weighted with a Gaussian window of Phi_0's own width; a term's moment is taken out with the gradient
    of Phi_0, which is to first order a shift.
    """

    def total(images: Array) -> Array:
        return np.asarray(images[..., ::oversampling, ::oversampling].sum(axis=(-2, -1)))

    basis = basis / total(basis[0])
    n = basis.shape[-1]
    axis = np.arange(n) - n // 2
    radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
    core = np.maximum(basis[0], 0) ** 2
    window = np.exp(-radius2 / (2 * max(float((core * radius2).sum() / core.sum()), 0.5)))
    moments = np.stack([window * axis[None, :], window * axis[:, None]])
    for _ in range(3):
        gradient = slopes(basis[0])
        response = np.tensordot(moments, gradient, ([1, 2], [1, 2]))
        shift = np.linalg.solve(response, np.tensordot(moments, basis, ([1, 2], [1, 2])))
        basis = basis - np.tensordot(shift.T, gradient, 1)
        basis[1:] -= total(basis[1:])[:, None, None] * basis[0]
        basis[0] /= total(basis[0])
    return basis


def residuals(stars: StarStamps, basis: Array, terms: Array) -> Array:
    """Return data minus model for each star, shape (n_stars, n, n)."""
    return stars.data - StarModel(stars, terms).forward(basis)
