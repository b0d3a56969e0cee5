"""Science/template pairs with known truth, for everybody's tests.

``simulate_pair(seed)`` draws stars, galaxies and transients once and shows them twice: through two point spread
functions that vary over the field, with two skies, gains and flux scales, and with the noise of photons and read-out.
Pixel coordinates are 0-based; a source at (x, y) has its centre on the centre of pixel [y, x].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
from astropy.table import Table
from scipy.signal import fftconvolve

from skyloom.exposure import Exposure
from skyloom.psf.analytic import Profile

# nodes and weights of a 3-point Gauss-Legendre rule over one pixel: integrates a PSF of FWHM > 1.5 px to 1e-4
NODES, WEIGHTS = (values / 2 for values in np.polynomial.legendre.leggauss(3))


@dataclass(frozen=True)
class Epoch:
    """Observing conditions of one image; fluxes and sky in ADU, `read_noise` in electrons, `fwhm` in pixels."""

    fwhm: float
    gain: float
    sky: float
    read_noise: float
    scale: float = 1.0
    tilt: tuple[float, float] = (0.0, 0.0)
    vary_fwhm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Relative change of the FWHM: coefficients of X, Y and XY, where X and Y run from -1 to 1 over the image."""
    shear: tuple[float, float] = (0.0, 0.0)
    vary_shear: tuple[float, float] = (0.0, 0.0)

    @property
    def sky_sigma(self) -> float:
        """Noise of a sky pixel, ADU."""
        return float(np.sqrt(self.sky / self.gain + (self.read_noise / self.gain) ** 2))


SCIENCE = Epoch(
    4.2, 1.5, 300.0, 6.0, tilt=(8.0, -5.0), vary_fwhm=(0.04, -0.03, 0.03), shear=(0.03, -0.02), vary_shear=(0.03, 0.03)
)
TEMPLATE = Epoch(3.0, 12.0, 180.0, 15.0, scale=0.8, vary_fwhm=(-0.02, 0.03, 0.0), vary_shear=(-0.02, 0.02))


@dataclass(frozen=True)
class AnalyticPsf:
    """Pixel-integrated elliptical Moffat (or Gaussian, ``beta=None``) whose width and shear vary over the field."""

    epoch: Epoch
    shape: tuple[int, int]
    beta: float | None = 3.5
    half: int = 20

    def profile(self, x, y, dx, dy, half):
        """Unit-flux profile in a box of 2 half + 1 pixels; the source lies at (dx, dy) from its middle pixel."""
        X, Y = 2 * x / (self.shape[1] - 1) - 1, 2 * y / (self.shape[0] - 1) - 1
        fwhm = self.fwhm(x, y)
        e1, e2 = (s + v * c for s, v, c in zip(self.epoch.shear, self.epoch.vary_shear, (X, Y), strict=True))
        axis = np.arange(-half, half + 1.0)[:, None] + NODES[None, :]
        u, v = (axis - dx).ravel()[None, :], (axis - dy).ravel()[:, None]
        # ((1 - e1) u - e2 v)^2 + ((1 + e1) v - e2 u)^2, in few passes over the box: fields have a thousand stars
        det = 1 - e1**2 - e2**2
        r2 = ((1 - e1) ** 2 + e2**2) / det * u - 4 * e2 / det * v
        r2 *= u
        r2 += ((1 + e1) ** 2 + e2**2) / det * v**2
        if self.beta is None:
            sigma2 = fwhm**2 / (8 * np.log(2))
            values = np.exp(-r2 / (2 * sigma2)) / (2 * np.pi * sigma2)
        else:
            a2 = fwhm**2 / (4 * (2 ** (1 / self.beta) - 1))
            r2 /= a2
            r2 += 1
            if self.beta == 3.5:  # a root and products take a third of the time of a power
                values = np.sqrt(r2)
                for _ in range(3):
                    values *= r2
            else:
                values = r2**self.beta
            np.divide((self.beta - 1) / (np.pi * a2), values, out=values)
        n = 2 * half + 1
        lines = values.reshape(n, 3, n, 3)
        rows = sum(w * lines[:, i] for i, w in enumerate(WEIGHTS))
        return sum(w * rows[..., i] for i, w in enumerate(WEIGHTS))

    def fwhm(self, x=None, y=None):
        x = (self.shape[1] - 1) / 2 if x is None else x
        y = (self.shape[0] - 1) / 2 if y is None else y
        X, Y = 2 * x / (self.shape[1] - 1) - 1, 2 * y / (self.shape[0] - 1) - 1
        cx, cy, cxy = self.epoch.vary_fwhm
        return self.epoch.fwhm * (1 + cx * X + cy * Y + cxy * X * Y)

    def stamp(self, x, y):
        """Unit-sum stamp, shape (2 half + 1, 2 half + 1)."""
        stamp = self.profile(x, y, 0.0, 0.0, self.half)
        return stamp / stamp.sum()


@dataclass(frozen=True)
class Pair:
    """A simulated pair and its truth. Positions are those in the science image, fluxes are science ADU."""

    science: Exposure
    template: Exposure
    science_model: np.ndarray
    template_model: np.ndarray
    science_psf: AnalyticPsf
    template_psf: AnalyticPsf
    stars: Table
    galaxies: Table
    transients: Table
    flux_ratio: float
    """Template flux of a constant source divided by its science flux; the true kernel sum is its inverse."""


def simulate_pair(
    seed=1,
    size=512,
    *,
    n_stars=None,
    n_galaxies=None,
    n_transients=None,
    vary=1.0,
    beta=3.5,
    shift=(0.0, 0.0),
    saturation=None,
    snr=(3.0, 50.0),
    noise=True,
    colour=0.0,
    science=SCIENCE,
    template=TEMPLATE,
):
    """Simulate a pair of images of `size` x `size` pixels; without counts, 400/40/20 sources per 1024 x 1024 pixels.

    `vary` scales the spatial variation of both PSFs, `shift` displaces the template in pixels, `snr` is the range of
    the transients' signal-to-noise ratio (that of a matched filter on an empty science sky). `colour` is the standard
    deviation of the stars' flux ratios, relative: that of their colours times the difference of the passbands.
    """
    rng = np.random.default_rng(seed)
    area = (size / 1024) ** 2
    counts = (n_stars, 400), (n_galaxies, 40), (n_transients, 20)
    n_stars, n_galaxies, n_transients = (round(default * area) if n is None else n for n, default in counts)
    epochs = [_scaled_variation(epoch, vary) for epoch in (science, template)]
    psfs = [AnalyticPsf(epoch, (size, size), beta, half=int(np.ceil(4 * epoch.fwhm))) for epoch in epochs]
    stars, galaxies = _stars(rng, n_stars, size), _galaxies(rng, n_galaxies, size)
    transients = _transients(rng, n_transients, size, galaxies=galaxies, psf=psfs[0], snr=snr)
    seen = stars.copy()
    seen["flux"] *= np.exp(colour * np.random.default_rng(seed + 1_000_000).normal(size=len(stars)))
    images = []
    for epoch, psf, sources in zip(epochs, psfs, ([stars, transients], [seen]), strict=True):
        dx, dy = (0.0, 0.0) if epoch is epochs[0] else shift
        model = np.zeros((size, size))
        for table in sources:
            for x, y, flux in table.iterrows("x", "y", "flux"):
                half = int(min(70, max(20, 8 * epoch.fwhm * (flux / 1e4) ** 0.25)))
                _add(model, x + dx, y + dy, flux * epoch.scale, psf=psf, field_position=(x, y), half=half)
        for galaxy in galaxies:
            _add_galaxy(model, galaxy, shift=(dx, dy), scale=epoch.scale, psf=psf)
        Y, X = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
        model += epoch.sky + epoch.tilt[0] * X + epoch.tilt[1] * Y
        images.append((_observe(model, epoch, rng if noise else None, saturation), model))
    (sci, sci_model), (tpl, tpl_model) = images
    return Pair(
        sci.replace(name="science"),
        tpl.replace(name="template"),
        sci_model,
        tpl_model,
        *psfs,
        stars,
        galaxies,
        transients,
        template.scale / science.scale,
    )


def _scaled_variation(epoch, vary):
    return replace(
        epoch,
        vary_fwhm=tuple(vary * c for c in epoch.vary_fwhm),
        shear=tuple(vary * c for c in epoch.shear),
        vary_shear=tuple(vary * c for c in epoch.vary_shear),
    )


def _stars(rng, count, size):
    """Fluxes from dN/dF ~ F^-1.6 between 1e3 and 3e5 ADU, by inversion of the cumulative distribution."""
    low, high = 1e3**-0.6, 3e5**-0.6
    flux = (low + rng.random(count) * (high - low)) ** (-1 / 0.6)
    return Table({"x": rng.uniform(5, size - 6, count), "y": rng.uniform(5, size - 6, count), "flux": flux})


def _galaxies(rng, count, size):
    """Sersic profiles: half-light radius 2-6 px, index 1, 2 or 4."""
    low, high = min(20, size / 4), size - 1 - min(20, size / 4)
    return Table(
        {
            "x": rng.uniform(low, high, count),
            "y": rng.uniform(low, high, count),
            "flux": 10 ** rng.uniform(3.8, 5.0, count),
            "radius": rng.uniform(2, 6, count),
            "index": rng.choice([1.0, 2.0, 4.0], count),
            "e1": rng.normal(0, 0.15, count).clip(-0.4, 0.4),
            "e2": rng.normal(0, 0.15, count).clip(-0.4, 0.4),
        }
    )


def _transients(rng, count, size, *, galaxies, psf, snr):
    """Every second one near a galaxy; the flux gives the wanted matched-filter S/N on the empty science sky."""
    margin = min(40, size / 6)
    table = Table({axis: rng.uniform(margin, size - 1 - margin, count) for axis in "xy"})
    inside = np.flatnonzero(
        [margin < g["x"] < size - 1 - margin and margin < g["y"] < size - 1 - margin for g in galaxies]
    )
    table["host"] = np.full(count, -1)
    for row, index in zip(table[::2], rng.permutation(inside), strict=False):  # no galaxy hosts two
        row["host"] = index
        host = galaxies[row["host"]]
        for axis in ("x", "y"):
            row[axis] = np.clip(host[axis] + rng.normal(0, host["radius"]), margin, size - 1 - margin)
    table["snr"] = np.exp(rng.uniform(*np.log(snr), count))
    table["flux"] = [
        row["snr"] * psf.epoch.sky_sigma / np.sqrt(np.sum(psf.stamp(row["x"], row["y"]) ** 2)) for row in table
    ]
    return table


def _add(model, x, y, flux, *, psf, field_position, half):
    """Add a point source at (x, y), with the PSF of `field_position`."""
    ix, iy = round(x), round(y)
    _paste(model, flux * psf.profile(*field_position, x - ix, y - iy, half), ix, iy)


def _paste(model, stamp, ix, iy):
    half = stamp.shape[0] // 2
    y0, y1 = max(0, iy - half), min(model.shape[0], iy + half + 1)
    x0, x1 = max(0, ix - half), min(model.shape[1], ix + half + 1)
    if y1 > y0 and x1 > x0:
        model[y0:y1, x0:x1] += stamp[y0 - iy + half : y1 - iy + half, x0 - ix + half : x1 - ix + half]


def _add_galaxy(model, galaxy, *, shift, scale, psf, half=40, oversample=3):
    """Add a Sersic profile, sampled 3 x 3 per pixel and convolved with the PSF of its place, sampled alike."""
    x, y = galaxy["x"] + shift[0], galaxy["y"] + shift[1]
    ix, iy = round(x), round(y)
    n = (2 * half + 1) * oversample
    axis = (np.arange(n) - (n - 1) / 2) / oversample
    u, v = (axis - (x - ix))[None, :], (axis - (y - iy))[:, None]
    e1, e2 = galaxy["e1"], galaxy["e2"]
    r = np.sqrt((((1 - e1) * u - e2 * v) ** 2 + ((1 + e1) * v - e2 * u) ** 2) / (1 - e1**2 - e2**2) + 0.01)
    b = 2 * galaxy["index"] - 1 / 3
    light = np.exp(-b * ((r / galaxy["radius"]) ** (1 / galaxy["index"]) - 1)) * (r < 6 * galaxy["radius"])
    fine = replace(psf, epoch=replace(psf.epoch, fwhm=psf.epoch.fwhm * oversample))
    image = fftconvolve(light / light.sum(), fine.profile(galaxy["x"], galaxy["y"], 0.0, 0.0, 45), mode="same")
    binned = image.reshape(2 * half + 1, oversample, 2 * half + 1, oversample).sum(axis=(1, 3))
    _paste(model, galaxy["flux"] * scale * binned, ix, iy)


def _observe(model, epoch, rng, saturation):
    """Return the exposure of a noiseless image: photon noise, read noise, and the true variance."""
    variance = model / epoch.gain + (epoch.read_noise / epoch.gain) ** 2
    data = model.copy()
    if rng is not None:
        electrons = rng.poisson(model * epoch.gain) + rng.normal(0, epoch.read_noise, model.shape)
        data = electrons / epoch.gain
    if saturation is not None:
        data = np.minimum(data, saturation)
    return Exposure(
        data.astype(np.float32),
        variance.astype(np.float32),
        gain=epoch.gain,
        read_noise=epoch.read_noise,
        saturation=saturation,
    )


def far_from_sources(pair, radius=15):
    """Return the pixels with no star, galaxy or transient within `radius` pixels."""
    y, x = np.indices(pair.science.shape)
    far = np.ones(pair.science.shape, bool)
    for table in (pair.stars, pair.galaxies, pair.transients):
        for xs, ys in table.iterrows("x", "y"):
            far &= (x - xs) ** 2 + (y - ys) ** 2 > radius**2
    return far


class ConstantKernel:
    """A matching kernel that is the same everywhere."""

    def __init__(self, image):
        self.image, self.half = image, image.shape[0] // 2

    def image_at(self, x, y):
        return self.image

    def convolve(self, plane, power=1):
        """Convolve a plane with the kernel (or its square); the border counts as continued."""
        return fftconvolve(np.pad(np.asarray(plane, float), self.half, mode="edge"), self.image**power, mode="valid")


def ideal_subtraction(seed=1, size=256, *, science=SCIENCE, template=TEMPLATE, **options):
    """Return a pair with constant Gaussian PSFs, and its subtraction with the true kernel and the true background.

    For round Gaussians the kernel is a Gaussian too, with the difference of their variances.
    """
    science, template = replace(science, shear=(0, 0)), replace(template, shear=(0, 0))
    pair = simulate_pair(seed, size, vary=0.0, beta=None, science=science, template=template, **options)
    width = np.sqrt(science.fwhm**2 - template.fwhm**2)
    kernel = ConstantKernel(Profile(width).stamp(int(np.ceil(5 * width))) / pair.flux_ratio)
    Y, X = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    sky = science.sky + science.tilt[0] * X + science.tilt[1] * Y - template.sky * kernel.image.sum()
    matched = kernel.convolve(pair.template.data) + sky
    variance_template = kernel.convolve(pair.template.variance, power=2)
    return pair, SimpleNamespace(
        image=pair.science.data - matched, matched=matched, variance=pair.science.variance + variance_template,
        variance_science=pair.science.variance, variance_template=variance_template,
        mask=pair.science.mask | pair.template.mask, kernel=kernel, convolved="template",
        science=pair.science, template=pair.template, wcs=None,
    )  # fmt: skip
