"""The noise model of an image that came without a variance plane."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom._kernels import local_signal
from skyloom._threads import map_bands, row_bands
from skyloom.background import faint_noise, noise_samples, response_noise
from skyloom.errors import NoUsableDataError, SkyloomWarning
from skyloom.exposure import UNUSABLE, Exposure, FloatArray

CONSISTENT = 1.3
"""Predicted and measured sky variance (or two gains) that differ by less than this factor agree."""
SKY_IN_DATA = 5.0
"""A level of so many standard deviations above 0 is taken for a sky that was not subtracted."""
CORRELATED = 1.2
"""Noise that is larger by this factor at a spacing of two pixels than at one is correlated."""
PLAUSIBLE_GAIN = (0.05, 1e5)
"""Electrons per unit of data that an inferred gain may have; it is larger than a detector's for averages."""
COARSE_WINDOW = 15
"""Pixels a side of the largest window of the local statistics."""


@dataclass(frozen=True)
class NoiseModel:
    """V = noise^2 + (signal - level) / gain.

    Parameters
    ----------
    noise : float
        Measured white noise of the faint pixels, in the unit of the data.
    level : float
        Mean level of those pixels.
    gain : float or None
        Effective electrons per unit of data; None: the photon noise of sources is unknown and left out.
    read_variance : float
        Variance of the read noise in units of the data squared: the model never goes below.
    origin : str
        Where the gain comes from: "given", "sky", "sources" or "unknown".
    correlation : float
        What `Exposure.correlation` is: 1 for white noise.
    """

    noise: float
    level: float
    gain: float | None
    read_variance: float
    origin: str
    correlation: float = 1.0

    def variance(self, signal: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Return the variance of pixels whose expected value is `signal` (same shape)."""
        sky = self.noise**2
        if self.gain is None:
            return np.full(signal.shape, sky)
        photons = (np.asarray(signal, dtype=np.float64) - self.level) / self.gain
        return np.maximum(sky + photons, self.floor)

    @property
    def floor(self) -> float:
        """Smallest variance that is believed.

        Read noise where the data contain their sky. Otherwise a negative signal means nothing, but the fluctuations of
        a smoothed sky have to go through in both directions lest they bias the variance: three deviations of the mean
        of the largest window are let through.
        """
        sky = self.noise**2
        if self.gain is None:
            return sky
        if self.level > SKY_IN_DATA * self.noise:
            return max(self.read_variance, 0.01 * sky)
        return max(self.read_variance, 0.1 * sky, sky - 3 * self.noise / (COARSE_WINDOW * self.gain))


def with_variance(exposure: Exposure) -> Exposure:
    """Return the exposure with a variance plane: its own, or else that of `noise_model`.

    Parameters
    ----------
    exposure : Exposure
        An image with or without variance.

    Returns
    -------
    Exposure
        The same object if it has a variance.

    Raises
    ------
    NoUsableDataError
        No usable pixel, or the image has no noise at all (constant).

    Notes
    -----
    The photon noise is that of the *expected* signal, not of the pixel's own value: a pixel that happens to be low
    would otherwise get a small variance and a large weight, and every weighted mean would come out too low by about
    one electron (Neyman's chi-square). The expected signal is estimated by the local statistics of Lee (1980, IEEE
    Trans. PAMI 2, 165): a mean over the surroundings where they do not scatter more than their noise, and the closer to
    the pixel itself the more they do, as in the core of a star, where its relative noise is small.
    """
    if exposure.variance is not None:
        return exposure
    model = noise_model(exposure)
    variance = np.empty_like(exposure.data)

    def fill(band: tuple[int, int]) -> None:
        _fill_signal(exposure, model, band, variance)
        rows = slice(*band)
        variance[rows] = model.variance(variance[rows])

    map_bands(fill, row_bands(exposure.shape[0]))
    return exposure.replace(variance=variance, correlation=max(exposure.correlation, model.correlation))


def noise_model(exposure: Exposure) -> NoiseModel:
    """Measure the noise of an image, and find the gain that goes with it.

    Parameters
    ----------
    exposure : Exposure
        The image. Gain and read noise are used if it has them.

    Returns
    -------
    NoiseModel

    Raises
    ------
    NoUsableDataError
        No usable pixel, or the image has no noise at all.

    Warns
    -----
    SkyloomWarning
        The gain is unknown, or contradicts the noise.

    Notes
    -----
    The variance of the faint pixels is measured (`skyloom.background.faint_noise`), since this holds whatever was done
    to the image: subtracted sky, scaling, averaging. Noise that resampling has correlated is recognised, and measured
    at a distance. The gain is only needed for the additional photon noise of sources. With the level L of the faint
    pixels, their variance s^2 and the read noise r,

    * if the data contain their sky, the gain follows from them too: s^2 = L/g + r^2/g^2. A given gain is kept if it
      predicts s^2 within 30 %. If it predicts more, then the image is an average (of N frames, each of the given gain)
      or was scaled, and the effective gain is the given one times predicted/measured, N. A bias level that was not
      subtracted looks the same: subtract it before.
    * if they do not, a given gain is checked at the sources: no pixel can have less than its photon noise. Where it
      predicts more than is measured by more than 30 %, the smallest gain that does not is taken.
    """
    noise, level, correlation = _pixel_noise(exposure)
    if not noise > 0:
        raise NoUsableDataError(
            f"{exposure.name} has no noise: its faint pixels are all equal. If that is right, "
            "give its errors: an extension ERR in the file, or variance= in Python.",
            name=exposure.name,
        )
    model = _with_gain(exposure, noise, level)
    return dataclasses.replace(model, correlation=correlation)


def _pixel_noise(exposure: Exposure) -> tuple[float, float, float]:
    """Return the deviation of the faint pixels, their level, and the correlation of their noise.

    The filter at a spacing of two pixels sees as much noise as at one, or up to 6 % more in a crowded field, unless the
    noise is correlated. Then the deviation of a pixel is what the filter sees at a spacing of three. The correlation is
    the variance of means over 3x3 pixels against a ninth of that of a pixel. Noise that agrees with the gain is white:
    it is the shape of undersampled stars that the filter saw.
    """
    noise, level = faint_noise(exposure)
    if not noise > 0 or faint_noise(exposure, spacing=2)[0] < CORRELATED * noise:
        return noise, level, 1.0
    if exposure.gain is not None and level > SKY_IN_DATA * noise:
        excess = _predicted(exposure, exposure.gain, level) / noise**2
        if 1 / CONSISTENT < excess < CONSISTENT:
            return noise, level, 1.0
    noise, level = faint_noise(exposure, spacing=3)
    ny, nx = (size // 3 for size in exposure.shape)
    if min(ny, nx) < 8:
        return noise, level, 1.0
    blocks = np.where(exposure.usable, exposure.data, np.nan)[: 3 * ny, : 3 * nx].reshape(ny, 3, nx, 3)
    means = Exposure(blocks.mean(axis=(1, 3), dtype=np.float64), name=exposure.name)
    if not means.usable.any():
        return noise, level, 1.0
    return noise, level, max(1.0, 9 * faint_noise(means, spacing=2)[0] ** 2 / noise**2)


def _predicted(exposure: Exposure, gain: float, level: float) -> float:
    """Return the variance that Poisson's law and the read noise predict at a level."""
    return max(level, 0.0) / gain + ((exposure.read_noise or 0.0) / gain) ** 2


def _with_gain(exposure: Exposure, noise: float, level: float) -> NoiseModel:
    """Find the gain that goes with the noise at a level."""
    gain, read_noise = exposure.gain, exposure.read_noise or 0.0
    sky_in_data = level > SKY_IN_DATA * noise
    if gain is None:
        return _without_gain(exposure, noise, level, sky_in_data)
    read_variance = (read_noise / gain) ** 2
    excess = _predicted(exposure, gain, level) / noise**2
    if sky_in_data and excess > CONSISTENT:
        _warn(
            f"The gain of {exposure.name} ({gain:g}) predicts {excess:.2f} times the measured variance of the sky: it "
            f"is taken for an average of that many frames, with a gain of {gain * excess:.3g}. Give its errors "
            "(an extension ERR in the file, or variance= in Python) or subtract the bias level, if that is wrong."
        )
        return NoiseModel(noise, level, gain * excess, read_variance / excess, "sky")
    least = 0.0 if sky_in_data else _least_gain(exposure, noise, level)
    if least > CONSISTENT * gain:
        _warn(
            f"The sources of {exposure.name} are less noisy than photons would be with the gain of {gain:g}; it is "
            f"taken for an average, with a gain of {least:.3g}. Give the effective gain, if that is wrong."
        )
        return NoiseModel(noise, level, least, min(read_variance * gain / least, noise**2), "sources")
    return NoiseModel(noise, level, gain, min(read_variance, noise**2), "given")


def _without_gain(exposure: Exposure, noise: float, level: float, sky_in_data: bool) -> NoiseModel:
    """Infer the gain from the sky, if it is there: the positive root of s^2 g^2 - L g - r^2 = 0."""
    if sky_in_data:
        read_noise = exposure.read_noise or 0.0
        gain = float(level + np.hypot(level, 2 * noise * read_noise)) / (2 * noise**2)
        if PLAUSIBLE_GAIN[0] <= gain <= PLAUSIBLE_GAIN[1]:
            return NoiseModel(noise, level, gain, (read_noise / gain) ** 2, "sky")
    _warn(
        f"The gain of {exposure.name} is unknown and its sky does not tell: the photon noise of its sources is left "
        "out. Pass gain=."
    )
    return NoiseModel(noise, level, None, 0.0, "unknown")


def _least_gain(exposure: Exposure, noise: float, level: float) -> float:
    """Return the smallest gain with which no brightness has more photon noise than was measured there.

    The filter of `noise_samples` sees photon noise and the shape of sources, so that its variance is an upper limit to
    the photon noise, in bins of brightness. Since the clipped deviation of a bin is that of its quieter pixels, its
    fainter pixels (first quartile) are what it is compared with.
    """
    response, mean, around = noise_samples(exposure)
    order = np.argsort(around, kind="stable")[response.size // 2 :]
    bright = order[-(order.size // 16) :]
    least = 0.0
    for bin_ in (*np.array_split(order[: -bright.size or None], 15), *np.array_split(bright, 8)):
        if bin_.size < 30:
            continue
        signal = float(np.quantile(mean[bin_], 0.25)) - level
        # a deviation from n values, of which neighbours overlap, has a relative error of about 2 / sqrt(n)
        measured = response_noise(response[bin_]) ** 2 * (1 + 3 * 2 / np.sqrt(bin_.size))
        if signal > 3 * noise and measured > noise**2:
            least = max(least, signal / (measured - noise**2))
    return float(least)


def expected_signal(exposure: Exposure, model: NoiseModel) -> FloatArray:
    """Return the expected value of each pixel by local statistics (Lee 1980), from coarse to fine.

    The means over 15x15 pixels are the first estimate. Means over 5x5 pixels, then the pixels themselves, take its
    place to the extent to which they scatter about it more than their noise explains.

    Returns
    -------
    ndarray of the data's type, shape (ny, nx)
    """
    signal = np.empty_like(exposure.data)
    map_bands(lambda band: _fill_signal(exposure, model, band, signal), row_bands(exposure.shape[0]))
    return signal


def _fill_signal(exposure: Exposure, model: NoiseModel, band: tuple[int, int], signal: FloatArray) -> None:
    """Fill some rows of `expected_signal`."""
    sky = model.noise**2
    per_photon = 0.0 if model.gain is None else 1 / model.gain
    local_signal(exposure.data, exposure.mask, int(UNUSABLE), model.level, sky, per_photon, model.floor, *band, signal)


def _warn(message: str) -> None:
    warnings.warn(message, SkyloomWarning, stacklevel=4)
