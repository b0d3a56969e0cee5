"""Positions and fluxes of crowded stars: the point spread function is fitted to all of them at once.

Each star is the PSF P of its place, moved to (x, y), times its flux f (Stetson 1987, PASP 99, 191). The data d of the
pixels p in the cores of the stars are described by sum_k f_k P(p - x_k, p - y_k): Gauss-Newton steps solve

    (J^T W J + prior) step = J^T W (d - model) - prior (x - x_0)

for the fluxes and positions of all stars together, so that neighbours do not pull at each other. J holds the
derivatives by f, x and y; W the inverse variances. Stars that do not overlap share no element of the sparse matrix.

What the fit leaves over shows stars that were hidden by brighter ones; they are fitted with the others from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from skyloom.exposure import BoolArray, FloatArray
from skyloom.extraction import extract

if TYPE_CHECKING:
    from skyloom.psf import PsfModel

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]

_MOST_STEPS = 10
_STILL = 2e-3
"""Pixels: a step by which no star moves farther is the last."""

_LARGEST_STEP = 0.3
_PRIOR = 0.5
"""Standard deviation of the first positions, in FWHM: two peaks of one star must not run away from each other."""

_SYSTEMATIC = 0.02
"""Error of the PSF in proportion to itself."""

_HIDDEN, _HIDDEN_SYSTEMATIC, _HIDDEN_ROUNDS = 2.0, 0.05, 3
"""Threshold of residuals that are new stars, the error of the PSF there in proportion to it, how often to look."""

_CHUNK = 2000


@dataclass(frozen=True)
class FittedStars:
    """Positions (N, 2) and fluxes (N,) of stars, their standard errors, and which of them could be fitted."""

    xy: Float
    flux: Float
    xy_err: Float
    flux_err: Float
    good: BoolArray


def fit_stars(
    data: FloatArray, noise: FloatArray, dead: BoolArray | None, xy: Float, psf: PsfModel, *, gain: float | None
) -> FittedStars:
    """Fit fluxes and positions of all stars of an image.

    Parameters
    ----------
    data, noise : ndarray, shape (ny, nx)
        Background-free data and standard deviation per pixel.
    dead : ndarray of bool, shape (ny, nx), or None
        Pixels of weight 0.
    xy : ndarray, shape (N, 2)
        First positions.
    psf : PsfModel
        Point spread function.
    gain : float or None
        Electrons per unit; None leaves the stars' own photon noise out.
    """
    field = _Field.of(data, noise, dead, xy, psf, gain)
    matrix = field.converge()
    for _ in range(_HIDDEN_ROUNDS):
        hidden = field.hidden_stars()
        if not len(hidden):
            break
        field.add(hidden)
        matrix = field.converge()
    count = len(xy)
    variance = _variances(matrix, field.xy)[:count]
    place, flux = field.xy[:count], field.flux[:count]
    error = np.sqrt(np.maximum(variance, 0.0))
    # a position that the data do not fix has the error of the prior
    good = (flux > 0) & (variance > 0).all(axis=1) & (error[:, 1:] < _PRIOR * field.fwhm / 2).all(axis=1)
    good &= np.hypot(*(place - xy).T) < field.fwhm / 2
    return FittedStars(place, flux, np.hypot(error[:, 1], error[:, 2]) / np.sqrt(2), error[:, 0], good)


@dataclass
class _Field:
    """The padded image, and the running parameters of its stars.

    `first` are the positions at the start, whose pixels the stamps are centred on.
    """

    data: Float
    variance: Float
    weightless: BoolArray
    first: Float
    xy: Float
    flux: Float
    psf: Any
    fwhm: float
    gain: float | None

    @classmethod
    def of(  # noqa: PLR0917
        cls, data: FloatArray, noise: FloatArray, dead: BoolArray | None, xy: Float, psf: PsfModel, gain: float | None
    ) -> _Field:
        """Start from the first positions and the light in the middle of each star."""
        pad = psf.half + 1
        weightless = np.pad(np.zeros(data.shape, bool) if dead is None else dead, pad, constant_values=True)
        field = cls(
            np.where(weightless, 0.0, np.pad(data.astype(np.float64), pad)),
            np.pad(np.square(noise.astype(np.float64)), pad, constant_values=1.0),
            weightless,
            xy,
            xy.copy(),
            np.zeros(len(xy)),
            psf,
            psf.fwhm(),
            gain,
        )
        field.flux = field._light(field.data)
        return field

    def _light(self, image: Float) -> Float:
        """Return the fluxes that the nine middle pixels of each star ask for."""
        middle = slice(self.psf.half - 1, self.psf.half + 2)
        return np.maximum(image[self._pixels(1)].sum((1, 2)) / self._models()[:, middle, middle].sum((1, 2)), 0.0)

    def converge(self) -> Any:
        """Take Gauss-Newton steps until all stars stay where they are; return the last matrix."""
        for _ in range(_MOST_STEPS):
            matrix, right = self.normal_equations()
            step = splu(matrix, permc_spec="MMD_AT_PLUS_A").solve(right).reshape(-1, 3)
            moved = np.clip(step[:, 1:], -_LARGEST_STEP, _LARGEST_STEP)
            self.flux, self.xy = np.maximum(self.flux + step[:, 0], 0.0), self.xy + moved
            if np.abs(moved).max() < _STILL:
                break
        return matrix

    def hidden_stars(self) -> Float:
        """Return the positions of what stands out of the residuals, not at the very place of a star, shape (N, 2)."""
        model = self._model(self._models())
        error = np.sqrt(self._variance(model) + (_HIDDEN_SYSTEMATIC * model) ** 2)
        found = extract(self.data - model, _HIDDEN, err=error, mask=self.weightless, minarea=5)
        xy = np.column_stack([found["x"], found["y"]]) - (self.psf.half + 1)
        ny, nx = self.data.shape - 2 * np.array([self.psf.half + 1])
        xy = xy[((xy > -0.5) & (xy < (nx - 0.5, ny - 0.5))).all(axis=1)]
        return xy[cKDTree(self.xy).query(xy)[0] > 0.4 * self.fwhm] if len(xy) else xy

    def add(self, xy: Float) -> None:
        """Add stars."""
        residual = self.data - self._model(self._models())
        old = self.first, self.xy, self.flux
        self.first, self.xy, self.flux = xy, xy, np.zeros(len(xy))
        self.flux = self._light(residual)
        self.first, self.xy, self.flux = (
            np.concatenate(pair) for pair in zip(old, (self.first, self.xy, self.flux), strict=True)
        )

    def _model(self, models: Float) -> Float:
        """Return the image of all stars, padded."""
        image = np.zeros_like(self.data)
        np.add.at(image, self._pixels(self.psf.half), self.flux[:, None, None] * models)
        return image

    def _variance(self, model: Float) -> Float:
        """Return the variance of each pixel, the photon noise of the model included."""
        return self.variance if self.gain is None else self.variance + np.maximum(model, 0.0) / self.gain

    def _pixels(self, half: int) -> tuple[Int, Int]:
        """Return rows (N, n, 1) and columns (N, 1, n) of the stamps in the padded image."""
        axis = np.arange(-half, half + 1) + self.psf.half + 1
        centre = np.rint(self.first).astype(np.intp)
        return (centre[:, 1, None] + axis)[:, :, None], (centre[:, 0, None] + axis)[:, None, :]

    def _models(self) -> Float:
        """Return the PSF of each star in its stamp, of unit flux, shape (N, n, n)."""
        offset = self.xy - np.rint(self.first)
        parts = [slice(i, i + _CHUNK) for i in range(0, len(offset), _CHUNK)]
        return np.concatenate([self.psf.stamps_at(*self.xy[part].T, *offset[part].T) for part in parts])

    def normal_equations(self) -> tuple[Any, Float]:
        """Return the sparse matrix J^T W J + prior, shape (3 N, 3 N), and the right-hand side."""
        models = self._models()
        model = self._model(models)
        variance = self._variance(model) + (_SYSTEMATIC * model) ** 2
        weight = np.where(self.weightless, 0.0, 1 / variance).ravel()
        # the pixels of the core of each star fix its parameters
        half = max(2, int(np.ceil(self.fwhm)))
        core = slice(self.psf.half - half, self.psf.half + half + 1)
        slope_y, slope_x = (-self.flux[:, None, None] * slope for slope in np.gradient(models, axis=(1, 2)))
        derivatives = np.stack([part[:, core, core].reshape(len(models), -1) for part in (models, slope_x, slope_y)], 1)
        rows, columns = self._pixels(half)
        pixel = (rows * self.data.shape[1] + columns).reshape(len(models), 1, -1)
        count = pixel.shape[2]
        transposed = csr_array(
            (
                derivatives.ravel(),
                np.repeat(pixel, 3, axis=1).ravel(),
                np.arange(3 * len(models) + 1) * count,
            ),
            shape=(3 * len(models), self.data.size),
        )
        weighted = csr_array(
            (transposed.data * weight[transposed.indices], transposed.indices, transposed.indptr), transposed.shape
        )
        # a star without any pixel or light stays where it is
        prior = np.tile([1e-12 * (weight.max() or 1.0), *[1 / (_PRIOR * self.fwhm) ** 2] * 2], len(models))
        start = np.column_stack([np.zeros(len(models)), self.xy - self.first]).ravel()
        right = weighted @ (self.data - model).ravel() - prior * start
        return (weighted @ transposed.T + diags_array(prior)).tocsc(), right


def _variances(matrix: Any, xy: Float) -> Float:
    """Return the variances of the parameters of each star, shape (N, 3), with its nearest neighbour's left free."""
    count = len(xy)
    if count == 1:
        return np.asarray(np.diag(np.linalg.inv(matrix.toarray()))[None], np.float64)
    near = cKDTree(xy).query(xy, k=2)[1]
    # of two stars at one place, the list may start with the other
    other = np.where(near[:, 1] == np.arange(count), near[:, 0], near[:, 1])
    index = (3 * np.column_stack([np.arange(count), other])[:, :, None] + np.arange(3)).reshape(count, 6)
    rows = np.repeat(index, 6, axis=1).ravel()
    blocks = np.asarray(matrix.tocsr()[rows, np.tile(index, 6).ravel()]).reshape(count, 6, 6)
    inverse = np.linalg.pinv(blocks, hermitian=True)
    return np.asarray(np.diagonal(inverse, axis1=1, axis2=2)[:, :3], np.float64)
