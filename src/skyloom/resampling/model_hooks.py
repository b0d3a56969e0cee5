"""The methods of `skyloom.resampling.Resample` that subclasses override, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_kernels import find_footprint
from skyloom.resampling._drizzle_map import Positions, positions_of
from skyloom.resampling.maps import SampledMap, XYArray
from skyloom.resampling.model_geometry import ModelGeometry
from skyloom.resampling.model_input import read_model
from skyloom.resampling.model_times import ModelTimes
from skyloom.resampling.pipeline_utils import build_driz_weight
from skyloom.resampling.pixmap import Box, blank_outside
from skyloom.resampling.resample_options import Options


class ModelHooks(Options, ModelGeometry, ModelTimes):
    """The part of `skyloom.resampling.Resample` that lets subclasses take part when a model is added."""

    def add_model_hook(  # noqa: PLR0917  the original's signature
        self,
        model: Mapping[str, Any],
        pixmap: XYArray,
        pixel_scale_ratio: float | None,
        iscale: float,
        weight_map: FloatArray,
        xmin: int,
        xmax: int,
        ymin: int,
        ymax: int,
    ) -> None:
        """Do what a subclass wants with a model whose data have just been added; nothing here.

        Parameters
        ----------
        model : dict
            The model.
        pixmap : ndarray of float64, shape (ny, nx, 2)
            Output position (x, y) of each of its pixels.
        pixel_scale_ratio : float or None
            Side of an output pixel over that of a pixel of the model.
        iscale : float
            Factor on its data.
        weight_map : ndarray of float32, shape (ny, nx)
            Weights of its pixels.
        xmin, xmax, ymin, ymax : int
            First and last pixels that are used.
        """

    def resample_variance_arrays(  # noqa: PLR0917  the original's signature
        self,
        model: Mapping[str, Any],
        pixmap: XYArray,
        pixel_scale_ratio: float | None,
        iscale: float,
        weight_map: FloatArray,  # noqa: ARG002  weights are those of the model
        xmin: int,
        xmax: int,
        ymin: int,
        ymax: int,
    ) -> None:
        """Add the variances of a model in a pass of their own, for subclasses that override this method.

        `add_model` itself adds them together with the data, and calls this method only if it is overridden. The
        parameters are those of `add_model_hook`.
        """
        image = replace(read_model(model, self._model_options()), dq=None, error=None)
        window = (xmin, xmax + 1, ymin, ymax + 1)
        geometry, kernel = self._place(
            image, positions_of(pixmap, image.data.shape, expand=True), window, pixel_scale_ratio
        )
        if geometry is not None:
            footprint = find_footprint(kernel, geometry)
            self._driz.add_variances(image, geometry, footprint, kernel, self._scales(pixel_scale_ratio, iscale))

    def _overrides(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(ModelHooks, method)

    def _hook_arguments(  # noqa: PLR0917
        self,
        model: Mapping[str, Any],
        positions: Positions,
        box: Box | None,
        limits: tuple[int, int, int, int],
        ratio: float | None,
        iscale: float,
    ) -> dict[str, Any] | None:
        """Return what methods of subclasses are called with; None if there are none, which saves the full map."""
        if not any(self._overrides(name) for name in ("add_model_hook", "update_time", "resample_variance_arrays")):
            return None
        pixmap = positions.pixmap() if isinstance(positions, SampledMap) else positions
        if box is not None:
            blank_outside(pixmap, box)
        return {
            "model": model,
            "pixmap": pixmap,
            "pixel_scale_ratio": ratio,
            "iscale": iscale,
            "weight_map": build_driz_weight(
                model, weight_type=self.weight_type, good_bits=self.good_bits, flag_name_map=self.dq_flag_name_map
            ),
            **dict(zip(("xmin", "xmax", "ymin", "ymax"), limits, strict=True)),
        }

    def _checkpoint(self, reached: tuple[int, int, int, int], number: int) -> Callable[[], None]:
        """Return what undoes a model of which a subclass's method fails."""
        undo_sums = self._driz.checkpoint(reached, number)
        kept = {k: list(v) if isinstance(v, list) else v for k, v in vars(self).items() if k != "_output_model"}
        output = dict(self._output_model)

        def undo() -> None:
            undo_sums()
            for name, value in kept.items():
                setattr(self, name, value)
            self._output_model.clear()
            self._output_model.update(output)

        return undo
