"""The degree to which a point spread function varies over the image, chosen by its stars."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.psf.analytic import Profile
from skyloom.psf.fit import StarModel, StarStamps, fit_basis
from skyloom.psf.model import polynomial_terms, slopes
from skyloom.psf.sources import core_pixels

Array = npt.NDArray[np.float64]

MIN_STARS = {0: 3, 1: 12, 2: 30}
"""Fewest stars for each order: some three for each polynomial term, and enough to test the choice."""
FOLDS = 4
JUDGES = 60
JUDGED_RADIUS = 2.0
"""So many stars, the best of all parts of the image, decide about the order, with so many FWHM around them."""


def choose_order(stars: StarStamps, profile: Profile, shape: tuple[int, int]) -> int:
    """Choose the degree of the variation by four-fold cross-validation on the stars.

    A higher degree is taken unless it predicts the cores of stars that were left out of the fit (their flux and
    position are free) worse, by more than two standard errors: the priors keep a needless term small, while a
    missing one is a systematic error of all fluxes in a part of the image.
    """
    stars = stars.select(slice(JUDGES)).trimmed(int(np.ceil(JUDGED_RADIUS * profile.fwhm)))
    core = core_pixels(stars.half, profile.fwhm)
    best, best_chi2 = 0, None
    for order, least in MIN_STARS.items():
        if stars.x.size < least:
            break
        terms = polynomial_terms(stars.x, stars.y, order, shape)
        chi2 = np.zeros(stars.x.size)
        for fold in range(FOLDS):
            out = np.arange(stars.x.size) % FOLDS == fold
            basis = fit_basis(stars.select(~out), terms[~out], profile)
            chi2[out] = _free_chi2(stars.select(out), basis, terms[out], core)
        if best_chi2 is not None:
            gain = np.sqrt(best_chi2) - np.sqrt(chi2)  # roots, so that no single star decides
            if gain.mean() < -2 * gain.std() / np.sqrt(gain.size):
                continue
        best, best_chi2 = order, chi2
    return best


def _free_chi2(stars: StarStamps, basis: Array, terms: Array, core: npt.NDArray[np.bool_]) -> Array:
    """Chi-square of each star's core, with its flux and position fitted (to first order) to this PSF."""
    model = StarModel(stars, terms)
    columns = np.stack([model.forward(images) for images in (basis, *slopes(basis))], axis=-1)[:, core]
    root = np.sqrt(stars.weight[:, core])
    values = (stars.data[:, core] - columns[..., 0]) * root
    columns = columns * root[..., None]
    matrix = columns.transpose(0, 2, 1) @ columns
    vector = (columns.transpose(0, 2, 1) @ values[..., None])[..., 0]
    solution = (np.linalg.pinv(matrix, hermitian=True) @ vector[..., None])[..., 0]
    return np.asarray((values**2).sum(axis=1) - (vector * solution).sum(axis=1))
