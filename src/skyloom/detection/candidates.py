"""`find_candidates`: the list of what changed, with the reasons to doubt each entry."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Column, Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from skyloom.background import MAD_TO_SIGMA, estimate_background
from skyloom.detection.bright import BrightSources, bright_sources
from skyloom.detection.flags import CandidateFlag, flag_text
from skyloom.detection.peaks import CORE, Source, deblend, disc, local_maxima
from skyloom.detection.photometry import DifferenceLike, Pixels, PsfFlux, psf_flux
from skyloom.detection.score import Score
from skyloom.detection.shape import Shape, is_dipole, is_sharper, line_flux, measure_shape
from skyloom.errors import InputError, NoUsableDataError, SkyloomWarning
from skyloom.exposure import UNUSABLE, MaskBit
from skyloom.psf import stamp_at, stamp_fwhm
from skyloom.subtraction.zogy.moving import moving_significance

logger = logging.getLogger("skyloom.detection")

Array = npt.NDArray[np.float64]

MAX_CANDIDATES = 5000
"""More peaks than that are no list of transients; the most significant are kept, with a warning."""
RESIDUAL_SIGMA = 3.0
"""A candidate must exceed so many times the fraction of the star's flux that bright stars leave."""
PSF_ERROR = 0.03
"""Error of the PSF model relative to itself that the shape of a candidate allows for."""
ELONGATED = 0.5
"""A significant ellipticity above this is that of a bad row, a spike or a trail."""
MISFIT = 16.27
"""Chi-square of the second moments (three degrees of freedom) that one point source in a thousand exceeds."""
DOUBTFUL = 0.8
"""Part of the threshold that the fitted flux must reach: peaks of the score are chosen for being high."""
COMPACT = 5.0
"""Errors of the change by which the fainter epoch's flux must stand out for a source that both epochs have."""
WELL_CALIBRATED = 1.03
"""A score no wider than that (and what chance adds) needs no larger errors."""
LINE_STEP, BLEED_STEP = 8.0, 4.0
"""Detections along one line or bleed trail are no farther apart than that, FWHM: faint lines have few peaks."""
_MISSHAPEN = CandidateFlag.NOT_PSF_LIKE | CandidateFlag.TOO_SHARP | CandidateFlag.MASKED
DIPOLE_REACH = 2.0
"""The two sides of a dipole are no farther apart than that, FWHM."""


@dataclass(frozen=True, eq=False)
class _Context:
    """All that the judgement of one candidate looks at."""

    difference: DifferenceLike
    score: Score
    pixels: Pixels
    residual: Array
    opposite: dict[int, Array]
    bright: BrightSources
    border: npt.NDArray[np.bool_]
    saturated: npt.NDArray[np.bool_]
    fwhm: float
    noise_ratio: float
    threshold: float


def find_candidates(
    difference: DifferenceLike,
    *,
    threshold: float = 5.0,
    both_signs: bool = True,
    calibrate: bool = True,
    score: Score | None = None,
) -> Table:
    """Find the sources that differ between science image and template.

    Peaks of the significance beyond the threshold are fitted with the PSF, brightest first; a peak that the side
    lobes of a brighter source explain is none. What looks like an artefact is kept and flagged (see
    `CandidateFlag`).

    Parameters
    ----------
    difference : Difference
        With image, variance, mask, science, template and score; kernel and wcs are used where it has them.
    threshold : float
        Least significance, in standard deviations.
    both_signs : bool
        Find what faded, too.
    calibrate : bool
        Where the score scatters more than its noise model says, measure significance and errors in units of that
        scatter: in crowded fields what matching leaves under thousands of stars adds to the noise.
    score : Score, optional
        Default: ``difference.score``.

    Returns
    -------
    table : Table
        One row for each candidate, the most significant first; units and descriptions are in the columns. ``real``
        is True without any flag. ``meta`` holds threshold, FWHM, the factor on all errors (``error_scale``) and the
        fraction of bright sources that remains (``bright_residual``).

    Raises
    ------
    InputError
        The threshold is not above 0.
    NoUsableDataError
        The score is valid nowhere.
    """
    if not (np.isfinite(threshold) and threshold > 0):
        raise InputError(f"threshold is {threshold}; a number of standard deviations above 0 is needed.")
    score = difference.score if score is None else score
    if not score.valid.any():
        raise NoUsableDataError("The difference has no usable pixel, so nothing can be found in it; check the masks.")
    scale = _error_scale(score) if calibrate else 1.0
    score = score.rescaled(scale)
    ny, nx = score.significance.shape
    fwhm = stamp_fwhm(score.psf.stamp((nx - 1) / 2, (ny - 1) / 2))
    pixels = Pixels.of(difference, score)
    peaks = _peaks(score, threshold, fwhm, both_signs=both_signs)
    sources, residual = deblend(peaks, score, pixels, threshold, fwhm)
    context = _context(difference, score, pixels, residual, fwhm=fwhm, threshold=threshold)
    rows = [row for source in sources if (row := _judge(source, context)) is not None]
    rows.sort(key=lambda row: (-abs(row["snr"]), row["y"], row["x"]))
    rows = _merged(_merged(rows, "line", LINE_STEP * fwhm), "bleed", BLEED_STEP * fwhm)
    table = _table(rows, difference)
    table.meta = {
        "threshold": float(threshold),
        "fwhm": fwhm,
        "error_scale": scale,
        "bright_residual": context.bright.fraction,
    }
    logger.info("%d candidates, %d of them without flags", len(table), int(np.sum(table["real"])))
    return table


def _error_scale(score: Score) -> float:
    """Return how much larger the score's errors must be to explain its width; 1 where chance can explain it."""
    ny, nx = score.significance.shape
    area = 2 / float((score.psf.stamp((nx - 1) / 2, (ny - 1) / 2) ** 2).sum())  # pixels of one independent value
    # the standard deviation from a median absolute deviation has the relative error 1.17 / sqrt(n)
    chance = 2 * 1.17 * np.sqrt(area / np.count_nonzero(score.valid))
    width = score.width
    return width if width > WELL_CALIBRATED + chance else 1.0


def _peaks(score: Score, threshold: float, fwhm: float, *, both_signs: bool) -> list[tuple[int, int]]:
    """Return the pixels of the extrema beyond the threshold, the most significant first."""
    signs = (1, -1) if both_signs else (1,)
    found = [np.column_stack(local_maxima(sign * score.significance, threshold, fwhm)) for sign in signs]
    peaks = np.concatenate(found)
    peaks = peaks[np.argsort(-np.abs(score.significance[peaks[:, 1], peaks[:, 0]]), kind="stable")]
    if len(peaks) > MAX_CANDIDATES:
        warnings.warn(
            f"{len(peaks)} peaks exceed {threshold} sigma; only the {MAX_CANDIDATES} most significant are examined. "
            "The subtraction is probably bad: look at its diagnostics, or raise the threshold.",
            SkyloomWarning,
            stacklevel=3,
        )
        peaks = peaks[:MAX_CANDIDATES]
    return [(int(x), int(y)) for x, y in peaks]


def _context(
    difference: DifferenceLike, score: Score, pixels: Pixels, residual: Array, *, fwhm: float, threshold: float
) -> _Context:
    mask = np.asarray(difference.mask)
    usable = (mask & np.uint32(UNUSABLE)) == 0
    science = difference.science
    sky = estimate_background(science).level if science.usable.any() else 0.0
    bright = bright_sources(np.asarray(science.data, float) - sky, usable & science.usable, score, fwhm)
    saturated = (mask & np.uint32(MaskBit.SATURATED)) != 0
    for exposure in (science, difference.template):
        if exposure is not None and exposure.mask.shape == mask.shape:
            saturated |= (exposure.mask & np.uint32(MaskBit.SATURATED)) != 0
    border = (mask & np.uint32(MaskBit.NO_DATA | MaskBit.EDGE)) != 0
    inside = pixels.weight > 0
    ratio = MAD_TO_SIGMA * float(np.median(np.abs(pixels.image[inside] * np.sqrt(pixels.weight[inside]))))
    opposite = {sign: np.column_stack(local_maxima(-sign * score.significance, 3.0, fwhm)) for sign in (1, -1)}
    return _Context(
        difference, score, pixels, residual, opposite, bright, border, saturated, fwhm, max(ratio, 1.0), threshold
    )


def _judge(source: Source, context: _Context) -> dict[str, Any] | None:
    """Measure one source and collect its flags; None where nothing usable lies under its PSF."""
    pixels, score, fwhm = context.pixels, context.score, context.fwhm
    box = pixels.box(source.ix, source.iy)
    data = context.residual[box] + source.flux * source.model
    weight = pixels.weight[box]
    flux = psf_flux(data, weight, pixels.effective[box], source.model)
    if flux is None:
        return None
    core = disc(score.psf.half, CORE * fwhm)
    # what the PSF model and the residuals of the star below do not describe is no sign of another shape
    systematic = np.hypot(PSF_ERROR * flux.flux, context.bright.fraction * _star_flux(context, source.ix, source.iy))
    soft = weight / (context.noise_ratio**2 + weight * (systematic * source.model) ** 2)
    shape = measure_shape(data, soft, source.model, core, flux=flux.flux, fwhm=fwhm)
    coverage = float((source.model**2)[weight > 0].sum() / (source.model**2).sum())
    flags = _flags(source, context, flux=flux, shape=shape, coverage=coverage)
    if is_sharper(data, soft, source.model, core, _pixel_shapes(context, source.x, source.y)):
        flags |= CandidateFlag.TOO_SHARP
    line = line_flux(pixels.image[box], weight, source.model, fwhm)
    on_line = line != 0 and abs(flux.flux - line) < context.threshold * flux.error
    if on_line:
        flags |= CandidateFlag.NOT_PSF_LIKE
    if line == 0 and shape.misfit > MISFIT:  # what lies on a line has its shape, too
        flags |= CandidateFlag.TRAILED if shape.trailed else CandidateFlag.NOT_PSF_LIKE
    science_flux = float(context.bright.flux[source.iy, source.ix])
    return {
        "x": source.x,
        "y": source.y,
        "pos_err": flux.position_error,
        "flux": flux.flux,
        "flux_err": flux.error,
        "snr": flux.flux / flux.error,
        "sign": int(np.sign(flux.flux)),
        "significance": float(score.significance[source.iy, source.ix]),
        "fwhm": shape.fwhm,
        "ellipticity": shape.ellipticity,
        "chi2": shape.chi2,
        "coverage": coverage,
        "science_flux": science_flux,
        "template_flux": science_flux - float(score.flux[source.iy, source.ix]),
        "kind": "moving" if flags & CandidateFlag.TRAILED else _kind(source, context, flux),
        "flags": int(flags),
        "n_merged": 1,
        "trail": "line" if on_line else "bleed" if flags & CandidateFlag.SATURATED and flags & _MISSHAPEN else "",
    }


def _merged(rows: list[dict[str, Any]], kind: str, step: float) -> list[dict[str, Any]]:
    """Return rows, the most significant first, with one for each trail of a kind: those a step or less apart."""
    on_trail = [number for number, row in enumerate(rows) if row["trail"] == kind]
    if len(on_trail) < 2:
        return rows
    pairs = cKDTree([(rows[k]["x"], rows[k]["y"]) for k in on_trail]).query_pairs(step, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(on_trail), len(on_trail)))
    first: dict[int, int] = {}
    gone = set()
    for number, trail in zip(on_trail, connected_components(links, directed=False)[1].tolist(), strict=True):
        if trail in first:
            rows[first[trail]]["n_merged"] += 1
            gone.add(number)
        else:
            first[trail] = number
    return [row for number, row in enumerate(rows) if number not in gone]


def _pixel_shapes(context: _Context, x: float, y: float) -> list[Array]:
    """Return what a single bright pixel of an image that was convolved looks like in the difference."""
    responses = getattr(context.score.psf, "pixel_responses", None)
    if responses is not None:
        return [np.asarray(one, float) for one in responses(x, y)]
    kernel = getattr(context.difference, "kernel", None)
    return [] if kernel is None else [np.asarray(kernel.image_at(x, y), float)]


def _kind(source: Source, context: _Context, flux: PsfFlux) -> str:
    """Tell what happened: 'moving', 'variable' or 'transient'.

    A source has moved if that is more significant, anywhere within half a FWHM, than that it has changed. Else it is
    variable if the epoch in which it is fainter has a compact source at its place, too.
    """
    x, y, score = source.ix, source.iy, context.score
    if score.moving is not None:
        reach = max(1, round(context.fwhm / 2))
        box = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
        moved = float(moving_significance(score.moving[box].max()))
        if moved > max(context.threshold, float(np.abs(score.significance[box]).max())):
            return "moving"
    return "variable" if _compact_flux(source, context, flux) > COMPACT * flux.error else "transient"


def _compact_flux(source: Source, context: _Context, flux: PsfFlux) -> float:
    """Return by how much the PSF flux of the fainter epoch stands out in the direction in which it does so least.

    That is the largest value, within a pixel of the place, of f(x) - [f(x + d) + f(x - d)] / 2 for the worst d of one
    FWHM: of a star that is nearly its flux, on its neighbour's slope, too; of the wings of a bright star and of a
    galaxy off its centre, which are convex along their radius, less than 0.
    """
    score, reach = context.score, round(context.fwhm) + 1
    ny, nx = score.significance.shape
    rows, columns = (
        np.clip(np.arange(at - reach, at + reach + 1), 0, n - 1) for at, n in ((source.iy, ny), (source.ix, nx))
    )
    box = np.ix_(rows, columns)
    fainter = context.bright.flux[box] - (score.flux[box] if flux.flux > 0 else 0)
    middle = fainter[reach - 1 : reach + 2, reach - 1 : reach + 2]
    least = np.full(middle.shape, np.inf)
    for angle in np.arange(8) * np.pi / 8:
        dy, dx = (round(context.fwhm * part(angle)) for part in (np.sin, np.cos))
        sides = [
            fainter[reach - 1 + k * dy : reach + 2 + k * dy, reach - 1 + k * dx : reach + 2 + k * dx] for k in (1, -1)
        ]
        least = np.minimum(least, middle - (sides[0] + sides[1]) / 2)
    return float(least.max())


def _flags(source: Source, context: _Context, *, flux: PsfFlux, shape: Shape, coverage: float) -> CandidateFlag:
    x, y, fwhm = source.ix, source.iy, context.fwhm
    found = CandidateFlag(0)
    if _touches(context.border, x, y, fwhm, outside=True):
        found |= CandidateFlag.EDGE
    if _touches(context.saturated, x, y, 2 * fwhm):
        found |= CandidateFlag.SATURATED
    if coverage < 0.8:
        found |= CandidateFlag.MASKED
    if abs(flux.flux) < RESIDUAL_SIGMA * context.bright.fraction * _star_flux(context, x, y):
        found |= CandidateFlag.BRIGHT_RESIDUAL
    # 8 sigma of a chi-square of independent pixels: matching correlates them, which makes it scatter more
    line = not shape.ellipticity <= ELONGATED and shape.elongation_snr > 5  # a NaN is beyond 1
    if line or shape.chi2 > max(2.0, 1 + 8 * np.sqrt(2 / shape.dof)):
        found |= CandidateFlag.NOT_PSF_LIKE
    if shape.width_snr < -5 and not shape.fwhm >= 0.7 * fwhm:  # a NaN is below 0
        found |= CandidateFlag.TOO_SHARP
    if abs(flux.flux) < DOUBTFUL * context.threshold * flux.error:
        found |= CandidateFlag.UNCERTAIN
    if _in_dipole(source, flux, context):
        found |= CandidateFlag.DIPOLE
    return found


def _touches(plane: npt.NDArray[np.bool_], x: int, y: int, radius: float, *, outside: bool = False) -> bool:
    """Tell whether a True pixel (or, with `outside`, the border of the image) lies within `radius` of pixel (x, y)."""
    reach = int(np.ceil(radius))
    ny, nx = plane.shape
    y0, y1, x0, x1 = y - reach, y + reach + 1, x - reach, x + reach + 1
    if outside and min(x, y, nx - 1 - x, ny - 1 - y) < radius - 1:
        return True
    cut = plane[max(y0, 0) : y1, max(x0, 0) : x1]
    near = disc(reach, radius)[max(-y0, 0) : max(-y0, 0) + cut.shape[0], max(-x0, 0) : max(-x0, 0) + cut.shape[1]]
    return bool((cut & near).any())


def _star_flux(context: _Context, x: int, y: int) -> float:
    """Return the largest flux within one FWHM that both epochs share: a new source is not a residual of itself."""
    reach = max(1, round(context.fwhm))
    rows, columns = slice(max(y - reach, 0), y + reach + 1), slice(max(x - reach, 0), x + reach + 1)
    science = context.bright.flux[rows, columns]
    return float(np.minimum(science, science - context.score.flux[rows, columns]).max())


def _in_dipole(source: Source, flux: PsfFlux, context: _Context) -> bool:
    """Look for a counterpart of opposite sign and compare the pair with the single source."""
    sign = 1 if flux.flux > 0 else -1
    others = context.opposite[sign]
    distance = np.hypot(others[:, 0] - source.x, others[:, 1] - source.y)
    significance = context.score.significance
    strength = np.abs(significance[others[:, 1], others[:, 0]])
    near = (distance < DIPOLE_REACH * context.fwhm) & (strength > 0.3 * abs(significance[source.iy, source.ix]))
    if not near.any():
        return False
    pixels, half = context.pixels, context.score.psf.half
    box = pixels.box(source.ix, source.iy)
    data, weight = pixels.image[box], pixels.weight[box]
    core = disc(half, min(half, (CORE + 1) * context.fwhm))
    counterparts = (
        stamp_at(context.score.psf, source.ix, source.iy, float(x - source.ix), float(y - source.iy))
        for x, y in others[near]
    )
    return any(is_dipole(data, weight, (source.model, other), core) for other in counterparts)


def _table(rows: list[dict[str, Any]], difference: DifferenceLike) -> Table:
    """Make the table with units and descriptions; it has all columns even without any row."""
    science = difference.science
    unit = science.unit
    described = {
        "x": ("pix", "Position from the PSF fit, 0-based"),
        "y": ("pix", "Position from the PSF fit, 0-based"),
        "pos_err": ("pix", "Standard deviation of x and of y"),
        "flux": (unit, "PSF flux in the difference"),
        "flux_err": (unit, "Standard deviation of flux, noise covariance included"),
        "snr": (None, "flux / flux_err"),
        "sign": (None, "1: brighter than in the template, -1: fainter"),
        "significance": (None, "Score at the peak pixel, standard deviations"),
        "fwhm": ("pix", "Full width at half maximum; NaN where noise leaves none"),
        "ellipticity": (None, "Ellipticity beyond that of the PSF: 0 circle, 1 line; NaN beyond 1"),
        "chi2": (None, "Reduced chi-square of the PSF fit"),
        "coverage": (None, "Part of the PSF's weight on usable pixels"),
        "n_merged": (None, "Detections along a bleed or other trail that this row stands for; 1: itself"),
        "science_flux": (unit, "PSF flux at this place in the science image"),
        "template_flux": (unit, "PSF flux at this place in the matched template"),
        "flags": (None, "Reasons to doubt, bits of CandidateFlag"),
    }
    table = Table(masked=False)
    table["id"] = Column(np.arange(1, len(rows) + 1), description="Number, by falling absolute snr")
    for name, (column_unit, description) in described.items():
        dtype = np.int64 if name in ("sign", "flags", "n_merged") else np.float64
        table[name] = Column([row[name] for row in rows], dtype=dtype, unit=column_unit, description=description)
    table["kind"] = Column(
        [row["kind"] for row in rows],
        dtype="U9",
        description="transient (seen in one epoch), variable (in both), moving (displaced rather than changed)",
    )
    words = [flag_text(row["flags"]) for row in rows]
    table["flag_text"] = Column(words, dtype="U96", description="Reasons to doubt, in words")
    table["real"] = Column([row["flags"] == 0 for row in rows], dtype=bool, description="True without any flag")
    order = np.lexsort((table["id"], ~np.asarray(table["real"], bool)))
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(1, len(rows) + 1)
    table["rank"] = Column(rank, description="1: the most significant one without flags; flagged ones come last")
    _add_sky(table, getattr(difference, "wcs", None) or science.wcs)
    _add_magnitudes(table, science.zeropoint)
    for name, form in _FORMATS.items():
        if name in table.colnames:
            table[name].info.format = form
    return table


_FORMATS = {
    **dict.fromkeys(("x", "y", "snr", "significance", "fwhm", "ellipticity", "chi2", "coverage"), ".3f"),
    **dict.fromkeys(("flux", "science_flux", "template_flux"), ".7g"),
    **dict.fromkeys(("flux_err", "pos_err"), ".4g"),
    **dict.fromkeys(("ra", "dec"), ".7f"),
    **dict.fromkeys(("mag", "mag_err"), ".4f"),
}
"""How columns are shown; files hold all digits."""


def _add_sky(table: Table, wcs: Any) -> None:
    if wcs is None:
        return
    if len(table):
        sky = wcs.pixel_to_world(np.asarray(table["x"]), np.asarray(table["y"])).icrs
        ra, dec = sky.ra.deg, sky.dec.deg
    else:
        ra, dec = np.zeros(0), np.zeros(0)
    table.add_column(Column(ra, unit="deg", description="Right ascension, ICRS"), name="ra", index=3)
    table.add_column(Column(dec, unit="deg", description="Declination, ICRS"), name="dec", index=4)


def _add_magnitudes(table: Table, zeropoint: float | None) -> None:
    if zeropoint is None:
        return
    flux, error = np.abs(np.asarray(table["flux"])), np.asarray(table["flux_err"])
    safe = np.where(flux > 0, flux, np.nan)
    table["mag"] = Column(zeropoint - 2.5 * np.log10(safe), unit="mag", description="Magnitude of abs(flux)")
    table["mag_err"] = Column(2.5 / np.log(10) * error / safe, unit="mag", description="Standard deviation of mag")
