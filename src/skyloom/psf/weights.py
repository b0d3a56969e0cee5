"""Weights of the pixels of stars in the fit of a point spread function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SYSTEMATIC = 0.02
"""Error of the model relative to itself that the weights allow for, so that one bright star does not rule the fit."""
NOISY_SNR = (2.0, 20.0)
"""Pixels of stars whose residuals are noise, in units of that noise."""
OF_COUNTS = 0.8
"""Variances whose slope with the residuals is so large a part of that with the model are those of the counts."""


def model_weight(weight: Array, model: Array, residual: Array) -> Array:
    """Return weights that do not follow the noise of the data.

    Where the photon noise was taken from the counts themselves, a pixel that happens to be high has a large variance:
    the mean is drawn down by about one electron per pixel. Of the variances v = v_0 + a model + b residual, b is
    a = 1 / gain if they are those of the counts, and b residual is taken out; it is less if they come from elsewhere.
    """
    snr = model * np.sqrt(weight)
    rows = weight.reshape(len(weight), -1)
    sky = 1 / np.maximum(known_quantile(rows, rows > 0, 0.8), np.finfo(weight.dtype).tiny)[:, None, None]
    variance = 1 / np.where(weight > 0, weight, np.inf)
    noisy = (snr > NOISY_SNR[0]) & (snr < NOISY_SNR[1])  # residuals of brighter pixels are errors of the model
    if not noisy.any():
        return weight
    columns = np.stack([model, residual, variance - sky])[:, noisy] * np.sqrt(weight[noisy])
    a, b = np.linalg.lstsq(columns[:2].T, columns[2], rcond=None)[0]
    if not b > OF_COUNTS * a > 0:
        return weight
    corrected = np.where(snr > NOISY_SNR[0], np.maximum(variance - b * residual, sky), variance)
    return np.divide(1, corrected, out=np.zeros_like(weight), where=weight > 0)


def known_quantile(values: Array, known: npt.NDArray[np.bool_], q: float) -> Array:
    """Return the q-quantile of the known values in each row, linear between them; 0 where none is known."""
    values = np.where(known, values, np.inf)
    values[~known.any(axis=1)] = 0
    values.sort(axis=1)
    place = q * np.maximum(np.count_nonzero(known, axis=1) - 1, 0)
    low = place.astype(np.intp)
    rows, part = np.arange(len(values)), (place - low).astype(values.dtype)
    lower, upper = values[rows, low], values[rows, np.minimum(low + (part > 0), values.shape[1] - 1)]
    return np.asarray((1 - part) * lower + part * upper)


def soft_weight(weight: Array, model: Array) -> Array:
    """Return the inverse variance with an error of the model in proportion to the model."""
    return weight / (1 + weight * (SYSTEMATIC * model) ** 2)
