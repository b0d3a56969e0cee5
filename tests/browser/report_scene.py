"""A simulated difference with all the parts that the review page shows, made without the pipeline."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
from astropy.table import MaskedColumn, Table
from astropy.wcs import WCS

from skyloom.exposure import Exposure, MaskBit

SIGMA_PSF = 1.5
FWHM = 2.3548 * SIGMA_PSF
SKY, GAIN = 200.0, 2.0
FLAG_WORDS = {0: "", 1: "saturated", 2: "bright_residual", 3: "saturated bright_residual"}


def tan_wcs(shape, *, ra=359.99, dec=-30.0, scale=0.8):
    """A TAN WCS whose field crosses RA = 0, north up, east left, `scale` arcsec per pixel."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cd = np.array([[-scale, 0], [0, scale]]) / 3600
    wcs.wcs.set()
    return wcs


def _render(shape, x, y, flux):
    """Gaussian stars, each in its own box."""
    image = np.zeros(shape)
    half = int(6 * SIGMA_PSF)
    oy, ox = np.mgrid[-half : half + 1, -half : half + 1]
    for xi, yi, fi in zip(x, y, flux, strict=True):
        ix, iy = round(xi), round(yi)
        if half <= ix < shape[1] - half and half <= iy < shape[0] - half:
            stamp = np.exp(-((ox + ix - xi) ** 2 + (oy + iy - yi) ** 2) / (2 * SIGMA_PSF**2))
            image[iy - half : iy + half + 1, ix - half : ix + half + 1] += fi * stamp / (2 * np.pi * SIGMA_PSF**2)
    return image


class Psf:
    half = 8

    def stamp(self, x, y):
        oy, ox = np.mgrid[-8:9, -8:9]
        stamp = np.exp(-(ox**2 + oy**2) / (2 * SIGMA_PSF**2))
        return stamp / stamp.sum()

    def fwhm(self, x=0.0, y=0.0):
        return FWHM * (1 + 1e-4 * x)


class Kernel:
    half = 5
    total = 1.234

    def image_at(self, x, y):
        oy, ox = np.mgrid[-5:6, -5:6]
        image = np.exp(-((ox - x / 2000) ** 2 + oy**2) / 3) - 0.1 * np.exp(-((ox - 3) ** 2 + oy**2) / 2)
        return self.total * image / image.sum()


def _fits(rng, x, y, flux):
    """The registration of the stars, and the stamps of the kernel fit."""
    n_stars = len(x)
    shift = rng.normal(0, 0.05, (n_stars, 2))
    matched = Table(
        {
            "x_source": x,
            "y_source": y,
            "x_template": x + 3,
            "y_template": y - 2,
            "flux_source": flux,
            "flux_template": flux / 1.234 * rng.normal(1, 0.01, n_stars),
            "dx": shift[:, 0],
            "dy": shift[:, 1],
        }
    )
    registration = SimpleNamespace(
        n_matched=n_stars,
        rms=float(np.sqrt((shift**2).sum(axis=1).mean())),
        rms_xy=tuple(shift.std(axis=0)),
        matched=matched,
    )
    n = min(40, n_stars)
    stamps = Table({"x": x[:n], "y": y[:n], "used": np.arange(n) % 8 != 0, "chi2": rng.chisquare(50, n) / 50})
    return registration, stamps


def make_difference(
    size=(360, 300), *, seed=3, wcs=True, n_stars=150, science_name="science.fits", header=None, noise_factor=1.0
):
    """A difference of `size` (ny, nx); its variance is quoted `noise_factor` squared times too small."""
    rng = np.random.default_rng(seed)
    ny, nx = size
    x, y = rng.uniform(10, nx - 11, n_stars), rng.uniform(10, ny - 11, n_stars)
    flux = 300 * (1 - rng.random(n_stars)) ** -0.9
    stars = _render(size, x, y, flux)
    tx, ty = rng.uniform(20, nx - 21, 12), rng.uniform(20, ny - 21, 12)
    change = _render(size, tx, ty, rng.uniform(400, 2000, 12) * np.where(np.arange(12) % 3 == 2, -1, 1))
    sky = tan_wcs(size) if wcs else None
    variance = (SKY + stars) / GAIN
    mask = np.zeros(size, np.uint32)
    mask[:, :6] = MaskBit.NO_DATA
    mask[ny // 2 : ny // 2 + 14, nx // 2 : nx // 2 + 10] = MaskBit.SATURATED
    data = SKY + stars + change + rng.normal(0, np.sqrt(variance))
    data[mask == MaskBit.NO_DATA] = np.nan
    science = Exposure(
        data,
        variance + np.maximum(change, 0) / GAIN,
        mask,
        wcs=sky,
        exptime=60.0,
        name=science_name,
        header=header or {"DATE-OBS": "2026-03-01T04:05:06", "OBJECT": "Field 12", "FILTER": "r"},
    )
    model = SKY + stars + rng.normal(0, np.sqrt(variance) / 3)
    template = Exposure(
        model / 1.234, (variance / 9) / 1.234**2, name="template.fits", header={"DATE-OBS": "2025-01-01", "FILTER": "r"}
    )
    total = (variance * 10 / 9 + np.maximum(change, 0) / GAIN) / noise_factor**2
    image = np.where(science.usable, science.data - model, 0)
    profile = Psf().stamp(0, 0)
    from scipy.signal import fftconvolve

    significance = fftconvolve(image / total, profile, mode="same") / np.sqrt(
        np.maximum(fftconvolve(1 / total, profile**2, mode="same"), 1e-12)
    )
    registration, stamps = _fits(rng, x, y, flux)
    timings = {"registering": 0.8125, "matching and subtracting": 1.4375}
    return SimpleNamespace(
        image=image,
        variance=total,
        mask=np.array(science.mask),
        score=SimpleNamespace(significance=significance),
        science=science,
        template=template,
        matched=model,
        psf=Psf(),
        kernel=Kernel(),
        registration=registration,
        stamps=stamps,
        wcs=sky,
        parameters={"method": "auto"},
        diagnostics={"science_fwhm": 3.1, "template_fwhm": 2.9, "convolved": "template", "timings": timings},
        truth=np.column_stack([tx, ty]),
    )


def make_candidates(difference, count=30, *, seed=5):
    """A table of `count` candidates at the true changes and at random places, not sorted by S/N."""
    rng = np.random.default_rng(seed)
    ny, nx = difference.image.shape
    xy = np.concatenate([difference.truth, rng.uniform(8, (nx - 9, ny - 9), (max(count - 12, 0), 2))])[:count]
    snr = np.where(rng.random(count) < 0.3, -1, 1) * (5 + rng.exponential(8, count))
    flags = np.where(rng.random(count) < 0.25, rng.integers(1, 4, count), 0)
    if difference.wcs is not None:
        sky = difference.wcs.pixel_to_world(xy[:, 0], xy[:, 1])
        ra, dec = sky.ra.deg, sky.dec.deg
    else:
        ra = dec = np.full(count, np.nan)
    table = Table(
        {
            "id": np.arange(1, count + 1),
            "x": xy[:, 0],
            "y": xy[:, 1],
            "ra": ra,
            "dec": dec,
            "flux": snr * 40,
            "flux_err": np.full(count, 40.0),
            "snr": snr,
            "sign": np.sign(snr).astype(int),
            "flags": flags,
            "flag_text": [FLAG_WORDS[flag] for flag in flags],
        }
    )
    table["ra"].unit = table["dec"].unit = "deg"
    table["flux"].unit = "adu"
    table["snr"].description = "matched filter, in units of its noise"
    table["fwhm"] = MaskedColumn(rng.normal(3.5, 0.2, count), mask=np.arange(count) % 5 == 4)
    return table


def decode_png(uri):
    """Decode the greyscale PNG that the page holds, with Pillow, row 0 at the bottom."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)[::-1]


def value_of(level, stretch):
    """The inverse of the stretch, as the page computes it."""
    u = (level - 1) / (stretch["levels"] - 1)
    scale, soft = np.arcsinh(1 / stretch["softening"]), stretch["softening"]
    if stretch["symmetric"]:
        return stretch["high"] * np.sinh((2 * u - 1) * scale) * soft
    return stretch["low"] + (stretch["high"] - stretch["low"]) * np.sinh(u * scale) * soft
