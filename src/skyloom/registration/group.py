"""Many images at once: all to one frame, or all to the frame and the star positions that fit them best together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from scipy.spatial import cKDTree

from skyloom.errors import InputError, NoUsableDataError, RegistrationError, SkyloomError
from skyloom.registration.fit import StarList
from skyloom.registration.register import (
    FEWEST,
    RegistrationOptions,
    checked_options,
    find_sources,
    register,
    star_list,
)
from skyloom.registration.result import Registration
from skyloom.registration.search import refine
from skyloom.registration.transform import Transform

log = logging.getLogger("skyloom.registration")

Float = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

_RADIUS = 1.5
"""Pixels of the reference: detections of different images that are nearer are one star."""

_MOST_ROUNDS = 12
_STILL = 1e-3
"""Pixels: the joint solution is found when no transform moves by more."""


@dataclass(frozen=True, eq=False)
class Group:
    """The registrations of many images.

    Attributes
    ----------
    registrations : tuple of Registration or None
        One for each image, in their order: from the pixels of the reference to those of the image. None where it could
        not be registered, and for the reference itself.
    errors : dict of int to SkyloomError
        Why, by the number of the image.
    reference : int or None
        Which image gave the frame; None if it is none of them.
    stars : Table or None
        After a joint fit, all stars in the frame of the reference, brightest first: x, y, x_err, y_err, flux (scale of
        the reference), n_images, and rms, the scatter of the measurements per axis (pixels; NaN for a single one).
    rounds : int
        Of the joint fit.
    """

    registrations: tuple[Registration | None, ...]
    errors: dict[int, SkyloomError]
    reference: int | None
    stars: Table | None = None
    rounds: int = 0

    def __len__(self) -> int:
        return len(self.registrations)

    def __getitem__(self, index: int) -> Registration | None:
        return self.registrations[index]

    def __iter__(self) -> Iterator[Registration | None]:
        return iter(self.registrations)

    def __str__(self) -> str:
        rms = [one.rms for one in self.registrations if one is not None]
        lost = f", {len(self.errors)} refused" if self.errors else ""
        joint = "" if self.stars is None else f", {len(self.stars)} stars fitted jointly in {self.rounds} rounds"
        return f"Group: {len(rms)} images registered, median rms {np.median(rms):.3f} px{lost}{joint}"


def register_group(
    images: Sequence[Any],
    options: RegistrationOptions | None = None,
    *,
    reference: Any = None,
    joint: bool = False,
    progress: Progress | None = None,
) -> Group:
    """Register many images to one frame.

    Parameters
    ----------
    images : sequence of Exposure, Table, what `skyloom.io.read` accepts, or functions that return one of these
        See `register`. Each is read once, and only its sources are kept.
    options : RegistrationOptions, optional
        How to work.
    reference : int, or an image as above, optional
        Whose pixels are the frame; the default is the image with the most sources.
    joint : bool
        Fit all transforms and all star positions together, which minimises::

            sum_i sum_s |x_is - T_i(c_s)|^2 / sigma_is^2

        over the transforms T_i and the positions c_s by fitting them in turn; the reference's transform stays the
        identity. Positions then carry the noise of all images instead of that of the reference, and an image that
        shares too little with the reference is matched to what the others add to it.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Group

    Raises
    ------
    InputError
        There are no images, or `reference` is no number of one.
    RegistrationError
        None of the images can be registered.
    """
    options = checked_options(options)
    report = progress or (lambda *_: None)
    images = list(images)
    if not images:
        raise InputError("There are no images to register; at least one is needed.")
    errors: dict[int, SkyloomError] = {}
    tables: list[Table | None] = []
    for number, image in enumerate(images):
        report("detecting sources", number, 2 * len(images))
        try:
            tables.append(_table(image, options))
        except (RegistrationError, NoUsableDataError) as error:
            errors[number] = error
            tables.append(None)
    chosen, frame = _reference(reference, tables, options, errors)
    found: list[Registration | None] = []
    for index, table in enumerate(tables):
        report("matching stars", len(images) + index, 2 * len(images))
        found.append(None if table is None or index == chosen else _try(table, frame, options, index, errors))
    stars, rounds = None, 0
    if joint:
        report("fitting all together", 2 * len(images), 2 * len(images))
        lists = {
            index: star_list(table, options.source_shape, "image")
            for index, table in enumerate(tables)
            if table is not None and index != chosen and len(table) >= FEWEST
        }
        stars, rounds = _JointFit(tables, found, errors, options, frame, lists).run()
    if len(errors) == len(images) - (chosen is not None) and errors:
        first = tables[min(errors)]
        name = "the first" if first is None else str(first.meta.get("name", "the first"))
        raise RegistrationError(
            f"None of the {len(images)} images can be registered to the reference; {name} because: "
            f"{errors[min(errors)]}",
            images=len(images),
        )
    result = Group(tuple(found), errors, chosen, stars, rounds)
    log.debug("%s", result)
    return result


def _table(image: Any, options: RegistrationOptions) -> Table:
    """Return the sources of an image, with its WCS in their meta."""
    exposure, table = find_sources(image, options)
    if exposure is not None:
        table.meta["wcs"] = exposure.wcs
    return table


def _reference(
    reference: Any, tables: list[Table | None], options: RegistrationOptions, errors: dict[int, SkyloomError]
) -> tuple[int | None, Table]:
    """Return the number of the reference among the images (None if it is another one) and its sources."""
    if reference is not None and not isinstance(reference, Integral):
        return None, _table(reference, options)
    most = int(np.argmax([-1 if table is None else len(table) for table in tables]))
    number = most if reference is None else int(reference)
    if not 0 <= number < len(tables):
        raise InputError(f"reference is {number}; it must be 0 to {len(tables) - 1}, or an image.")
    table = tables[number]
    if table is None:
        raise errors[number]
    return number, table


def _try(
    table: Table, frame: Table, options: RegistrationOptions, index: int, errors: dict[int, SkyloomError]
) -> Registration | None:
    try:
        return register(table, frame, options)
    except RegistrationError as error:
        errors[index] = error
        return None


@dataclass(eq=False)
class _JointFit:
    """Transforms and star positions, fitted in turn.

    Attributes
    ----------
    tables, found, errors, options
        See `register_group`; `found` and `errors` are changed.
    frame : Table
        Sources of the reference.
    lists : dict of int to StarList
        Stars of the images that take part.
    """

    tables: list[Table | None]
    found: list[Registration | None]
    errors: dict[int, SkyloomError]
    options: RegistrationOptions
    frame: Table
    lists: dict[int, StarList]

    def run(self) -> tuple[Table, int]:
        """Return the common stars and the number of rounds."""
        count = 0
        while True:
            count += 1
            stars = self.common_stars()
            if self.fit_transforms(stars, retry=count <= 2) < _STILL or count == _MOST_ROUNDS:
                return stars, count

    def common_stars(self) -> Table:
        """Return the mean positions, given the transforms."""
        reference = star_list(self.frame, self.options.template_shape, "reference")
        images = [(Transform.linear(np.eye(2)), reference, _flux(self.frame, reference))]
        for index, stars in self.lists.items():
            one = self.found[index]
            if one is not None:
                ratio = one.flux_ratio if np.isfinite(one.flux_ratio) else 1.0
                images.append((one.transform, stars, _flux(self.tables[index], stars) / ratio))
        return _common_stars(images)

    def fit_transforms(self, table: Table, *, retry: bool) -> float:
        """Fit all transforms, given the positions, and return by how much they moved, pixels."""
        common, moved = star_list(table, None, "common stars"), 0.0
        for index, stars in self.lists.items():
            before = self.found[index]
            if before is None:
                # what the others have added may hold enough of its stars
                again = _try(self.tables[index], table, self.options, index, self.errors) if retry else None
                if again is not None:
                    self.found[index] = again
                    moved = np.inf
                    del self.errors[index]
                continue
            solution = refine(
                before.transform, common, stars, max_order=self.options.max_order, trials=1, method=before.method
            )
            # fewer pairs than before can make it worse than what was beyond doubt: then that stays
            if solution is not None and -solution.log_chance > self.options.min_log_odds:
                after = Registration.from_solution(solution, self.tables[index], table, self.frame.meta.get("wcs"))
                xy = np.column_stack([after.matched["x_template"], after.matched["y_template"]])
                step = after.template_to_source(xy) - before.template_to_source(xy)
                moved, self.found[index] = max(moved, float(np.abs(step).max())), after
        return moved


def _flux(table: Any, stars: StarList) -> Float:
    """Return the fluxes of a list of stars; where the table has none, their order stands for them."""
    if "flux" in table.colnames:
        return np.asarray(table["flux"], np.float64)[stars.rows]
    return np.asarray(1.0 / (1.0 + np.arange(len(stars))), np.float64)


def _common_stars(images: Sequence[tuple[Transform, StarList, Float]]) -> Table:
    """Return the weighted mean positions of the stars of all images, given the transform to each and scaled fluxes."""
    place = np.empty((0, 2))
    members, positions, weights, fluxes = [], [], [], []
    for transform, stars, flux in images:
        xy = transform.inverse(stars.xy)
        star = np.full(len(xy), -1)
        usable = np.isfinite(xy).all(axis=1)
        if len(place):
            distance, near = cKDTree(place).query(
                np.where(np.column_stack([usable, usable]), xy, 1e12), distance_upper_bound=_RADIUS
            )
            order = np.flatnonzero(np.isfinite(distance))
            order = order[np.argsort(distance[order], kind="stable")]
            chosen, first = np.unique(near[order], return_index=True)
            star[order[first]] = chosen
            # a second detection of the same star is neither this star nor a new one
            usable &= np.isinf(distance) | (star >= 0)
        new = usable & (star < 0)
        star[new] = len(place) + np.arange(int(new.sum()))
        place = np.concatenate([place, xy[new]])
        members.append(star[usable])
        positions.append(xy[usable])
        weights.append((stars.error[usable] / transform.scale) ** -2.0)
        fluxes.append(flux[usable])
    star, xy, w, f = (np.concatenate(part) for part in (members, positions, weights, fluxes))
    n = len(place)

    def total(values: Float) -> Float:
        return np.asarray(np.bincount(star, values, n), np.float64)

    count, weight = np.bincount(star, minlength=n), total(w)
    mean = np.column_stack([total(w * xy[:, axis]) / weight for axis in range(2)])
    scatter = total(w * ((xy - mean[star]) ** 2).sum(axis=1)) / weight
    freedom = 2.0 * (count - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rms = np.where(freedom > 0, np.sqrt(scatter * count / freedom), np.nan)
    flux = total(f) / count
    error = 1 / np.sqrt(weight)
    order = np.argsort(-flux, kind="stable")
    columns = {"x": mean[:, 0], "y": mean[:, 1], "x_err": error, "y_err": error, "flux": flux, "n_images": count}
    table = Table({name: column[order] for name, column in columns.items()} | {"rms": rms[order]})
    size = np.ceil(np.ptp(mean, axis=0)) + 1
    table.meta = {"name": "common stars", "shape": (int(size[1]), int(size[0]))}
    return table
