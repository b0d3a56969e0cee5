"""Where a model lies on the output of `skyloom.resampling.Resample`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from skyloom.resampling._drizzle_kernels import DrizzleGeometry, drop_scale, kernel_in_use
from skyloom.resampling._drizzle_map import Positions, any_finite, for_kernels, positions_of
from skyloom.resampling.model_input import ModelImage
from skyloom.resampling.model_sums import ModelSums, Scales
from skyloom.resampling.pipeline_utils import is_imaging_wcs
from skyloom.resampling.pixmap import Box, _without_box, positions_between

_EXACT = 1e-5  # pixels; what is promised of a map where every pixel is asked for

Window = tuple[int, int, int, int]


class ModelGeometry:
    """The part of `skyloom.resampling.Resample` that places models on the output."""

    pixfrac: float
    kernel: str
    pixmap_stepsize: float
    pixmap_order: int
    pixmap_tolerance: float | None
    squared_weights: bool
    _driz: ModelSums
    _n_res_models: int
    _output_wcs: Any
    _bare_output: Any
    _output_array_shape: tuple[int, int]

    def _positions(self, model: Mapping[str, Any]) -> tuple[Positions, Box | None]:
        """Return where the pixels of a model lie in the output, and the bounding box of its WCS."""
        tolerance = self.pixmap_tolerance
        if tolerance is None:
            tolerance = _EXACT if self.pixmap_stepsize == 1 else 1e-3
        source, box = _without_box(model["wcs"], ignore=False)
        shape = np.shape(model["data"])
        positions = positions_between(
            source,
            self._bare_output,
            (shape[0], shape[1]),
            stepsize=self.pixmap_stepsize,
            order=self.pixmap_order,
            tolerance=tolerance,
        )
        return positions_of(positions, shape, expand=False), box

    def _place(
        self, image: ModelImage, positions: Positions, window: tuple[int, int, int, int] | None, ratio: float | None
    ) -> tuple[DrizzleGeometry | None, str]:
        """Return how a model lies on the output (None if it has no position there), and the kernel in use."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore") if self._n_res_models else None
            kernel = kernel_in_use(self.kernel, self.pixfrac, False)
        if window is None or not any_finite(positions, window):
            return None, kernel
        scale = drop_scale(kernel, self.pixfrac, ratio, positions, window)
        squares, errors = self._driz.planes_of(image)
        shape = self._output_array_shape
        return DrizzleGeometry(
            for_kernels(positions), window, shape, self.pixfrac, scale, squares, False, errors
        ), kernel

    def _scales(self, ratio: float | None, iscale: float) -> Scales:
        """Return the factors on a model.

        Errors of surface brightness shrink with larger output pixels (imaging: in proportion to the ratio of output and
        input scales; spectra: to the root of its inverse, which is what their ratio is).
        """
        if ratio is None or self.squared_weights:
            return Scales(iscale, iscale, 1.0)
        error = 1.0 / ratio if is_imaging_wcs(self._output_wcs) else math.sqrt(ratio)
        return Scales(iscale, iscale * error, error**2)


def pixels_within(limits: tuple[int, int, int, int], box: Box | None) -> tuple[int, int, int, int] | None:
    """Return the pixels within limits and a bounding box, half open: (x0, x1, y0, y1); None if there are none."""
    xmin, xmax, ymin, ymax = limits
    if box is not None:
        (low_x, high_x), (low_y, high_y) = box
        xmin, xmax = math.ceil(max(xmin, low_x)), math.floor(min(xmax, high_x))
        ymin, ymax = math.ceil(max(ymin, low_y)), math.floor(min(ymax, high_y))
    return (xmin, xmax + 1, ymin, ymax + 1) if xmin <= xmax and ymin <= ymax else None
