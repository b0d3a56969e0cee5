"""The output of `skyloom.resampling.Resample`: its WCS, the scale of its pixels, and the dictionary of its planes."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from skyloom.errors import InputError, WcsError
from skyloom.resampling._drizzle_checks import output_shape
from skyloom.resampling.model_input import model_name, world_axes
from skyloom.resampling.pipeline_utils import UnsupportedWCSError, compute_mean_pixel_area, is_imaging_wcs
from skyloom.resampling.pixmap import _without_box

_log = logging.getLogger(__name__)


class OutputFrame:
    """The part of `skyloom.resampling.Resample` that knows the output."""

    pixfrac: float
    kernel: str
    fillval: Any
    weight_type: str | None
    variance_array_names: Any
    _enable_ctx: bool
    _enable_var: bool
    _compute_err: str | None
    _propagate_dq: bool
    _finalized: bool
    _group_ids: list[Any]
    _output_model: dict[str, Any]

    @property
    def output_model(self) -> dict[str, Any]:
        """The output, complete after `finalize`."""
        return self._output_model

    @property
    def output_array_shape(self) -> tuple[int, int]:
        """Shape (ny, nx) of the planes of the output."""
        return self._output_array_shape

    @property
    def output_wcs(self) -> Any:
        """WCS of the output."""
        return self._output_wcs

    @property
    def pixel_scale_ratio(self) -> float | None:
        """Side of an output pixel over that of a pixel of the first model; None before that is known."""
        return self._pixel_scale_ratio

    @property
    def output_pixel_scale(self) -> float:
        """Side of an output pixel, arcsec."""
        return self._output_pixel_scale

    @property
    def group_ids(self) -> list[Any]:
        """Groups of the models that have been added."""
        return self._group_ids

    @property
    def enable_ctx(self) -> bool:
        """Whether the context is kept."""
        return self._enable_ctx

    @property
    def enable_var(self) -> bool:
        """Whether variances are co-added."""
        return self._enable_var

    @property
    def compute_err(self) -> str | None:
        """How the errors of the output are found."""
        return self._compute_err

    @property
    def propagate_dq(self) -> bool:
        """Whether data-quality bits are propagated."""
        return self._propagate_dq

    def is_finalized(self) -> bool:
        """Return whether `finalize` has been called since the last `reset_arrays`."""
        return self._finalized

    def check_output_wcs(self, output_wcs: Any, estimate_output_shape: bool = True) -> None:
        """Check that images can be resampled to a WCS.

        Parameters
        ----------
        output_wcs : APE-14 WCS
            WCS of the output. Without an ``array_shape`` it is given that of its bounding box.
        estimate_output_shape : bool
            Whether it is.

        Raises
        ------
        UnsupportedWCSError
            It has not two world axes (or the three of a spectrum).
        WcsError
            It is no WCS, or nothing tells the size of the output.
        """
        axes = world_axes(output_wcs)
        needed = 3 if "SPECTRAL" in axes else 2
        if len(axes) != needed:
            kind = "Output spectral WCS" if needed == 3 else "Output WCS"
            raise UnsupportedWCSError(
                f"{kind} needs {needed} coordinate axes but the supplied WCS has {len(axes)} axes.", found=len(axes)
            )
        if needed == 2 and output_wcs.array_shape is None and estimate_output_shape:
            _, box = _without_box(output_wcs, ignore=False)
            if box is None:
                raise WcsError(
                    "Unable to infer output image size from provided inputs: the output WCS has neither array_shape "
                    "nor a bounding box; set one of them."
                )
            half = 0.5 + sys.float_info.epsilon
            output_wcs.array_shape = (int(box[1][1] + half), int(box[0][1] + half))

    def get_input_model_pixel_area(self, model: Mapping[str, Any], prefer_mean: bool = True) -> float | None:
        """Return the solid angle of the pixels of a model.

        Parameters
        ----------
        model : dict
            With ``wcs``, ``data`` and ``pixelarea_steradians``.
        prefer_mean : bool
            Whether the mean over the image comes before ``pixelarea_steradians``, the nominal value; the other serves
            if the first cannot be had.

        Returns
        -------
        float or None
            Steradians.
        """
        nominal = model["pixelarea_steradians"]
        try:
            known = nominal is not None and math.isfinite(nominal) and 0 < nominal <= 4 * math.pi
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"Model '{model_name(model)}' has 'pixelarea_steradians' = {nominal!r}; a number is needed, or None.",
                key="pixelarea_steradians",
            ) from None
        nominal = nominal if known else None
        if not prefer_mean and nominal is not None:
            return float(nominal)
        mean = compute_mean_pixel_area(model["wcs"], shape=model["data"].shape)
        mean = mean if mean else None
        if prefer_mean and mean is None:
            _log.warning(
                "Unable to compute mean pixel area of input model '%s'. Using nominal area.", model_name(model)
            )
        elif not prefer_mean:
            _log.warning("Input model '%s' has no 'pixelarea_steradians'. Using mean pixel area.", model_name(model))
        area = nominal if mean is None else mean
        if area is None:
            _log.error("Unable to determine pixel area of the input model '%s'.", model_name(model))
        return area

    def get_output_model_pixel_area(self, model: Mapping[str, Any]) -> float | None:
        """Return the mean solid angle of the pixels of ``model["wcs"]``, steradians."""
        return compute_mean_pixel_area(model["wcs"])

    def create_output_model(self) -> dict[str, Any]:
        """Return a new output model without planes."""
        area = self._output_pixel_scale**2
        model: dict[str, Any] = {
            "wcs": self._output_wcs,
            **dict.fromkeys(("data", "wht", "con", "dq")),
            "pixfrac": self.pixfrac,
            "kernel": self.kernel,
            "fillval": self.fillval,
            "weight_type": self.weight_type,
            "pixelarea_steradians": area / np.rad2deg(3600) ** 2,
            "pixelarea_arcsecsq": area,
            "pixel_scale_ratio": self._pixel_scale_ratio,
            "pointings": 0,
            "exposure_time": 0.0,
            **dict.fromkeys(("measurement_time", "start_time", "end_time")),
            "duration": 0.0,
            "level": None,
            "subtracted": False,
        }
        if self._enable_var:
            model.update(dict.fromkeys(self.variance_array_names))
        if self._compute_err is not None:
            model["err"] = None
        return model

    def _set_output_wcs(self, output_wcs: Any) -> None:
        """Take the WCS and the scales of the output."""
        if hasattr(output_wcs, "pixel_to_world_values") or hasattr(output_wcs, "low_level_wcs"):
            output_wcs = {"wcs": output_wcs}
        if not isinstance(output_wcs, Mapping) or output_wcs.get("wcs") is None:
            raise WcsError(
                "Output WCS must be provided through the 'output_wcs' parameter: a dictionary with the key 'wcs' is "
                f"needed; found {type(output_wcs).__name__}"
                + (f" with the keys {list(output_wcs)}." if isinstance(output_wcs, Mapping) else ".")
            )
        self._output_wcs = output_wcs["wcs"]
        self.check_output_wcs(self._output_wcs)
        shape = self._output_wcs.array_shape
        if shape is None:
            raise WcsError("The array_shape of the output WCS is not set, so the size of the output is not known.")
        if 0 in tuple(shape):
            raise WcsError(f"Invalid output frame shape: {tuple(shape)}", found=tuple(shape))
        self._output_array_shape = output_shape(shape)
        self._bare_output, _ = _without_box(self._output_wcs, ignore=True)
        self._given_ratio = _scale(output_wcs, "pixel_scale_ratio")
        self._pixel_scale_ratio = self._given_ratio
        scale = _scale(output_wcs, "pixel_scale")
        if scale is not None:
            _log.info("Output pixel scale: %s arcsec.", scale)
        else:
            area = self.get_output_model_pixel_area({"wcs": self._output_wcs})
            if not area:
                raise WcsError("The pixels of the output WCS have no area on the sky; give 'pixel_scale' (arcsec).")
            scale = 3600.0 * math.degrees(math.sqrt(area))
            _log.info("Computed output pixel scale: %s arcsec.", scale)
        self._output_pixel_scale: float = scale

    def _scale_ratio_of(self, model: Mapping[str, Any]) -> float | None:
        """Return the side of an output pixel over that of a pixel of the model, as far as it is known."""
        if self._given_ratio is not None or not is_imaging_wcs(model["wcs"]):
            return self._given_ratio
        area = self.get_input_model_pixel_area(model, prefer_mean=False)
        if not area:
            raise WcsError(
                f"The pixels of model '{model_name(model)}' have no area on the sky; give 'pixelarea_steradians', or "
                "'pixel_scale_ratio' with the output WCS."
            )
        return self._output_pixel_scale / (3600.0 * math.degrees(math.sqrt(area)))

    def _compute_pixel_scale_ratio(self, model: Mapping[str, Any]) -> None:
        """Take the ratio of pixel scales from the first model."""
        if self._pixel_scale_ratio is None:
            self._pixel_scale_ratio = self._output_model["pixel_scale_ratio"] = self._scale_ratio_of(model)


def _scale(output_wcs: Mapping[str, Any], key: str) -> float | None:
    value = output_wcs.get(key)
    if value is None:
        return None
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"'{key}' of the output WCS is {value!r}; a number above 0 is needed.", key=key, found=value)
    return scale
