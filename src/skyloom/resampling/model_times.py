"""Exposure times of the models of a co-add: each group of models, one exposure of several detectors, counts once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from skyloom.resampling.model_input import ModelTypeError, model_name
from skyloom.resampling.pipeline_utils import get_tmeasure

_log = logging.getLogger(__name__)


class ModelTimes:
    """The part of `skyloom.resampling.Resample` that adds up times."""

    weight_type: str | None
    _output_model: dict[str, Any]
    _group_ids: list[Any]

    def init_time_counters(self) -> None:
        """Start to count times anew."""
        self._total_exposure_time = 0.0
        self._duration = 0.0
        self._total_measurement_time = 0.0
        self._exptime_start: list[Any] = []
        self._exptime_end: list[Any] = []
        self._measurement_time_success: list[bool] = []

    def update_time(self, model: Mapping[str, Any]) -> None:
        """Add the times of a model, unless one of its group has been added.

        Parameters
        ----------
        model : dict
            With ``group_id``, ``exposure_time``, ``measurement_time``, ``duration``, ``start_time`` and ``end_time``.
        """
        if model["group_id"] in self._group_ids:
            return
        self._exptime_start.append(model["start_time"])
        self._exptime_end.append(model["end_time"])
        if model["exposure_time"] is not None:
            self._total_exposure_time += model["exposure_time"]
        time, measured = get_tmeasure(model)
        self._measurement_time_success.append(measured)
        if time is not None:
            self._total_measurement_time += time
        if model["duration"] is not None:
            self._duration += model["duration"]

    def finalize_time_info(self) -> None:
        """Write the times to the output model.

        The start is that of the first exposure, the end that of the last: None if that of any exposure is not known.
        The measurement time is None unless all exposures have one.
        """
        starts, ends = self._exptime_start, self._exptime_end
        self._output_model["exposure_time"] = self._total_exposure_time
        self._output_model["start_time"] = None if any(t is None for t in starts) else min(starts)
        self._output_model["end_time"] = None if any(t is None for t in ends) else max(ends)
        self._output_model["duration"] = self._output_model["elapsed_exposure_time"] = self._duration
        if all(self._measurement_time_success):
            self._output_model["measurement_time"] = self._total_measurement_time

    def _check_order_of_times(self, model: Mapping[str, Any]) -> None:
        """Raise if the times of a model cannot be compared with those before it."""
        for key, known in (("start_time", self._exptime_start), ("end_time", self._exptime_end)):
            others = [time for time in known if time is not None]
            if model[key] is None or not others:
                continue
            try:
                min(model[key], others[0])
            except (TypeError, ValueError) as error:
                raise ModelTypeError(
                    f"Model '{model_name(model)}' has '{key}' = {model[key]!r}, which cannot be compared with "
                    f"{others[0]!r} of another model.",
                    key=key,
                ) from error
        measured = [*self._measurement_time_success, model["measurement_time"] is not None]
        if self.weight_type == "exptime" and measured[-1] != measured[0]:
            _log.warning(
                "Model '%s' %s a measurement time, unlike others: weights mix measurement and exposure times.",
                model_name(model),
                "has" if measured[-1] else "lacks",
            )
