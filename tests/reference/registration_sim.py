"""Pairs of star fields with an exactly known transform, as images or as lists: 37 regimes that break registration.

Template pixel x maps to source pixel  c + u (1 + k |u|^2 / R^2)  with  u = s R(angle) F (x - c) + shift, R half the
diagonal, and k R the displacement at the corner in pixels; irregular ones add waves that no polynomial of low order is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.table import Table

from skyloom.exposure import Exposure

BETA = 3.5  # Moffat


@dataclass(frozen=True)
class Truth:
    """The exact transform, template to source."""

    scale: float = 1.0
    rotation: float = 0.0
    mirrored: bool = False
    shift: tuple[float, float] = (20.0, -15.0)
    distortion: float = 0.0
    size: int = 1024
    irregular: float = 0.0

    @property
    def matrix(self):
        t = np.radians(self.rotation)
        return (
            self.scale
            * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
            @ np.diag([-1.0 if self.mirrored else 1.0, 1.0])
        )

    def __call__(self, xy):
        centre, radius = (self.size - 1) / 2, self.size / np.sqrt(2)
        u = (np.asarray(xy) - centre) @ self.matrix.T + self.shift
        r2 = (u**2).sum(axis=1, keepdims=True) / radius**2
        # a wave and a half along one axis and a little over one along the other, out of step
        wave = np.sin(np.array([9.0, 7.0]) * u[:, ::-1] / self.size + 1.0) * np.cos(6.0 * u / self.size)
        return centre + u * (1 + self.distortion / radius * np.minimum(r2, 4)) + self.irregular / 2 * wave

    def grid(self, margin=5, count=25):
        """Template positions whose images lie in the source."""
        axis = np.linspace(margin, self.size - 1 - margin, count)
        xy = np.array(np.meshgrid(axis, axis)).reshape(2, -1).T
        image = self(xy)
        return xy[((image > margin) & (image < self.size - 1 - margin)).all(axis=1)]

    def rms_error(self, registration):
        """RMS distance of a registration from the truth over the overlap, and the largest, in template pixels."""
        grid = self.grid()
        miss = np.hypot(*((registration.template_to_source(grid) - self(grid)) / self.scale).T)
        return float(np.sqrt((miss**2).mean())), float(miss.max())


@dataclass(frozen=True)
class Regime:
    """How a pair is made; `rotation` None means random, `depth` is the flux ratio, `band` the scatter in magnitudes."""

    stars: int = 500
    scale: float = 1.0
    rotation: float | None = 0.0
    mirrored: bool = False
    shift: tuple[float, float] = (20.0, -15.0)
    distortion: float = 0.0
    depth: float = 1.0
    band: float = 0.0
    hot: int = 0
    tracks: int = 0
    galaxy: bool = False
    fwhm: float = 3.0
    fwhm_source: float | None = None
    faintest: float = 600.0
    size: int = 1024
    irregular: float = 0.0


REGIMES = {
    "base": Regime(),
    "rotation random": Regime(rotation=None),
    "rotation 90": Regime(rotation=90.0),
    "rotation 180": Regime(rotation=180.0),
    "mirror": Regime(mirrored=True),
    "mirror, rotation": Regime(mirrored=True, rotation=None),
    "scale 0.5": Regime(scale=0.5, rotation=None),
    "scale 0.8": Regime(scale=0.8, rotation=None),
    "scale 1.5": Regime(scale=1.5, rotation=None),
    "scale 2": Regime(scale=2.0, rotation=None),
    "overlap 75%": Regime(shift=(256.0, 0.0)),
    "overlap 50%": Regime(shift=(512.0, 0.0)),
    "overlap 30%": Regime(shift=(717.0, 0.0)),
    "overlap 20%": Regime(shift=(819.0, 0.0)),
    "distortion 2 px": Regime(distortion=2.0),
    "distortion 10 px": Regime(distortion=10.0),
    "distortion 40 px": Regime(distortion=40.0),
    "distortion 10 px, rotation 90": Regime(distortion=10.0, rotation=90.0),
    "distortion 10 px, rotation 180": Regime(distortion=10.0, rotation=180.0),
    "distortion 10 px, scale 1.5": Regime(distortion=10.0, scale=1.5),
    "8 stars": Regime(stars=8, faintest=5000.0),
    "20 stars": Regime(stars=20, faintest=5000.0),
    "50 stars": Regime(stars=50),
    "200 stars": Regime(stars=200),
    "2000 stars": Regime(stars=2000),
    "8000 stars": Regime(stars=8000),
    "20000 stars": Regime(stars=20000),
    "8000 stars, rotation": Regime(stars=8000, rotation=None),
    "depth 1/10": Regime(depth=0.1, rotation=None),
    "depth 1/50": Regime(depth=0.02, rotation=None),
    "band 0.5 mag": Regime(band=0.5, rotation=None),
    "band 1.5 mag": Regime(band=1.5, rotation=None),
    "300 hot pixels, 300 tracks": Regime(hot=300, tracks=300, rotation=None),
    "3000 hot pixels, 1000 tracks": Regime(hot=3000, tracks=1000, rotation=None),
    "galaxy": Regime(galaxy=True, rotation=None),
    "seeing 3 and 6 px": Regime(fwhm_source=6.0, rotation=None),
    "all at once": Regime(
        rotation=None, shift=(300.0, 200.0), distortion=10.0, band=0.7, scale=1.3, hot=300, tracks=100, depth=0.3
    ),
}


MORE_REGIMES = {
    "scale 0.3": Regime(scale=0.3, rotation=None, stars=300),
    "scale 3": Regime(scale=3.0, rotation=None, stars=3000),
    "6 stars": Regime(stars=6, faintest=5000.0, rotation=None),
    "50000 stars": Regime(stars=50000, fwhm=2.0),
    "irregular distortion 40 px": Regime(stars=1500, irregular=40.0, rotation=None),
    "irregular distortion 3 px": Regime(stars=1500, irregular=3.0, rotation=None),
    "overlap 20%, rotation, mirror": Regime(shift=(819.0, 0.0), rotation=None, mirrored=True),
}
"""Harder than those that the peers were measured on."""


def make_images(seed, regime=REGIMES["base"]):
    """Return (source, template, truth): noisy exposures and the transform."""
    rng = np.random.default_rng(seed)
    truth, xy, flux, source_flux = _stars(rng, regime)
    seeing = regime.fwhm_source or max(1.8, regime.fwhm * regime.scale)
    images = []
    for position, light, fwhm, is_source in ((truth(xy), source_flux, seeing, True), (xy, flux, regime.fwhm, False)):
        image = np.full((regime.size, regime.size), 100.0)
        add_stars(image, position, light, fwhm)
        if regime.galaxy:
            scale = regime.scale if is_source else 1.0
            centre = np.array([[0.55, 0.45]]) * regime.size
            _add_galaxy(
                image,
                (truth(centre) if is_source else centre)[0],
                0.16 * scale * regime.size,
                regime.depth if is_source else 1.0,
            )
        image = rng.poisson(image) + rng.normal(0.0, 5.0, image.shape)
        if is_source:
            _add_artefacts(rng, image, regime)
        images.append(Exposure(image, gain=1.0, name="source" if is_source else "template"))
    return images[0], images[1], truth


def make_lists(seed, regime=REGIMES["base"], *, noise=0.03, spurious=0.1, missing=0.1):
    """Return (source, template, truth) as tables: what detection would give, in a thousandth of the time."""
    rng = np.random.default_rng(seed)
    truth, xy, flux, source_flux = _stars(rng, regime)
    tables = []
    for position, light in ((truth(xy), source_flux), (xy, flux)):
        inside = ((position > 0) & (position < regime.size - 1)).all(axis=1) & (rng.random(len(light)) > missing)
        p, f = position[inside] + rng.normal(0, noise, (int(inside.sum()), 2)), light[inside]
        extra = rng.integers(0, int(spurious * len(f)) + 1)
        p = np.concatenate([p, rng.uniform(0, regime.size, (extra, 2))])
        f = np.concatenate([f, regime.faintest * (1 + rng.pareto(0.6, extra))])
        tables.append(Table({"x": p[:, 0], "y": p[:, 1], "flux": f}, meta={"shape": (regime.size, regime.size)}))
    return tables[0], tables[1], truth


def _stars(rng, regime):
    n = regime.size
    rotation = rng.uniform(0, 360) if regime.rotation is None else regime.rotation
    truth = Truth(regime.scale, rotation, regime.mirrored, regime.shift, regime.distortion, n, regime.irregular)
    if regime.stars > 30:
        pad = 1.2 * n / min(regime.scale, 1.0)
        xy = rng.uniform(-pad, n + pad, (int(regime.stars * (1 + 2 * pad / n) ** 2), 2))
        keep = np.zeros(len(xy), bool)
        for position in (truth(xy), xy):
            keep |= ((position > -40) & (position < n + 40)).all(axis=1)
        xy = xy[keep]
    else:  # few stars: all within the overlap
        xy = rng.uniform(30, n - 30, (200 * regime.stars, 2))
        image = truth(xy)
        xy = xy[((image > 30) & (image < n - 30)).all(axis=1)][: regime.stars]
    flux = np.minimum(regime.faintest * (1 + rng.pareto(0.6, len(xy))), 3e5)
    return truth, xy, flux, flux * regime.depth * 10 ** (-0.4 * rng.normal(0, regime.band, len(xy)))


def add_stars(image, xy, flux, fwhm):
    """Add Moffat stars to an image."""
    ny, nx = image.shape
    a2 = fwhm**2 / (4 * (2 ** (1 / BETA) - 1))
    for (x, y), f in zip(xy, flux, strict=True):
        r = int(max(6.0, 3.5 * fwhm)) + (int(6 * fwhm) if f > 2e4 else 0)
        columns = np.arange(max(0, round(x) - r), min(nx, round(x) + r + 1))
        rows = np.arange(max(0, round(y) - r), min(ny, round(y) + r + 1))
        if len(columns) and len(rows):
            r2 = (columns - x) ** 2 + (rows[:, None] - y) ** 2
            image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += (
                f * (BETA - 1) / (np.pi * a2) * (1 + r2 / a2) ** -BETA
            )


def _add_galaxy(image, centre, radius, depth):
    y, x = np.indices(image.shape)
    r = np.hypot(x - centre[0], y - centre[1]) / radius
    image += 4000 * depth * np.exp(-3.67 * (np.sqrt(r + 0.02) - 0.14))


def _add_artefacts(rng, image, regime):
    n = regime.size
    hot = rng.integers(0, n * n, regime.hot)
    image.flat[hot] += regime.faintest * (1 + rng.pareto(0.6, regime.hot))
    for _ in range(regime.tracks):
        x, y = rng.uniform(5, n - 5, 2)
        angle, length = rng.uniform(0, np.pi), rng.uniform(2, 15)
        t = np.linspace(0, length, int(2 * length) + 2)
        column, row = ((v + t * f(angle)).astype(int).clip(0, n - 1) for v, f in ((x, np.cos), (y, np.sin)))
        image[row, column] += rng.uniform(300, 5000)


def unrelated_lists(seed, fewest=60, most=3000, size=1024):
    """Return two lists that have nothing in common: uniform, clustered, or with bad columns."""
    rng = np.random.default_rng(seed)
    kind = ("uniform", "cluster", "columns")[seed % 3]
    tables = []
    for _ in range(2):
        count = int(np.exp(rng.uniform(np.log(fewest), np.log(most))))
        xy = rng.uniform(0, size, (count, 2))
        some = rng.random(count) < 0.5
        if kind == "cluster":
            xy[some] = (size / 2 + 0.08 * size * rng.standard_t(2, (int(some.sum()), 2))).clip(0, size - 1)
        elif kind == "columns":
            xy[some, 0] = rng.choice([100.0, 313.0, 700.0], int(some.sum())) + rng.normal(0, 0.3, int(some.sum()))
        tables.append(
            Table({"x": xy[:, 0], "y": xy[:, 1], "flux": 1 + rng.pareto(0.6, count)}, meta={"shape": (size, size)})
        )
    return tables


def smaller(regime, size=384, stars=150):
    """Return a regime on a smaller image, for quick tests."""
    return replace(
        regime, size=size, stars=min(regime.stars, stars), shift=tuple(s * size / regime.size for s in regime.shift)
    )
