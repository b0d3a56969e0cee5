"""The stars of an image and their neighbours: cut out, and fitted with a given point spread function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from scipy.spatial import cKDTree

from skyloom.psf.analytic import Profile
from skyloom.psf.fit import StarStamps
from skyloom.psf.model import PsfModel, slopes
from skyloom.psf.shift import shift_matrices
from skyloom.psf.stars import SourceField
from skyloom.psf.weights import known_quantile, model_weight, soft_weight

Array = npt.NDArray[np.float64]
Plane = npt.NDArray[Any]
Index = npt.NDArray[np.intp]

RING = 1.5
"""Outer radius, in half sizes of the stamps, of the ring where the background of a star is measured."""
CLIP = 3.0
"""Standard deviations beyond which a pixel outside of a core is that of a neighbour; 5 leave too much of them."""
FARTHEST = 1.5
"""Pixels that a source may move from where it was found."""
LARGEST_STEP = 0.3


def core_pixels(half: int, fwhm: float, radius: float = 1.0) -> npt.NDArray[np.bool_]:
    """Return the pixels of a stamp within `radius` FWHM of its middle."""
    axis = np.arange(-half, half + 1.0)
    return axis[:, None] ** 2 + axis[None, :] ** 2 <= max(radius * fwhm, 1.5) ** 2


def mean_star(image: Plane, usable: npt.NDArray[np.bool_], field: SourceField, half: int) -> tuple[Array, Array]:
    """Return the median of the stars, registered and scaled to unit core flux, and the weight of its pixels."""
    x, y = field.x[field.stars], field.y[field.stars]
    (rows, columns), inside = _pixels(x, y, half, image.shape)
    seen = usable[rows, columns] & inside
    side = 2 * half + 1
    back_x, back_y = (shift_matrices(side, np.round(at) - at) for at in (x, y))
    cube = back_y @ np.where(seen, image[rows, columns], 0) @ back_x.transpose(0, 2, 1)
    flux = cube[:, core_pixels(half, field.fwhm)].sum(axis=1)
    good = flux > 0
    values = (cube[good] / flux[good, None, None]).reshape(-1, side * side).T
    seen = seen[good].reshape(-1, side * side).T
    middle = known_quantile(values, seen, 0.5).reshape(side, side)
    known = seen.any(axis=1).reshape(side, side)
    # all pixels alike, but the far ones, where neighbours sit, count less
    axis = np.arange(-half, half + 1.0)
    radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
    return middle, known / (1 + radius2 / field.fwhm**2)


def _pixels(x: Array, y: Array, half: int, shape: tuple[int, ...]) -> tuple[tuple[Index, Index], npt.NDArray[np.bool_]]:
    """Return rows (n, side, 1) and columns (n, 1, side) of stamps, taken to the border, and which are inside."""
    axis = np.arange(-half, half + 1)
    ix, iy = (np.round(at).astype(np.intp)[:, None] for at in (x, y))
    rows, columns = (iy + axis)[:, :, None], (ix + axis)[:, None, :]
    ny, nx = shape
    inside = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
    return (np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)), inside


@dataclass
class Sources:
    """The running parameters of the chosen stars, which come first, and of all that reaches into their stamps.

    Parameters
    ----------
    image : ndarray, shape (ny + 2 pad, nx + 2 pad)
        Without background; 0 where it cannot be used, and beyond its border. Its type is that of all stamps.
    weight : ndarray, shape (n_sources, 2 half + 1, 2 half + 1)
        Inverse variances of the stamps.
    known : ndarray of bool, shape (n_stars, n)
        Which pixels of the rings around the stamps of the stars can be used.
    x, y, flux : ndarray, shape (n_sources,)
        Positions in the image, refined, and fluxes.
    x0, y0 : ndarray
        First positions, on whose pixels the stamps are centred.
    n_stars, half : int
    fwhm : float
        Pixels.
    oversampling : int
        Samples of the PSF per pixel.
    """

    image: Plane
    weight: Plane
    known: Plane
    x: Array
    y: Array
    flux: Array
    x0: Array
    y0: Array
    n_stars: int
    half: int
    fwhm: float
    oversampling: int

    def __post_init__(self) -> None:
        n, side, step = len(self.x), 2 * self.half + 1, self.oversampling
        self.to_x, self.to_y = (np.empty((n, side, 2 * self.half * step + 1), self.image.dtype) for _ in range(2))
        self._move(slice(None))
        xy = np.column_stack([np.round(self.x0), np.round(self.y0)])
        self._pairs = cKDTree(xy).query_pairs(2 * self.half + 1.5, p=np.inf, output_type="ndarray")

    @classmethod
    def of(  # noqa: PLR0917
        cls,
        image: Plane,
        variance: Plane,
        usable: npt.NDArray[np.bool_],
        field: SourceField,
        half: int,
        oversampling: int,
    ) -> Sources:
        """Collect the stars, and all sources that reach into their stamps."""
        tree = cKDTree(np.column_stack([field.x, field.y])[field.stars])
        distance, _ = tree.query(np.column_stack([field.x, field.y]), distance_upper_bound=RING * half + field.fwhm)
        near = np.isfinite(distance) & (field.flux > 0)
        near[field.stars] = False
        index = np.concatenate([field.stars, np.flatnonzero(near)])
        x, y, n_stars = field.x[index], field.y[index], field.stars.size
        pixels, inside = _pixels(x, y, half, image.shape)
        good = usable[pixels] & inside
        weight = np.where(good, 1 / np.where(good, variance[pixels], 1), 0).astype(image.dtype, copy=False)
        dy, dx = _ring(half)
        rows, columns = (np.round(at[:n_stars]).astype(np.intp)[:, None] + step for at, step in ((y, dy), (x, dx)))
        ny, nx = image.shape
        known = (rows >= 0) & (rows < ny) & (columns >= 0) & (columns < nx)
        known &= usable[np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)]
        padded = np.pad(image * usable, int(RING * half) + 2)
        flux = field.flux[index].astype(float)
        return cls(padded, weight, known, x.copy(), y.copy(), flux, x, y, n_stars, half, field.fwhm, oversampling)

    def star_stamps(self, psf: PsfModel, profile: Profile, count: int | None = None) -> StarStamps:
        """Refine all sources with this PSF, and return the stamps of the stars with all else subtracted.

        Beyond the stamps, stars have the wings of `profile`. With a `count`, only so many stars, the best, and what
        reaches into their stamps.
        """
        n_stars = self.n_stars if count is None else min(count, self.n_stars)
        models, residual = self.subtract(psf, self._around(n_stars))
        stars = slice(n_stars)
        shapes, beyond = models[stars], self._stamps(residual)[self._corner(stars)]
        light = self._light(stars) * shapes
        data = beyond + light
        weight = soft_weight(model_weight(self.weight[stars], light, beyond), light)
        data -= self._levels(residual, profile, n_stars)[:, None, None].astype(data.dtype)
        flux = _flux(data, weight, shapes)
        # pixels far off the model, outside of the core: neighbours that nobody found, cosmic rays
        far = ~core_pixels(self.half, self.fwhm)
        deviation = (data - flux[:, None, None].astype(data.dtype) * shapes) ** 2 * weight
        weight[(deviation > CLIP**2) & far] = 0
        flux = _flux(data, weight, shapes)
        return StarStamps(data, weight, flux, self.to_x[stars], self.to_y[stars], self.x[stars], self.y[stars])

    def _around(self, n_stars: int) -> Index:
        """Return the first stars and all that reaches into their stamps and the rings around them."""
        if n_stars == self.n_stars:
            return np.arange(len(self.x))
        xy = np.column_stack([self.x0, self.y0])
        distance = cKDTree(xy[:n_stars]).query(xy, distance_upper_bound=RING * self.half + self.fwhm)[0]
        return np.flatnonzero(np.isfinite(distance))

    def _levels(self, residual: Plane, profile: Profile, n_stars: int) -> Array:
        """Return the local background of the stars: the median, without sources, of a ring around their stamps.

        Inside of the stamps it cannot be told from wings that the model lacks.
        """
        dy, dx = _ring(self.half)
        reach = int(RING * self.half)
        wings = _wings(self.half, profile)[dy + reach, dx + reach]
        ix, iy = (self._middle(at[:n_stars])[:, None] for at in (self.x0, self.y0))
        light = self._light(slice(n_stars))[:, 0] * wings.astype(residual.dtype)
        return known_quantile(residual[iy + dy, ix + dx] - light, self.known[:n_stars], 0.5)

    def subtract(self, psf: PsfModel, some: Index) -> tuple[Array, Plane]:
        """Fit flux and position of some sources on what the others of them leave, the brightest first.

        Sources whose stamps do not overlap do not see each other: they are fitted together, which gives what one after
        the other would.

        Returns
        -------
        models : ndarray, shape (n_sources, n, n)
            Of unit flux; those of other sources are not computed.
        residual : ndarray
            The padded image without these sources.
        """
        models = np.empty((len(self.x), *(2 * (2 * self.half + 1,))), self.image.dtype)
        models[some] = self._models(psf, some)
        gradient = self.oversampling * slopes(psf.basis.astype(self.image.dtype))
        residual, groups = self.image.copy(), self._groups(some)
        stamps = self._stamps(residual)
        for group in groups:
            stamps[self._corner(group)] -= self._light(group) * models[group]
        for group in groups:
            at = self._corner(group)
            data = stamps[at] + self._light(group) * models[group]
            terms = psf.terms(self.x[group], self.y[group]).astype(data.dtype)
            flux, steps, good = self._fit(data, models[group], np.tensordot(terms, gradient, (1, 1)), group)
            bright = good & (flux > 0)
            moved = group[bright]
            for position, first, step in ((self.x, self.x0, steps[bright, 0]), (self.y, self.y0, steps[bright, 1])):
                position[moved] = np.clip(position[moved] + step, first[moved] - FARTHEST, first[moved] + FARTHEST)
            self._move(moved)
            models[moved] = self._models(psf, moved)
            self.flux[group[good]] = flux[good]
            stamps[at] = data - self._light(group) * models[group]
        return models, residual

    def _fit(
        self, data: Array, models: Array, gradient: Array, index: Index
    ) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Fit flux, position and level of sources to their cores; return flux, steps (n, 2), and what was possible."""
        core = core_pixels(self.half, self.fwhm)
        cut = max(0, self.half - int(max(self.fwhm, 1.5)))
        inner = slice(cut, len(core) - cut)
        core, data, models, weight = (
            core[inner, inner],
            *(p[:, inner, inner] for p in (data, models, self.weight[index])),
        )
        weight = soft_weight(weight, self._light(index) * models)[:, core]
        to_x, to_y = self.to_x[index, inner], self.to_y[index, inner]
        along_x, along_y = ((to_y @ gradient[:, k] @ to_x.transpose(0, 2, 1))[:, core] for k in (0, 1))
        columns = np.stack([models[:, core], -along_x, -along_y, np.ones_like(along_x)], axis=1)
        weighted = columns * weight[:, None]
        normal, right = (
            (weighted @ one).astype(float) for one in (columns.transpose(0, 2, 1), data[:, core][..., None])
        )
        good = weight.any(axis=1) & (normal[:, 0, 0] > 0)
        # pixels too few for all four leave them where the rest of the diagonal holds them
        held = 1e-9 * np.einsum("nii->ni", normal) + np.where(good, 0, 1)[:, None]
        solution = np.linalg.solve(normal + held[:, None] * np.eye(4), right)[..., 0]
        flux = np.maximum(solution[:, 0], 0.0)
        steps = solution[:, 1:3] / np.where(flux > 0, flux, np.inf)[:, None]
        return flux, np.clip(steps, -LARGEST_STEP, LARGEST_STEP), good

    def _middle(self, at: Array) -> Index:
        """Return the middle pixels of stamps, along one axis of the padded image."""
        return np.round(at).astype(np.intp) + int(RING * self.half) + 2

    def _stamps(self, plane: Plane) -> Plane:
        """Return all stamps of the padded image, by their first pixels; a view."""
        side = 2 * self.half + 1
        return sliding_window_view(plane, (side, side), writeable=True)  # those of a group do not overlap

    def _corner(self, index: Any) -> tuple[Index, Index]:
        """Return the rows and columns of the first pixels of stamps in the padded image."""
        return self._middle(self.y0[index]) - self.half, self._middle(self.x0[index]) - self.half

    def _move(self, index: Any) -> None:
        """Set the matrices that take the samples of a PSF to the pixels of sources, along x and y."""
        size, step = self.to_x.shape[-1], self.oversampling
        for matrices, at, first in ((self.to_x, self.x, self.x0), (self.to_y, self.y, self.y0)):
            matrices[index] = shift_matrices(size, step * (at[index] - np.round(first[index])), step)

    def _light(self, index: Any) -> Plane:
        """Return the fluxes of some sources as what multiplies stamps."""
        return self.flux[index, None, None].astype(self.image.dtype)

    def _models(self, psf: PsfModel, index: Any) -> Array:
        """Return the PSF at some sources, where they are in their stamps, shape (n, 2 half + 1, 2 half + 1)."""
        terms, basis = (part.astype(self.image.dtype) for part in (psf.terms(self.x[index], self.y[index]), psf.basis))
        return np.asarray(self.to_y[index] @ np.tensordot(terms, basis, 1) @ self.to_x[index].transpose(0, 2, 1))

    def _groups(self, some: Index) -> list[Index]:
        """Return sources that can be fitted together, group by group: each comes after its brighter neighbours."""
        chosen = np.zeros(len(self.x), bool)
        chosen[some] = True
        order = np.argsort(-self.flux, kind="stable")
        rank = np.empty(order.size, np.intp)
        rank[order] = np.arange(order.size)
        pairs = np.sort(rank[self._pairs], axis=1)  # (brighter, fainter), as places in the order
        level = np.zeros(order.size, np.intp)
        for brighter, fainter in pairs[np.argsort(pairs[:, 1], kind="stable")]:
            level[fainter] = max(level[fainter], level[brighter] + 1)
        return [group[chosen[group]] for group in (order[level == k] for k in range(int(level.max(initial=-1)) + 1))]


def _ring(half: int) -> tuple[Index, Index]:
    """Return the pixels (dy, dx) of the ring around stamps."""
    reach = int(RING * half)
    axis = np.arange(-reach, reach + 1)
    radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
    dy, dx = np.nonzero((radius2 > half**2) & (radius2 <= reach**2))
    return dy - reach, dx - reach


def _wings(half: int, profile: Profile) -> Array:
    """Return the light in and around a stamp beyond it, of a star whose stamp has the sum 1."""
    reach = int(RING * half)
    light = profile.stamp(reach)
    inner = slice(reach - half, reach + half + 1)
    light /= light[inner, inner].sum()
    light[inner, inner] = 0
    return light


def _flux(data: Array, weight: Array, model: Array) -> Array:
    """Fit the flux of each stamp."""
    weighted = weight * model
    return np.asarray(
        np.einsum("nij,nij->n", weighted, data, dtype=float)
        / np.maximum(np.einsum("nij,nij->n", weighted, model, dtype=float), 1e-300)
    )
