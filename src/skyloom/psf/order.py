"""The degree to which a point spread function varies over the image, chosen by its stars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.psf.fit import PRIOR_MODE, StarModel, StarStamps, variation_modes
from skyloom.psf.model import polynomial_terms, slopes
from skyloom.psf.sources import core_pixels

Array = npt.NDArray[np.float64]

MIN_STARS = {0: 3, 1: 12, 2: 30}
"""Fewest stars for each order: some three for each polynomial term, and enough to test the choice."""
FOLDS = 4
MARGIN = 3.0
"""Standard errors by which a higher degree may predict worse."""
JUDGES = 60
JUDGED_RADIUS = 1.5
"""So many stars, the best of all parts of the image, decide about the order, with so many FWHM around them."""


def choose_order(stars: StarStamps, basis: Array, fwhm: float, shape: tuple[int, int]) -> int:
    """Choose the degree of the variation by four-fold cross-validation on the stars.

    Degree 0 is judged by what is left of the stars that it was fitted to, the others by stars that were left out. What
    a constant PSF leaves of the stars, r_s, is fitted by ``sum_k p_k(s) sum_m a_km B_m`` with the modes and priors of
    `fit_basis`; flux and position of each star are free. A higher degree is taken unless it predicts stars that were
    left out of the fit worse, by more than three standard errors: the priors keep a needless term small, while a
    missing one is a systematic error of all fluxes in a part of the image. What a fit without a fold predicts worse
    only because it has fewer stars than the one to come is taken off (Burman 1989, Biometrika 76, 503, eq. 2.3).

    Parameters
    ----------
    stars : StarStamps
    basis : ndarray, shape (1, n, n)
        The constant PSF.
    fwhm : float
        Pixels.
    shape : tuple of int
        Of the image.

    Returns
    -------
    order : int
    """
    stars = stars.select(slice(JUDGES))
    residual, modes = _projected(stars, basis, fwhm)
    gram = (modes @ modes.transpose(0, 2, 1)).astype(float)
    vector = (modes @ residual[..., None])[..., 0].astype(float)
    fold = np.arange(stars.x.size) % FOLDS
    best, best_chi2 = 0, (residual**2).sum(axis=1)
    for order in (1, 2):
        if stars.x.size < MIN_STARS[order]:
            break
        terms = polynomial_terms(stars.x, stars.y, order, shape)[:, 1:]
        terms = terms - np.average(terms, axis=0, weights=stars.flux)  # what is constant is in the basis

        def errors(used: npt.NDArray[np.bool_], terms: Array = terms) -> Array:
            coefficients = terms @ _solve(terms[used], gram[used], vector[used], PRIOR_MODE * basis[0].max())
            return ((residual - (coefficients[:, None] @ modes)[:, 0]) ** 2).sum(axis=1)

        parts = np.stack([errors(fold != k) for k in range(FOLDS)])
        chi2 = np.maximum(parts[fold, np.arange(fold.size)] + errors(fold >= 0) - parts.mean(axis=0), 0)
        gain = np.sqrt(best_chi2) - np.sqrt(chi2)  # roots, so that no single star decides
        if gain.mean() >= -MARGIN * gain.std() / np.sqrt(gain.size):
            best, best_chi2 = order, chi2
    return best


def _projected(stars: StarStamps, basis: Array, fwhm: float) -> tuple[Array, Array]:
    """Return residuals (n_stars, n_pixels) and modes (n_stars, n_modes, n_pixels), in units of the noise.

    What flux and position of a star could make of them is taken out.
    """
    stars, half = stars.trimmed(int(np.ceil(JUDGED_RADIUS * fwhm))), stars.half
    cut = (half - stars.half) * stars.oversampling
    inner = slice(cut, basis.shape[-1] - cut)
    model, judged = StarModel(stars, np.ones((stars.x.size, 1))), core_pixels(stars.half, fwhm, JUDGED_RADIUS)
    images = np.concatenate([basis, *slopes(basis)])[:, inner, inner]
    images = np.concatenate([images, variation_modes(stars.half, fwhm, stars.oversampling)])
    root = np.sqrt(stars.weight[:, judged])
    planes = np.stack([model.forward(image[None])[:, judged] * root for image in images], axis=1)
    residual = stars.data[:, judged] * root - planes[:, 0]
    free = np.linalg.qr(planes[:, :3].transpose(0, 2, 1))[0]
    rest = np.concatenate([residual[:, None], planes[:, 3:]], axis=1)
    rest -= (rest @ free) @ free.transpose(0, 2, 1)
    return rest[:, 0], rest[:, 1:]


def _solve(terms: Array, gram: Array, vector: Array, prior: float) -> Array:
    """Return the coefficients a_km, shape (n_terms, n_modes), from ``sum_s p p^T x G_s`` and ``sum_s p x g_s``."""
    n_terms, n_modes = terms.shape[1], vector.shape[1]
    products = (terms[:, :, None] * terms[:, None]).reshape(len(terms), -1)
    blocks = (products.T @ gram.reshape(len(gram), -1)).reshape(n_terms, n_terms, n_modes, n_modes)
    matrix = blocks.transpose(0, 2, 1, 3).reshape(n_terms * n_modes, -1)
    solution = np.linalg.solve(matrix + np.eye(len(matrix)) / prior**2, (terms.T @ vector).ravel())
    return np.asarray(solution).reshape(n_terms, -1)
