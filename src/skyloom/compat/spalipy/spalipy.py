"""`Spalipy`: align source images with a template by their stars."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from scipy.spatial import cKDTree

from skyloom.compat.spalipy._affine import (
    AffineTransform,
    ResidualSurface,
    as_rows,
    calc_affine_transform,
    fit_similarity,
    like,
    shifted,
    subtract_surfaces,
)
from skyloom.compat.spalipy._checks import checked_inputs
from skyloom.compat.spalipy._console import main, main_simple
from skyloom.compat.spalipy._detections import TooFewDetectionsError, cross_match, extract, positions, select
from skyloom.compat.spalipy._entry import Entry, per_entry
from skyloom.compat.spalipy._quads import Quad, quad, quads_of_tiles, tiles
from skyloom.compat.spalipy._warp import filled, padded, union_frame, warp, warp_mask
from skyloom.compat.spalipy.utils import _memmap_create_temp
from skyloom.errors import InputError, NoMatchError, RegistrationError
from skyloom.exposure import Exposure
from skyloom.registration import register

__all__ = ["AffineTransform", "Spalipy", "calc_affine_transform", "main", "main_simple", "quad"]

log = logging.getLogger("skyloom.compat.spalipy")

Float = npt.NDArray[np.float64]
Map = Callable[[Float], Float]

_NODES = {1: 257}
_MOST_NODES = 65
"""Nodes along an axis of the surfaces `sbs_x`, `sbs_y`: more for the piecewise linear one."""


class AlignmentError(NoMatchError, RuntimeError):
    """No source could be aligned with the template."""


class Spalipy:
    """Align one or several source images with a template.

    `align` does all of it: `make_source_quadlist`, `make_template_quadlist`, `fit_affine_transform`,
    `fit_spline_transform` and `transform_data`.

    The match itself is that of `skyloom.register`: it needs no tuning, handles reflections and distortions, and is
    verified against chance. `n_quad_det`, `min_quad_sep`, `sub_tile` and `quad_edge_buffer` decide which quads are
    listed, and with `max_quad_cand`, `patience_quad_cand` and `max_quad_hash_dist` have no influence on the result.

    Parameters
    ----------
    source_data : ndarray, shape (ny, nx), or list of them
        What to align. With a list, the attributes are lists.
    source_mask : ndarray of int or bool, or list of them (or None), optional
        Pixels that are not zero weigh nothing, neither in the detection nor in the interpolation.
    template_data : ndarray, shape (ny, nx), optional
        Image that gives the frame. It or `template_det` is needed.
    source_det, template_det : Table, optional
        Detections with the columns of `columns`, 0-based positions; by default they are found in the data.
    output_shape : (int, int) or list of them, optional
        Shape (ny, nx) of the aligned data; the default is the template's, or the source's if there is no template data.
    n_det : int or float, optional
        Use the brightest so many, or (0 < n_det <= 1) that fraction; the default is all.
    n_quad_det : int
        Detections per tile from which quads are made.
    min_quad_sep : float
        Pixels: least distance of two detections of a quad.
    max_match_dist : float
        Pixels: largest distance of a match, which must have no rival within twice that.
    min_n_match : int
        Fewer matches make an entry fail.
    sub_tile : int
        Quads are made in each of sub_tile x sub_tile tiles.
    max_quad_cand, patience_quad_cand, max_quad_hash_dist : int, int, float
        Limits of a search that this one does not make: checked, and without influence.
    quad_edge_buffer : float
        Pixels: no detection nearer to the border is part of a quad.
    spline_order : int
        Degree of `sbs_x` and `sbs_y`, 1 to 5: the map follows the stars as closely as the data warrant. 0: scale,
        rotation and shift only.
    interp_order : int
        0: nearest pixel, 1: bilinear, 2 to 5: interpolating spline of that order (area overlap where the output's
        pixels are more than 1.1 times larger, and the order is 3).
    sep_thresh : float
        Detection threshold in standard deviations.
    min_fwhm : float
        Pixels: narrower detections are not used.
    bad_flag_bits : int
        Detections with any of these bits in their flag are not used.
    min_sep : float, optional
        Pixels: of two detections that are nearer neither is used; the default is ``2 * max_match_dist``.
    preserve_footprints : bool
        Output a frame that holds the template and all sources; `template_data` and its detections move with it.
    cval, cval_mask : float
        Value of aligned data and masks where there is no usable source pixel.
    skip_checking : bool
        Do not check the inputs.
    copy : bool
        Copy float64 sources too. False: take them as they are; they are not changed.
    use_memmap : bool
        Keep aligned data in temporary files.
    temp_dir : path-like, optional
        Where.
    thread_pool_max : int, optional
        Sources that are interpolated at the same time; the default is one after the other, each on all processors.

    Raises
    ------
    ValueError
        An argument cannot be used, or there are fewer than `min_n_match` detections.
    """

    x_col = "x"
    y_col = "y"
    flux_col = "flux"
    fwhm_col = "fwhm"
    flag_col = "flag"
    columns = [x_col, y_col, flux_col, fwhm_col, flag_col]  # noqa: RUF012  # as published

    def __init__(  # noqa: PLR0917  # the published signature
        self,
        source_data: npt.NDArray[Any] | list[npt.NDArray[Any]],
        source_mask: npt.NDArray[Any] | list[npt.NDArray[Any] | None] | None = None,
        template_data: npt.NDArray[Any] | None = None,
        source_det: Table | list[Table] | None = None,
        template_det: Table | None = None,
        output_shape: tuple[int, int] | list[tuple[int, int]] | None = None,
        n_det: float | None = None,
        n_quad_det: int = 20,
        min_quad_sep: float = 50,
        max_match_dist: float = 3,
        min_n_match: int = 100,
        sub_tile: int = 1,
        max_quad_cand: int = 10,
        quad_edge_buffer: float = 0,
        patience_quad_cand: int = 2,
        max_quad_hash_dist: float = 0.005,
        spline_order: int = 3,
        interp_order: int = 3,
        sep_thresh: float = 5,
        min_fwhm: float = 1,
        bad_flag_bits: int = 0,
        min_sep: float | None = None,
        preserve_footprints: bool = False,
        cval: float = 0,
        cval_mask: float = 0,
        skip_checking: bool = False,
        copy: bool = True,
        use_memmap: bool = False,
        temp_dir: str | Path | None = None,
        thread_pool_max: int | None = None,
    ) -> None:
        self.n_det = n_det
        self.n_quad_det = n_quad_det
        self.min_quad_sep = min_quad_sep
        self.max_match_dist = max_match_dist
        self.min_n_match = min_n_match
        self.sub_tile = sub_tile
        self.max_quad_cand = max_quad_cand
        self.quad_edge_buffer = quad_edge_buffer
        self.patience_quad_cand = patience_quad_cand
        self.max_quad_hash_dist = max_quad_hash_dist
        self.spline_order = spline_order
        self.interp_order = interp_order
        self.sep_thresh = sep_thresh
        self.min_fwhm = min_fwhm
        self.bad_flag_bits = bad_flag_bits
        self.min_sep: Any = min_sep  # checked below
        self.preserve_footprints = preserve_footprints
        self.cval = cval
        self.cval_mask = cval_mask
        self.use_memmap = use_memmap
        self.temp_dir = temp_dir
        self.thread_pool_max = thread_pool_max
        self._many = isinstance(source_data, list)
        inputs = checked_inputs(
            self,
            source_data=source_data,
            source_mask=source_mask,
            template_data=template_data,
            source_det=source_det,
            template_det=template_det,
            output_shape=output_shape,
            check=not skip_checking,
            copy=copy,
        )
        self.min_sep = 2 * max_match_dist if min_sep is None else min_sep
        self.anchor, self._moved = np.zeros(2, np.intp), False
        self.template_data = None if inputs.template_data is None else self._kept(inputs.template_data)
        self.template_quadlist: list[Quad] | None = None
        self._entries = [
            Entry(data, mask, shape)
            for data, mask, shape in zip(inputs.data, inputs.masks, inputs.output_shapes, strict=True)
        ]
        for number, (entry, det) in enumerate(zip(self._entries, inputs.source_dets, strict=True)):
            log.info("Processing source entry %d", number)
            entry.det = self._detections(det, functools.partial(entry.exposure, number))
            entry.coo = positions(entry.det, self.x_col, self.y_col)
        log.info("Processing template")
        self.template_det = self._detections(
            template_det, lambda: Exposure(np.asarray(self.template_data), name="template")
        )
        self._set_template_positions()

    source_data = per_entry("data", "Sources, float64.")
    source_mask = per_entry("mask", "Their masks.")
    source_det = per_entry("det", "Detections of the sources that are used, brightest first.")
    source_coo = per_entry("coo", "Their positions, shape (N, 2).")
    source_quadlist = per_entry("quadlist", "For each tile its quads: (stars, hash).")
    output_shape = per_entry("output_shape", "Shape (ny, nx) of the aligned data.")
    source_det_matched = per_entry("source_matched", "Rows of `source_det` that match those of `template_det_matched`.")
    template_det_matched = per_entry("template_matched", "Rows of `template_det` that match.")
    affine_transform = per_entry("affine", "`AffineTransform` from source to template pixels.")
    sbs_x = per_entry("sbs_x", "What the affine transform leaves in x (template - transformed), over the template.")
    sbs_y = per_entry("sbs_y", "The same in y.")
    spline_transform = per_entry(
        "spline",
        "Callable (xy, relative=False): positions on the template less `sbs_x`, `sbs_y`; relative: minus them.",
    )
    aligned_data = per_entry("aligned_data", "Aligned sources, float64.")
    aligned_mask = per_entry("aligned_mask", "Their masks, in the type of `source_mask`.")
    registration = per_entry("registration", "`skyloom.registration.Registration` of each source.")

    @property
    def alignment_failed(self) -> bool | list[bool]:
        """Whether a source could not be aligned."""
        failed = [entry.failed for entry in self._entries]
        return failed if self._many else failed[0]

    def align(self) -> None:
        """Match, fit and interpolate.

        Raises
        ------
        RuntimeError
            No source could be aligned. With several, those that could not are None in the lists.
        """
        self.make_source_quadlist()
        self.make_template_quadlist()
        self.fit_affine_transform()
        self.fit_spline_transform()
        self.transform_data()

    def make_source_quadlist(self) -> None:
        """List the quads of each source, by tiles."""
        for number, entry in enumerate(self._entries):
            log.info("Generating source quads for entry %d", number)
            entry.quadlist = self._quads(entry.coo, entry.data.shape)

    def make_template_quadlist(self) -> None:
        """List the quads of the template."""
        log.info("Generating template quads")
        self.template_quadlist = [
            one for tile in self._quads(self.template_coo, self._template_shape()) for one in tile
        ]

    def fit_affine_transform(self) -> None:
        """Match each source with the template, and fit scale, rotation and shift."""
        reasons = []
        for number, entry in enumerate(self._entries):
            log.info("Fitting affine transform and cross-matching for entry %d", number)
            try:
                self._fit_affine_transform(entry)
            except RegistrationError as error:
                entry.failed = True
                reasons.append(str(error))
                log.error("%s", error)
                log.error("Alignment failed for entry %d", number)
        if all(entry.failed for entry in self._entries):
            raise AlignmentError(
                f"No source entries successfully found an affine transform. {' '.join(dict.fromkeys(reasons))}"
            )

    def _fit_affine_transform(self, entry: Entry) -> None:
        tables = [
            self._table(entry.det, entry.data.shape, "source"),
            self._table(self.template_det, self._template_shape(), "template"),
        ]
        found = entry.registration = register(*tables)
        index, partner = cross_match(found.source_to_template(entry.coo), self.template_coo_tree, self.max_match_dist)
        log.info("Matched %d detections within %s pixels", len(index), self.max_match_dist)
        if len(index) < self.min_n_match:
            raise NoMatchError(
                f"Number of affine transform matched detections ({len(index)}) < minimum required "
                f"({self.min_n_match}); lower min_n_match, or detect more sources.",
                found=len(index),
                needed=self.min_n_match,
            )
        entry.source_matched, entry.template_matched = entry.det[index], self.template_det[partner]
        pairs = found.matched
        entry.affine = fit_similarity(
            np.column_stack([pairs["x_source"], pairs["y_source"]]),
            np.column_stack([pairs["x_template"], pairs["y_template"]]),
            np.asarray(pairs["sigma"]) / found.scale,
            found.parity,
        )
        log.info("Found scale = %.4f, rotation = %.4f degrees", entry.affine.scale, entry.affine.rotation)

    def fit_spline_transform(self) -> None:
        """Describe what the affine transform leaves by two surfaces over the template."""
        if self.spline_order == 0:
            log.info("Skipping spline transformation fit (spline order is 0)")
            return
        for number, entry in enumerate(self._entries):
            if entry.affine is not None:
                log.info("Fitting spline transform for entry %d", number)
                self._fit_surfaces(entry)

    def _fit_surfaces(self, entry: Entry) -> None:
        ny, nx = entry.output_shape
        count = _NODES.get(self.spline_order, _MOST_NODES)
        x, y = (np.linspace(0, max(n - 1, 1), max(self.spline_order + 1, min(count, n))) for n in (nx, ny))
        grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        assert entry.affine is not None
        offset = grid - entry.affine.apply_transform(self._to_source(entry)(grid.reshape(-1, 2))).reshape(grid.shape)
        entry.sbs_x, entry.sbs_y = (ResidualSurface(x, y, offset[..., axis], self.spline_order) for axis in range(2))
        entry.spline = functools.partial(subtract_surfaces, _sbs_x=entry.sbs_x, _sbs_y=entry.sbs_y)

    def full_transform(self, coo: npt.ArrayLike, entry: int = 0, inverse: bool = True) -> Float:
        """Map positions of shape (N, 2) or (2, n, m) by the whole transform.

        Parameters
        ----------
        coo : array_like
            Positions.
        entry : int
            Which source.
        inverse : bool
            True: from the template's (output's) pixels to the source's, as interpolation needs it. False: the exact
            inverse of that.
        """
        one = self._entries[entry]
        if one.affine is None:
            raise InputError(f"Source entry {entry} has no transform; call fit_affine_transform() first.", entry=entry)
        return like((self._to_source if inverse else self._to_template)(one)(as_rows(coo)), coo)

    def _to_source(self, entry: Entry) -> Map:
        """Return the map from output to source pixels."""
        registration, affine, anchor = entry.registration, entry.affine, self.anchor
        assert registration is not None
        assert affine is not None
        if self.spline_order == 0:
            return affine.inverse().apply_transform
        return lambda xy: registration.template_to_source(xy - anchor)

    def _to_template(self, entry: Entry) -> Map:
        registration, affine, anchor = entry.registration, entry.affine, self.anchor
        assert registration is not None
        assert affine is not None
        if self.spline_order == 0:
            return affine.apply_transform
        return lambda xy: registration.source_to_template(xy) + anchor

    def transform_data(self) -> None:
        """Interpolate the sources (and their masks) at the pixels of the output."""
        ready = [(number, entry) for number, entry in enumerate(self._entries) if entry.affine is not None]
        if not ready:
            raise AlignmentError("No source has a transform; call fit_affine_transform() first.")
        self._preserve_footprints()
        if self.thread_pool_max is None or len(ready) == 1:
            for number, entry in ready:
                self._transform_data(number, entry)
        else:
            with ThreadPoolExecutor(self.thread_pool_max) as pool:
                list(pool.map(lambda pair: self._transform_data(*pair), ready))

    def _transform_data(self, number: int, entry: Entry) -> None:
        log.info("Aligning source data entry %d", number)
        exposure, to_source = entry.exposure(number), self._to_source(entry)
        result = warp(exposure, to_source, entry.output_shape, self.interp_order)
        entry.aligned_data = self._kept(filled(result, exposure, to_source, self.cval))
        if entry.mask is not None:
            entry.aligned_mask = self._kept(warp_mask(entry.mask, result, to_source, self.interp_order, self.cval_mask))

    def resample(self, exposure: Exposure, entry: int = 0) -> tuple[Exposure, Float]:
        """Interpolate an exposure that shares its pixels with a source, with its variance and mask.

        Returns
        -------
        Exposure
            In the frame of the output.
        ndarray
            Its data with `cval` where nothing is known.
        """
        self._preserve_footprints()
        one = self._entries[entry]
        to_source = self._to_source(one)
        result = warp(exposure, to_source, one.output_shape, self.interp_order)
        return result, filled(result, exposure, to_source, self.cval)

    def _preserve_footprints(self) -> None:
        """Move everything into the frame that holds the template and all sources, once."""
        if not self.preserve_footprints or self._moved:
            return
        self._moved = True
        entries = [entry for entry in self._entries if entry.affine is not None]
        log.info("Calculating footprints of transformed source images")
        assert self.template_data is not None
        self.anchor, shape = union_frame(
            self.template_data.shape,
            [self._to_template(entry) for entry in entries],
            [entry.data.shape for entry in entries],
        )
        self.template_data = padded(self.template_data, self.anchor, shape, self.cval)
        self.template_det = self._shifted(self.template_det)
        self._set_template_positions()
        for entry in self._entries:
            entry.output_shape = shape
        for entry in entries:
            entry.template_matched = self._shifted(entry.template_matched)
            entry.affine = shifted(entry.affine, self.anchor)  # type: ignore[arg-type]  # it is there
            if self.spline_order > 0:
                self._fit_surfaces(entry)

    def log_transform_stats(self) -> None:
        """Log how well the matched detections agree."""
        for number, entry in enumerate(self._entries):
            if entry.source_matched is None or entry.template_matched is None:
                continue
            miss = positions(entry.template_matched, self.x_col, self.y_col) - self.full_transform(
                positions(entry.source_matched, self.x_col, self.y_col), number, inverse=False
            )
            log.info("Source entry %d:", number)
            log.info("Matched %d detections within %s pixels", len(miss), self.max_match_dist)
            log.info("Pixel residuals between matched detections [mean, median (stddev)]:")
            for name, column in zip("xy", miss.T, strict=True):
                log.info("%s = %.3f, %.3f (%.3f)", name, column.mean(), np.median(column), column.std())

    def _detections(self, table: Table | None, exposure: Callable[[], Exposure]) -> Table:
        """Return the detections that are used: of a table, or of an image."""
        if table is None:
            table = extract(exposure(), self.sep_thresh)
            table.rename_columns(["x", "y", "flux", "fwhm", "flag"], list(self.columns))
        log.info("Initially extracted %d detections", len(table))
        used = select(
            table,
            list(self.columns),
            min_fwhm=self.min_fwhm,
            bad_flag_bits=self.bad_flag_bits,
            min_sep=self.min_sep,
        )
        if self.n_det is not None:
            is_fraction = isinstance(self.n_det, float) and 0 < self.n_det <= 1
            used = used[: int(np.ceil(self.n_det * len(used))) if is_fraction else int(self.n_det)]
        if len(used) < self.min_n_match:
            raise TooFewDetectionsError(
                f"Number of detections found ({len(used)}) is less than min_n_match ({self.min_n_match}) - no solution "
                "possible. Lower min_n_match, or detect more sources.",
                found=len(used),
                needed=self.min_n_match,
            )
        log.info("Using %d detections in alignment", len(used))
        return used

    def _table(self, det: Table, shape: tuple[int, ...] | None, name: str) -> Table:
        """Return detections under the names that `register` knows."""
        table = det.copy()
        table.rename_columns(list(self.columns), ["x", "y", "flux", "fwhm", "flag"])
        table.meta = {"name": name} | ({} if shape is None else {"shape": shape})
        return table

    def _template_shape(self) -> tuple[int, ...] | None:
        return None if self.template_data is None else self.template_data.shape

    def _set_template_positions(self) -> None:
        self.template_coo = positions(self.template_det, self.x_col, self.y_col)
        self.template_coo_tree = cKDTree(self.template_coo)

    def _shifted(self, table: Table) -> Table:
        moved = table.copy()
        for name, shift in zip((self.x_col, self.y_col), self.anchor, strict=True):
            moved[name] = np.asarray(moved[name], np.float64) + shift
        return moved

    def _quads(self, coo: Float, shape: tuple[int, ...] | None) -> list[list[Quad]]:
        ny, nx = np.ceil(coo.max(axis=0)[::-1]) + 1 if shape is None else shape
        of_tiles = tiles(coo, (int(ny), int(nx)), self.sub_tile, self.quad_edge_buffer)
        return quads_of_tiles(coo, of_tiles, self.n_quad_det, self.min_quad_sep)

    def _kept(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _memmap_create_temp(array, self.temp_dir) if self.use_memmap else array
