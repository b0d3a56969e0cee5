"""`Resample`: co-add the exposures that mission pipelines describe by dictionaries, *models*.

It has the names, arguments, defaults and results of `stcal.resample.Resample`, and calls the methods that subclasses of
that override in the same order. The data, errors, variances and data-quality bits of a model share one geometry pass:
see `skyloom.resampling.model_sums` for the formulas.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, NoUsableDataError, SkyloomWarning
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_kernels import find_footprint
from skyloom.resampling.model_geometry import pixels_within
from skyloom.resampling.model_hooks import ModelHooks
from skyloom.resampling.model_input import (
    ModelImage,
    ModelTypeError,
    check_times,
    is_spectral_wcs,
    missing_key,
    model_name,
    read_model,
)
from skyloom.resampling.model_sums import ModelSums, SumsOptions, root_of_sum
from skyloom.resampling.pipeline_utils import (
    is_flux_density,
    resample_range,
)
from skyloom.resampling.resample_output import OutputFrame

_log = logging.getLogger(__name__)

_KEYS = [
    "data",
    "dq",
    "filename",
    "group_id",
    "exposure_time",
    "start_time",
    "end_time",
    "duration",
    "measurement_time",
    "pixelarea_steradians",
    "level",
    "subtracted",
]


class FinalizedError(InputError, RuntimeError):
    """A model is added to a co-add that is finished."""


class NoModelsError(NoUsableDataError, RuntimeError):
    """A co-add without any model is to be finished."""


class Resample(OutputFrame, ModelHooks):
    """Resample models onto the grid of one output WCS, and co-add them.

    Parameters
    ----------
    output_wcs : dict
        ``wcs``: the WCS of the output (`gwcs.WCS`, `astropy.wcs.WCS`, or any other with the common interface).
        ``pixel_scale``: side of its pixels, arcsec; from the WCS if it is not given. ``pixel_scale_ratio``: that over
        the side of the pixels of the models (imaging; the inverse for spectra); by default from each model. A bare WCS
        is as good.
    n_input_models : int, optional
        How many models are expected, so that the context is allocated once.
    pixfrac : float
        Side of a drop in input pixels.
    kernel : {'square', 'gaussian', 'point', 'turbo', 'lanczos2', 'lanczos3'}
        How the flux of a pixel is spread: see `skyloom.resampling.Drizzle`.
    fillval : float, str or None
        Value of pixels of the data (and of errors that are drizzled) without weight. None and 'INDEF': NaN.
    weight_type : {'ivm', 'ivm-sky', 'exptime', None}
        Weights of pixels: 1 / ``var_rnoise``, 1 / ``var_sky`` (1 for a model that has no such plane), the measurement
        time or else the exposure time, or 1. Pixels that `good_bits` excludes, and those without a finite value, have
        none.
    good_bits : int, str, list or None
        Data-quality bits that do not matter; names need `dq_flag_name_map`. None: no bit matters.
    enable_ctx : bool
        Whether the context (which models have contributed to which pixels) is kept.
    enable_var : bool
        Whether the variances `variance_array_names` are co-added.
    compute_err : {'from_var', 'driz_err', None}
        ``err`` of the output: the root of the sum of the co-added variances (which implies `enable_var`), or the mean
        of the errors of the models.
    propagate_dq : bool
        Whether the data-quality bits of all pixels that contribute are combined by OR.
    pixmap_stepsize : float
        1: the map from each model to the output is known to 1e-5 pixels. Above: to `pixmap_tolerance`, and where no
        error can be promised it is evaluated every so many pixels.
    pixmap_order : {1, 3}
        Splines for that last case.
    pixmap_tolerance : float, optional
        Largest error of the map, pixels of the output. By default 1e-5 or, for a `pixmap_stepsize` above 1, 1e-3.
    squared_weights : bool, optional
        Propagate variances and errors with squared weights: what the noise of independent pixels gives. By default as
        the class attribute says (False): each model counts as one measurement with the squared mean error of its
        pixels, which is what stcal does.

    Attributes
    ----------
    output_array_types : dict of str to dtype
        Types of the variances of the output.
    variance_array_names : list of str
        Keys of the variances.
    error_from_variances : list of str or None
        Those of which 'from_var' is the sum; None: all.
    dq_flag_name_map : dict, `astropy.nddata.BitFlagNameMap` or None
        Data-quality bits by their names.
    n_skipped : int
        Models that did not overlap the output.

    Raises
    ------
    InputError
        An option makes no sense. `WcsError`: the output WCS cannot be used, or tells no size.
    """

    output_array_types: ClassVar[defaultdict[str, npt.DTypeLike]] = defaultdict(
        lambda: np.float32,
        data=np.float32,
        wht=np.float32,
        con=np.int32,
        var_rnoise=np.float32,
        var_flat=np.float32,
        var_poisson=np.float32,
        err=np.float32,
    )
    variance_array_names: Any = ["var_rnoise", "var_flat", "var_poisson"]  # noqa: RUF012  subclasses set it on instances
    error_from_variances: Any = None
    dq_flag_name_map: Any = None
    squared_weights: bool = False

    def __init__(  # noqa: PLR0917  the original's signature
        self,
        output_wcs: Any,
        n_input_models: int | None = None,
        pixfrac: float = 1.0,
        kernel: str = "square",
        fillval: float | str | None = 0.0,
        weight_type: str | None = "ivm",
        good_bits: Any = 0,
        enable_ctx: bool = True,
        enable_var: bool = True,
        compute_err: str | None = None,
        propagate_dq: bool = False,
        pixmap_stepsize: float = 1,
        pixmap_order: int = 1,
        *,
        pixmap_tolerance: float | None = None,
        squared_weights: bool | None = None,
    ) -> None:
        self._finalized = False
        self._n_res_models = 0
        self.n_skipped = 0
        self._enable_ctx = enable_ctx
        self._enable_var = bool(enable_var) or compute_err == "from_var"
        self._compute_err = compute_err
        self._propagate_dq = propagate_dq
        self.pixfrac = pixfrac
        self.kernel = kernel
        self.fillval = fillval
        self.good_bits = good_bits
        self.weight_type = weight_type
        self.pixmap_stepsize = pixmap_stepsize
        self.pixmap_order = pixmap_order
        self.pixmap_tolerance = pixmap_tolerance
        if squared_weights is not None:
            self.squared_weights = squared_weights
        self._group_ids: list[Any] = []
        self._check_options()
        self._set_output_wcs(output_wcs)
        _log.info("Driz parameter kernel: %s", kernel)
        _log.info("Driz parameter pixfrac: %s", pixfrac)
        _log.info("Driz parameter fillval: %s", fillval)
        _log.info("Driz parameter weight_type: %s", weight_type)
        self.reset_arrays(n_input_models=n_input_models)

    def reset_arrays(self, n_input_models: int | None = None) -> None:
        """Start a new co-add: planes, times and groups.

        Parameters
        ----------
        n_input_models : int, optional
            How many models are expected.
        """
        if n_input_models is not None and not (
            isinstance(n_input_models, (int, np.integer)) and 0 < n_input_models < 2**31
        ):
            raise InputError(
                f"n_input_models is {n_input_models!r}; the number of models is needed, at least 1, or None.",
                n_input_models=n_input_models,
            )
        self._pixel_scale_ratio = self._given_ratio
        self._output_model = self.create_output_model()
        self._n_res_models = self.n_skipped = 0
        self._group_ids = []
        if self._enable_var:
            self.init_variance_arrays()
        options = SumsOptions(
            fillval=self.fillval,
            max_models=n_input_models if self._enable_ctx else 0,
            with_dq=self._propagate_dq,
            with_error=self._compute_err == "driz_err",
            variance_dtypes={name: self.output_array_types[name] for name in self._variance_names},
            squared_weights=self.squared_weights,
        )
        self._driz = ModelSums(self._output_array_shape, options)
        self.init_time_counters()
        self._finalized = False

    def init_variance_arrays(self) -> None:
        """Prepare for variances; their planes are allocated when the first model is added. For subclasses."""

    # --- adding a model -------------------------------------------------------------------------------------

    def validate_input_model(self, model: Mapping[str, Any]) -> None:
        """Check that a model has all the keys that are needed.

        Parameters
        ----------
        model : dict
            The model.

        Raises
        ------
        KeyError
            It lacks one.
        """
        if not isinstance(model, Mapping):
            raise ModelTypeError(
                f"A model is a {type(model).__name__}; a dictionary with the keys {', '.join(_KEYS)} is needed."
            )
        needed = ["wcs", *_KEYS]
        for key in needed:
            if key not in model:
                raise missing_key(model, key)
        if is_spectral_wcs(model["wcs"]):
            needed.append("bunit_data")
        if self._enable_var:
            needed += self.variance_array_names
        elif self.weight_type is not None and self.weight_type.startswith("ivm"):
            needed.append("var_rnoise")
        if self._compute_err == "driz_err":
            needed.append("err")
        for key in needed:
            if key not in model:
                raise missing_key(model, key)

    def add_model(self, model: dict[str, Any]) -> None:
        """Add a model.

        Everything is checked before anything is changed: a call that fails leaves the co-add as it was. A model that
        does not overlap the output is left out, with a warning.

        Parameters
        ----------
        model : dict
            ``data``, ``dq``, ``filename``, ``group_id``, ``wcs``, ``exposure_time`` (s), ``start_time``, ``end_time``,
            ``duration``, ``measurement_time``, ``pixelarea_steradians``, ``level`` (of the sky, to be subtracted unless
            ``subtracted``), the variances and ``err`` as far as they are co-added, ``var_rnoise`` or ``var_sky`` for
            weights, and ``bunit_data`` with a spectral WCS. It is not changed.

        Raises
        ------
        InputError
            The model lacks something, or has something that cannot be used; see also `ModelImage`.
        RuntimeError
            The co-add is finished.
        """
        if self._finalized:
            raise FinalizedError(
                "Resampling has been finalized and no new models can be added to the resampled output model. Call "
                "'reset_arrays' to initialize a new output model and associated arrays."
            )
        self.validate_input_model(model)
        self._check_options()
        image = read_model(model, self._model_options())
        check_times(model)
        self._check_order_of_times(model)
        ratio = self._scale_ratio_of(model)
        before = self._pixel_scale_ratio
        self._compute_pixel_scale_ratio(model)
        try:
            iscale = self._get_intensity_scale(model)
            if not self._add(model, image, ratio, iscale):
                self._pixel_scale_ratio = before
        except BaseException:
            self._pixel_scale_ratio = self._output_model["pixel_scale_ratio"] = before
            raise

    def _add(self, model: dict[str, Any], image: ModelImage, ratio: float | None, iscale: float) -> bool:
        """Add a model that has been checked; return False if it does not overlap the output."""
        positions, box = self._positions(model)
        limits = resample_range(image.data.shape, box)
        geometry, kernel = self._place(image, positions, pixels_within(limits, box), ratio)
        footprint = None if geometry is None else find_footprint(kernel, geometry)
        reached = None if footprint is None else footprint.whole()
        if geometry is None or footprint is None or reached is None:
            self._skip(image)
            return False
        number = self._n_res_models + self.n_skipped
        arguments = self._hook_arguments(model, positions, box, limits, ratio, iscale)
        undo = self._checkpoint(reached, number) if arguments is not None else None
        own_variances = not self._overrides("resample_variance_arrays")
        try:
            shown = image if own_variances else replace(image, variances={})
            self._driz.add(shown, geometry, footprint, kernel, number=number, scales=self._scales(ratio, iscale))
            if arguments is not None:
                self.add_model_hook(**arguments)
            self._count(model)
            if arguments is not None and self._enable_var and not own_variances:
                self.resample_variance_arrays(**arguments)
        except BaseException:
            if undo is not None:
                undo()
            raise
        self._show()
        return True

    def _get_intensity_scale(self, model: Mapping[str, Any]) -> float:
        """Return the factor on the data: flux densities of spectra shrink with the pixels, nothing else does."""
        if model["pixelarea_steradians"] and is_spectral_wcs(model["wcs"]) and is_flux_density(model["bunit_data"]):
            if self._pixel_scale_ratio is None:
                raise InputError(
                    f"Model '{model_name(model)}' has flux densities of a spectrum: give 'pixel_scale_ratio' with the "
                    "output WCS."
                )
            return 1.0 / self._pixel_scale_ratio
        return 1.0

    # --- the end --------------------------------------------------------------------------------------------

    def finalize(self) -> None:
        """Complete the output model: variances, errors and times. Models can be added only after `reset_arrays`.

        Raises
        ------
        NoUsableDataError
            No model has been added.
        """
        if self._finalized:
            return
        if self._n_res_models == 0:
            skipped = f" ({self.n_skipped} did not overlap the output)" if self.n_skipped else ""
            raise NoModelsError(
                f"No model has been added{skipped}: there is nothing to finalize.", skipped=self.n_skipped
            )
        if self._compute_err == "from_var":
            self._names_for_error()
        self._finalized = True
        self._output_model["pointings"] = len(self._group_ids)
        self._show()
        if self._enable_var:
            self.finalize_resample_variance(self._output_model)
        if self._compute_err == "driz_err":
            self._output_model["err"] = self._driz.final_error()
        elif self._compute_err == "from_var":
            planes = [self._output_model[name] for name in self._names_for_error()]
            self._output_model["err"] = root_of_sum(planes, self.output_array_types["err"])
        del self._driz
        self.finalize_time_info()

    def finalize_resample_variance(self, output_model: dict[str, Any]) -> None:
        """Write the variances to an output model; NaN where they are not known."""
        for name in self._variance_names:
            output_model[name] = self._driz.variance(name)
        self._finalized = True

    def _names_for_error(self) -> list[str]:
        names = list(self.variance_array_names if self.error_from_variances is None else self.error_from_variances)
        unknown = [name for name in names if name not in self._output_model]
        if unknown:
            raise missing_key({**self._output_model, "filename": "output"}, unknown[0])
        return names

    # --- parts of `add_model` -------------------------------------------------------------------------------

    @property
    def _variance_info(self) -> dict[str, dict[str, FloatArray | None]]:
        """The variances so far and the sums of their weights (None: the same for all)."""
        sums = self._driz
        return {k: {"var": v, "wt": sums.variance_weights.get(k, sums.root_weight)} for k, v in sums.variances.items()}

    @property
    def _driz_error(self) -> ModelSums:
        """Where errors are summed."""
        return self._driz

    def _skip(self, image: ModelImage) -> None:
        self.n_skipped += 1
        message = f"Model '{image.name}' does not overlap the output: it is left out."
        _log.warning(message)
        warnings.warn(message, SkyloomWarning, stacklevel=4)

    def _count(self, model: Mapping[str, Any]) -> None:
        """Count a model, and the times of its group."""
        self._n_res_models += 1
        if model["group_id"] not in self._group_ids:
            self.update_time(model)
            self._group_ids.append(model["group_id"])
            self._output_model["pointings"] += 1

    def _show(self) -> None:
        """Let the output model have the planes that hold the result so far."""
        self._output_model["data"], self._output_model["wht"] = self._driz.out_img, self._driz.out_wht
        if self._driz.out_ctx is not None:
            self._output_model["con"] = self._driz.out_ctx
        if self._propagate_dq:
            self._output_model["dq"] = self._driz.out_dq
        if self._compute_err == "driz_err":
            self._output_model["err"] = self._driz.error
