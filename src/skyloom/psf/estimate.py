"""`estimate_psf`: measure the point spread function of an image from its stars."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from skyloom.background import MAD_TO_SIGMA, estimate_background
from skyloom.errors import InputError, NoUsableDataError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.noise import with_variance
from skyloom.psf.analytic import Profile, fit_profile
from skyloom.psf.fit import StarStamps, fit_basis, refined_profile, residuals
from skyloom.psf.model import PsfModel, polynomial_terms, stamp_fwhm
from skyloom.psf.shift import shift_matrices
from skyloom.psf.stars import SourceField, choose_stars
from skyloom.psf.weights import known_quantile, model_weight, soft_weight

logger = logging.getLogger("skyloom.psf")

Array = npt.NDArray[np.float64]

MIN_STARS = {0: 3, 1: 12, 2: 30}
"""Fewest stars for each order: some three for each polynomial term, and enough to test the choice."""
MAX_STARS = 100
RING = 1.5
"""Outer radius, in half sizes of the stamps, of the ring where the background of a star is measured."""
CLIP = 3.0
"""Standard deviations beyond which a pixel outside of a core is that of a neighbour; 5 leave too much of them."""
PASSES = 4
FOLDS = 4
JUDGES = 60
JUDGED_RADIUS = 2.0
"""So many stars, the best of all parts of the image, decide about the order, with so many FWHM around them."""


def estimate_psf(
    exposure: Exposure,
    sources: Any = None,
    *,
    half: int | None = None,
    order: int | Literal["auto"] = "auto",
    fallback: Literal["moffat", "gaussian"] | None = None,
    stars: Any = None,
) -> PsfModel:
    """Measure the point spread function from the stars of an image.

    The pixels of the PSF, as polynomials of the position, are fitted to all chosen stars at once by weighted least
    squares (a forward model, as Bertin 2011 does; the effective PSF of Anderson & King 2000): every star is the PSF
    of its place, moved by its sub-pixel offset (see `shift_matrices`), times its flux. Fluxes, positions and
    the neighbours' light are refined in turn with the PSF; stars that the model does not describe are left out.

    Parameters
    ----------
    exposure : Exposure
        Image; without a variance plane, the noise is measured from the background.
    sources : table, optional
        Known sources with columns x, y (pixels) and optionally flux. All of them, not only stars: neighbours must be
        known. Default: detect them.
    half : int, optional
        Half size of the stamps. Default 3.5 FWHM, at least 7 and at most 50 pixels.
    order : {'auto', 0, 1, 2}
        Degree of the variation over the image. 'auto' takes the highest one that predicts stars left out of the fit
        as well as the lower ones.
    fallback : {'moffat', 'gaussian'}, optional
        With fewer than 3 good stars, but at least one, fit that profile to what there is, instead of an error.
    stars : table, optional
        Columns x, y: which of the sources (to a pixel) may be chosen as stars. By default all of them.

    Returns
    -------
    psf : PsfModel
        With the statistics 'chi2' (median over stars of the reduced chi-square in the core, with a model error of 2 %),
        'residual' (median over stars of the RMS residual in the core, relative to the peak), 'fwhm',
        'n_candidates' and 'n_rejected'.

    Raises
    ------
    TooFewSourcesError
        Fewer than 3 good stars (no good star with a `fallback`), or too few for the asked order.
    NoUsableDataError
        The exposure has no usable pixel.
    InputError
        An option is out of its range, or `sources` has no columns x and y.
    """
    _check_options(half, order, fallback)
    planes = _prepare(exposure)
    return _estimate(*planes, sources, half=half, order=order, fallback=fallback, name=exposure.name, stars=stars)


def estimate_psf_of_planes(
    image: npt.NDArray[Any],
    variance: npt.NDArray[Any],
    usable: npt.NDArray[np.bool_],
    sources: Any = None,
    *,
    order: int | Literal["auto"] = "auto",
    fallback: Literal["moffat", "gaussian"] | None = None,
    name: str = "the image",
) -> PsfModel:
    """Measure the point spread function of an image whose background is known; see `estimate_psf`.

    Parameters
    ----------
    image, variance : ndarray, shape (ny, nx)
        Without background; the variance holds all noise, that of faint sources that nobody can tell apart, too.
    usable : ndarray of bool, shape (ny, nx)
    sources, order, fallback
        As of `estimate_psf`.
    name : str
        For messages.
    """
    _check_options(None, order, fallback)
    return _estimate(image, variance, usable, sources, half=None, order=order, fallback=fallback, name=name)


def _estimate(
    image: npt.NDArray[Any],
    variance: npt.NDArray[Any],
    usable: npt.NDArray[np.bool_],
    sources: Any,
    *,
    half: int | None,
    order: int | Literal["auto"],
    fallback: str | None,
    name: str,
    stars: Any = None,
) -> PsfModel:
    shape = image.shape[0], image.shape[1]
    field = choose_stars(image, variance, usable, sources, max_stars=MAX_STARS, stars=stars)
    needed = MIN_STARS[0 if order == "auto" else order]
    if field.stars.size < needed and (fallback is None or field.stars.size == 0):
        raise _too_few(name, field, needed)
    # a first look at the mean star: half-light radii are too large in crowded fields
    first = _Work.of(image, variance, usable, field, int(np.clip(np.ceil(2 * field.fwhm), 5, 50)))
    fwhm = fit_profile(*first.stack(), field.fwhm).fwhm
    half = int(np.clip(np.ceil(3.5 * fwhm), 7, 50)) if half is None else half
    work = _Work.of(image, variance, usable, dataclasses.replace(field, fwhm=fwhm), half)
    analytic = field.stars.size < needed
    profile = fit_profile(*work.stack(), fwhm, gaussian=analytic and fallback == "gaussian")
    if analytic:
        return _analytic_model(profile, half, shape, field)
    return _pixel_model(work, profile, order, shape, field=field, name=name)


def _pixel_model(
    work: _Work,
    profile: Profile,
    order: int | Literal["auto"],
    shape: tuple[int, int],
    *,
    field: SourceField,
    name: str,
) -> PsfModel:
    """Alternate between the stars' parameters and the pixels of the PSF."""
    half = work.half
    psf = PsfModel(profile.stamp(half)[None], 0, shape)
    chosen = 0
    for passage in range(PASSES):
        stars = work.star_stamps(psf, profile)
        stars, chi2 = _reject(stars, psf, profile.fwhm)
        needed = MIN_STARS[0 if order == "auto" else order]
        if stars.x.size < needed:
            raise _too_few(name, field, needed, left=stars.x.size)
        profile = refined_profile(stars, profile)
        if passage == 1:  # the first PSF made by stars has cleaned the stamps: now the order can be judged
            chosen = _choose_order(stars, profile, shape) if order == "auto" else order
        terms = polynomial_terms(stars.x, stars.y, chosen, shape)
        psf = PsfModel(fit_basis(stars, terms, profile), chosen, shape, stars.x.size)
    core = _core(half, profile.fwhm)
    model = psf.basis[0].max() * stars.flux
    scatter = np.sqrt(np.mean(residuals(stars, psf.basis, terms)[:, core] ** 2, axis=1)) / model
    statistics = {
        "chi2": float(np.median(chi2)),
        "residual": float(np.median(scatter)),
        "fwhm": psf.fwhm(),
        "n_candidates": float(field.stars.size),
        "n_rejected": float(field.stars.size - stars.x.size),
    }
    logger.info("%s: PSF of order %d from %d stars, FWHM %.2f px", name, chosen, stars.x.size, psf.fwhm())
    return PsfModel(psf.basis, chosen, shape, stars.x.size, statistics)


def _analytic_model(profile: Profile, half: int, shape: tuple[int, int], field: SourceField) -> PsfModel:
    stamp = profile.stamp(half)
    statistics = {"fwhm": stamp_fwhm(stamp), "n_candidates": float(field.stars.size), "beta": profile.beta}
    return PsfModel(stamp[None], 0, shape, field.stars.size, statistics)


def _check_options(half: int | None, order: int | str, fallback: str | None) -> None:
    if half is not None and not 2 <= half <= 200:
        raise InputError(f"half is {half}; 2 to 200 pixels are needed.", half=half)
    if order not in ("auto", 0, 1, 2):
        raise InputError(f"order is {order!r}; 'auto', 0, 1 or 2 are known.", order=order)
    if fallback not in (None, "moffat", "gaussian"):
        raise InputError(f"fallback is {fallback!r}; None, 'moffat' or 'gaussian' are known.", fallback=fallback)


def _too_few(name: str, field: SourceField, needed: int, left: int | None = None) -> TooFewSourcesError:
    counts = dict(field.counts)
    if left is not None:
        counts["described by one PSF"] = left
    found = field.stars.size if left is None else left
    passed = ", ".join(f"{number} {what}" for what, number in counts.items())
    return TooFewSourcesError(
        f"{name} has {found} good stars for a point spread function ({passed}); at least {needed} are needed. "
        "Give a deeper image, a lower order=, a mask for artefacts, or ask for an analytic profile with "
        "fallback='moffat'.",
        found=found,
        needed=needed,
        counts=counts,
    )


def _prepare(exposure: Exposure) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the background-subtracted data, their variance, and what may be used, in the precision of the data."""
    usable = exposure.usable
    if not usable.any():
        raise NoUsableDataError(f"{exposure.name} has no usable pixel, so no star either; check its mask.")
    known = with_variance(exposure) if exposure.variance is None else exposure
    background = estimate_background(exposure)
    variance: npt.NDArray[Any] = np.asarray(known.variance, exposure.data.dtype)
    usable = usable & (variance > 0)
    image = np.where(usable, exposure.data - background.level, 0).astype(exposure.data.dtype, copy=False)
    # faint sources that nobody can tell apart are noise, too: in a crowded field the sky scatters more than its pixels
    confusion = max(background.global_rms**2 - float(np.median(variance[usable])), 0.0)
    return image, variance + variance.dtype.type(confusion), usable


def _core(half: int, fwhm: float, radius: float = 1.0) -> npt.NDArray[np.bool_]:
    """Return the pixels of a stamp within `radius` FWHM of its middle."""
    axis = np.arange(-half, half + 1.0)
    return axis[:, None] ** 2 + axis[None, :] ** 2 <= max(radius * fwhm, 1.5) ** 2


def _reject(stars: StarStamps, psf: PsfModel, fwhm: float) -> tuple[StarStamps, Array]:
    """Leave out the stars whose core the PSF does not describe; return the others and their reduced chi-squares."""
    terms = polynomial_terms(stars.x, stars.y, psf.order, psf.shape)
    core = _core(psf.half, fwhm)
    weight = stars.weight[:, core]
    chi2 = (weight * residuals(stars, psf.basis, terms)[:, core] ** 2).sum(axis=1)
    chi2 = chi2 / np.maximum((weight > 0).sum(axis=1) - 4, 1)
    middle = float(np.median(chi2))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(chi2 - middle)))
    # half of the stars are never left out; stars good to the noise never either
    keep = (chi2 <= max(middle + 5 * spread, 2.0)) & (stars.flux > 0) & ((weight > 0).mean(axis=1) > 0.8)
    return stars.select(keep), chi2[keep]


def _choose_order(stars: StarStamps, profile: Profile, shape: tuple[int, int]) -> int:
    """Choose the degree of the variation by four-fold cross-validation on the stars.

    A higher degree is taken unless it predicts the cores of stars that were left out of the fit (their flux and
    position are free) worse, by more than two standard errors: the priors keep a needless term small, while a
    missing one is a systematic error of all fluxes in a part of the image.
    """
    stars = stars.select(slice(JUDGES)).trimmed(int(np.ceil(JUDGED_RADIUS * profile.fwhm)))
    core = _core(stars.data.shape[-1] // 2, profile.fwhm)
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
    residual = residuals(stars, basis, terms)
    model = stars.data - residual
    columns = np.stack([model, np.gradient(model, axis=2), np.gradient(model, axis=1)], axis=-1)[:, core]
    root = np.sqrt(stars.weight[:, core])
    columns, values = columns * root[..., None], residual[:, core] * root
    matrix = columns.transpose(0, 2, 1) @ columns
    vector = (columns.transpose(0, 2, 1) @ values[..., None])[..., 0]
    solution = (np.linalg.pinv(matrix, hermitian=True) @ vector[..., None])[..., 0]
    return (values**2).sum(axis=1) - (vector * solution).sum(axis=1)


@dataclass
class _Work:
    """The image and the running parameters of its sources near the chosen stars."""

    image: npt.NDArray[Any]
    weight: npt.NDArray[Any]
    x: Array
    y: Array
    flux: Array
    x0: Array
    y0: Array
    n_stars: int
    half: int
    fwhm: float

    def __post_init__(self) -> None:
        self.to_x, self.to_y = self._shifts(slice(None))

    @classmethod
    def of(
        cls,
        image: npt.NDArray[Any],
        variance: npt.NDArray[Any],
        usable: npt.NDArray[np.bool_],
        field: SourceField,
        half: int,
    ) -> _Work:
        """Collect the stars, which come first, and all sources that reach into their stamps."""
        tree = cKDTree(np.column_stack([field.x, field.y])[field.stars])
        distance, _ = tree.query(np.column_stack([field.x, field.y]), distance_upper_bound=1.5 * half + field.fwhm)
        near = np.isfinite(distance) & (field.flux > 0)
        near[field.stars] = False
        index = np.concatenate([field.stars, np.flatnonzero(near)])
        weight = np.where(usable, 1 / np.where(usable, variance, 1), 0).astype(image.dtype, copy=False)
        pad = int(RING * half) + 2
        x, y = field.x[index] + pad, field.y[index] + pad
        return cls(
            np.pad(np.where(usable, image, 0), pad),
            np.pad(weight, pad),
            x.copy(),
            y.copy(),
            field.flux[index].astype(float),
            x,
            y,
            field.stars.size,
            half,
            field.fwhm,
        )

    def offset(self, index: Any) -> tuple[Array, Array]:
        """Return the offsets of sources from the middle pixels of their stamps."""
        return self.x[index] - np.round(self.x0[index]), self.y[index] - np.round(self.y0[index])

    def stack(self) -> tuple[Array, Array]:
        """Return the median of the stars, registered and scaled to unit core flux, and the weight of its pixels."""
        core = _core(self.half, self.fwhm)
        rows, columns = (index[: self.n_stars] for index in self._pixels())
        dx, dy = self.offset(slice(self.n_stars))
        side = 2 * self.half + 1
        back_y, back_x = shift_matrices(side, -dy), shift_matrices(side, -dx)
        cube = back_y @ self.image[rows, columns] @ back_x.transpose(0, 2, 1)
        flux = cube[:, core].sum(axis=1)
        good = flux > 0
        values = (cube[good] / flux[good, None, None]).reshape(-1, side * side).T
        seen = (self.weight[rows, columns] > 0)[good].reshape(-1, side * side).T
        middle = known_quantile(values, seen, 0.5).reshape(side, side)
        known = seen.any(axis=1).reshape(side, side)
        # all pixels alike, but the far ones, where neighbours sit, count less
        axis = np.arange(-self.half, self.half + 1.0)
        radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
        return middle, known / (1 + radius2 / self.fwhm**2)

    def star_stamps(self, psf: PsfModel, profile: Profile) -> StarStamps:
        """Refine all sources with this PSF, and return the stamps of the stars with all else subtracted.

        Beyond the stamps, stars have the wings of `profile`.
        """
        models, residual = self.subtract(psf)
        n = self.n_stars
        rows, columns = (index[:n] for index in self._pixels())
        shapes = models[:n]
        light = self.flux[:n, None, None] * shapes
        data = residual[rows, columns] + light
        weight = soft_weight(model_weight(self.weight[rows, columns], light, residual[rows, columns]), light)
        data -= self._levels(residual, profile)[:, None, None]
        flux = _flux(data, weight, shapes)
        # pixels far off the model, outside of the core: neighbours that nobody found, cosmic rays
        far = ~_core(self.half, self.fwhm)
        deviation = (data - flux[:, None, None] * shapes) ** 2 * weight
        weight[(deviation > CLIP**2) & far] = 0
        flux = _flux(data, weight, shapes)
        pad = int(RING * self.half) + 2
        return StarStamps(data, weight, flux, self.to_x[:n], self.to_y[:n], self.x[:n] - pad, self.y[:n] - pad)

    def _levels(self, residual: npt.NDArray[Any], profile: Profile) -> Array:
        """Return the local background of the stars: the median, without sources, of a ring around their stamps.

        Inside of the stamps it cannot be told from wings that the model lacks.
        """
        reach = int(RING * self.half)
        axis = np.arange(-reach, reach + 1)
        radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
        outside = (np.abs(axis)[:, None] > self.half) | (np.abs(axis) > self.half)
        ring = (radius2 > self.half**2) & (radius2 <= reach**2)
        wings = profile.stamp(reach)
        wings = np.where(outside, wings / wings[~outside].sum(), 0)[ring]  # of a star whose stamp has the sum 1
        dy, dx = (step - reach for step in np.nonzero(ring))
        ix, iy = (np.round(at[: self.n_stars]).astype(np.intp)[:, None] for at in (self.x0, self.y0))
        known = self.weight[iy + dy, ix + dx] > 0
        return known_quantile(residual[iy + dy, ix + dx] - self.flux[: self.n_stars, None] * wings, known, 0.5)

    def subtract(self, psf: PsfModel) -> tuple[Array, Array]:
        """Fit flux and position of each source on what the others leave, the brightest first.

        Sources whose stamps do not overlap do not see each other: they are fitted together, which gives what one after
        the other would.

        Returns
        -------
        models : ndarray, shape (n_sources, n, n)
            Of unit flux.
        residual : ndarray
            The padded image without all sources.
        """
        models = self._models(psf, slice(None))
        residual = self.image.copy()
        rows, columns = self._pixels()
        groups = self._groups()
        for group in groups:
            residual[rows[group], columns[group]] -= self.flux[group, None, None] * models[group]
        for group in groups:
            at = rows[group], columns[group]
            data = residual[at] + self.flux[group, None, None] * models[group]
            flux, steps, good = self._fit_sources(data, models[group], self.weight[at], group)
            bright = good & (flux > 0)
            moved = group[bright]
            self.x[moved] = np.clip(self.x[moved] + steps[bright, 0], self.x0[moved] - 1.5, self.x0[moved] + 1.5)
            self.y[moved] = np.clip(self.y[moved] + steps[bright, 1], self.y0[moved] - 1.5, self.y0[moved] + 1.5)
            self.to_x[moved], self.to_y[moved] = self._shifts(moved)
            models[moved] = self._models(psf, moved)
            self.flux[group[good]] = flux[good]
            residual[at] = data - self.flux[group, None, None] * models[group]
        return models, residual

    def _shifts(self, index: Any) -> tuple[Array, Array]:
        """Return the matrices that move stamps along x and y from their middle pixels to the sources."""
        side = 2 * self.half + 1
        dx, dy = self.offset(index)
        return shift_matrices(side, dx), shift_matrices(side, dy)

    def _models(self, psf: PsfModel, index: Any) -> Array:
        """Return the PSF at some sources, where they are in their stamps, shape (n, 2 half + 1, 2 half + 1)."""
        pad = int(RING * self.half) + 2
        stamps = psf.stamps(self.x[index] - pad, self.y[index] - pad)
        return np.asarray(self.to_y[index] @ stamps @ self.to_x[index].transpose(0, 2, 1))

    def _pixels(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return the rows and columns of all stamps in the padded image, shapes (n, side, 1) and (n, 1, side)."""
        axis = np.arange(-self.half, self.half + 1)
        ix, iy = (np.round(at).astype(np.intp) for at in (self.x0, self.y0))
        return (iy[:, None] + axis)[:, :, None], (ix[:, None] + axis)[:, None, :]

    def _groups(self) -> list[npt.NDArray[np.intp]]:
        """Return sources that can be fitted together, group by group: each comes after its brighter neighbours."""
        order = np.argsort(-self.flux, kind="stable")
        rank = np.empty(order.size, np.intp)
        rank[order] = np.arange(order.size)
        xy = np.column_stack([np.round(self.x0), np.round(self.y0)])
        pairs = cKDTree(xy).query_pairs(2 * self.half + 1.5, p=np.inf, output_type="ndarray")
        pairs = np.sort(rank[pairs], axis=1)  # (brighter, fainter), as places in the order
        level = np.zeros(order.size, np.intp)
        for brighter, fainter in pairs[np.argsort(pairs[:, 1], kind="stable")]:
            level[fainter] = max(level[fainter], level[brighter] + 1)
        return [order[level == k] for k in range(int(level.max(initial=-1)) + 1)]

    def _fit_sources(
        self, data: Array, models: Array, weight: Array, index: npt.NDArray[np.intp]
    ) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
        """Fit flux, position and level of sources to their cores; return flux, steps (n, 2), and what was possible."""
        core = _core(self.half, self.fwhm)
        cut = max(0, self.half - int(max(self.fwhm, 1.5)) - 1)  # with a border for the slopes
        inner = slice(cut, len(core) - cut)
        core, data, models, weight = core[inner, inner], *(p[:, inner, inner] for p in (data, models, weight))
        weight = soft_weight(weight, self.flux[index, None, None] * models)[:, core]
        slopes = (np.gradient(models, axis=axis)[:, core] for axis in (2, 1))
        along_x, along_y = slopes
        columns = np.stack([models[:, core], -along_x, -along_y, np.ones_like(along_x)], axis=1)
        normal = (columns * weight[:, None]) @ columns.transpose(0, 2, 1)
        right = (columns * weight[:, None]) @ data[:, core][..., None]
        good = weight.any(axis=1) & (normal[:, 0, 0] > 0)
        solution = (np.linalg.pinv(normal, rcond=1e-10, hermitian=True) @ right)[..., 0]
        flux = np.maximum(solution[:, 0], 0.0)
        steps = np.clip(solution[:, 1:3] / np.where(flux > 0, flux, np.inf)[:, None], -0.3, 0.3)
        return flux, steps, good


def _flux(data: Array, weight: Array, model: Array) -> Array:
    """Fit the flux of each stamp."""
    return np.asarray((weight * data * model).sum((1, 2)) / np.maximum((weight * model**2).sum((1, 2)), 1e-300))
