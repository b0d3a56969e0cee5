"""Does the light of stars survive resampling? Bias and scatter of fluxes, beside the bars.

    python benchmarks/bench_resample_photometry.py

Noise-free Gaussian stars, integrated over pixels, on a grid turned by 23 degrees; scale: input pixels per output pixel.
Fluxes are exact sums over circles of 3 FWHM (borders to a tenth of a pixel) against the truth; for area overlap also
the sum of the whole output against the sum of the input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from skyloom.exposure import Exposure
from skyloom.resampling import resample
from test_resample import N, aperture_flux, rotation, star_field

FLUX = 1e5


def one(method: str, scale: float, fwhm: float) -> str:
    """Return bias, scatter and largest error of the fluxes of some 60 stars."""
    image, xy = star_field(fwhm)
    out_to_in, in_to_out = rotation(scale=scale)
    result = resample(Exposure(image), out_to_in, (N, N), method=method)
    there = in_to_out(xy)
    radius = 3 * fwhm / scale
    there = there[((there > radius + 6) & (there < N - radius - 6)).all(axis=1)]
    ratio = aperture_flux(result.data, there, radius) / FLUX - 1
    line = f"{len(ratio):3d} stars: bias {ratio.mean():+.1e}, scatter {ratio.std():.1e}, largest {abs(ratio).max():.1e}"
    if method == "area" and scale > 1:
        total = float(result.data.sum(dtype=np.float64)) / float(image.sum()) - 1
        line += f"; total flux {total:+.1e}"
    return line


def main() -> None:
    print("bars: bias 1e-4, scatter 2e-4 for lanczos3 and spline; area overlap: the total flux exactly")
    for scale, fwhm in ((1.0, 2.5), (0.7, 2.5), (2.0, 4.0)):
        # where output pixels are large, interpolation aliases, and 'auto' takes area overlap
        for method in ("lanczos3", "lanczos4", "spline3", "spline5", "area") if scale <= 1 else ("area", "auto"):
            print(f"scale {scale:3.1f}, FWHM {fwhm:g} px, {method:9s} {one(method, scale, fwhm)}")


if __name__ == "__main__":
    main()
