"""Errors of apertures on drizzled images: predicted from the covariances, against the scatter of simulated images.

Each pattern of dithers is drizzled many times with fresh noise. Printed is, for circles of 1 to 10 pixels radius, the
predicted error over the scatter: from the covariances of every pixel (exact), from averages over blocks (the default),
from these scaled to the variance plane, from the variance plane alone, and from that with the closed form R of Fruchter
& Hook. Then the time that the sums for the averages take, against the drizzle itself.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from skyloom.resampling import CovarianceSums, Drizzle, Spreading, circle_weights, noise_ratio

PATTERNS = {  # name: number of images, output pixel in input pixels, degrees between images, pixfrac, dithers
    "one image, turned": (1, 1.0, 3.0, 1.0, "random"),
    "one image, shifted": (1, 1.0, 0.0, 1.0, "random"),
    "one image, turned, pixfrac 0.6": (1, 1.0, 3.0, 0.6, "random"),
    "2 images": (2, 1.0, 3.0, 0.8, "random"),
    "4 images, half-pixel box, finer output": (4, 0.5, 0.0, 0.6, "box"),
    "4 images, finer output": (4, 0.5, 1.0, 0.7, "random"),
    "5 images": (5, 0.7, 0.3, 0.8, "random"),
    "12 images": (12, 0.6, 17.0, 0.8, "random"),
}
RADII = np.arange(1, 11)


def pixel_map(n: int, scale: float, turn: float, shift: np.ndarray) -> np.ndarray:
    """Positions of n x n pixels turned by some degrees, on pixels of side `scale`."""
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    return np.stack([(c * x - s * y + shift[0]) / scale, (s * x + c * y + shift[1]) / scale], -1) + (n - 1) / 2 / scale


def scene(pattern: str, n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Weight, variance and pixel map of each image: 1 % of the pixels masked, exposures of different depth."""
    count, scale, turn, _, dither = PATTERNS[pattern]
    rng = np.random.default_rng(seed)
    images = []
    for k in range(count):
        depth = rng.uniform(0.7, 1.4) if dither == "random" else 1.0
        weight = np.where(rng.random((n, n)) < 0.01, 0.0, depth)
        shift = rng.uniform(-1, 1, 2) if dither == "random" else np.array([k % 2, k // 2]) / 2
        images.append((weight, np.full((n, n), 1 / depth), pixel_map(n, scale, turn * (k + 1), shift)))
    return images


def compare(pattern: str, n: int, realisations: int, seed: int = 1) -> None:
    """Print predicted over observed errors."""
    _, scale, _, pixfrac, _ = PATTERNS[pattern]
    images, shape = scene(pattern, n, seed), (int(n / scale),) * 2
    rng = np.random.default_rng(seed + 1)
    exact, local = CovarianceSums(shape, block=1), CovarianceSums(shape)
    for weight, variance, pixmap in images:
        for sums in (exact, local):
            sums.add_image(variance, pixmap, weight_map=weight, spreading=Spreading(pixfrac=pixfrac))
    margin = 0.22 * n / scale
    places = [
        np.array([x, y]) + rng.uniform(-1, 1, 2)
        for x in np.arange(margin, shape[1] - margin, 23)
        for y in np.arange(margin, shape[0] - margin, 23)
    ]
    apertures = [(radius, *place) for radius in RADII for place in places]
    measure = np.zeros((len(apertures), *shape), np.float32)
    for h, (radius, x, y) in zip(measure, apertures, strict=True):
        values, x0, y0 = circle_weights(x, y, radius)
        h[y0 : y0 + values.shape[0], x0 : x0 + values.shape[1]] = values
    measured = []
    for _ in range(realisations):
        drizzle = Drizzle(out_shape=shape, fillval=0, disable_ctx=True)
        for weight, variance, pixmap in images:
            data = rng.normal(0, np.sqrt(variance)).astype(np.float32)
            drizzle.add_image(data, 1.0, pixmap, variance, weight_map=weight, pixfrac=pixfrac)
        measured.append(measure.reshape(len(apertures), -1) @ drizzle.out_img.ravel())
    maps = [sums.finish(drizzle.out_wht) for sums in (exact, local)]
    variance = np.nan_to_num(drizzle.out_img2[0])
    plain = np.einsum("kyx,kyx,yx->k", measure, measure, variance)
    predicted = [[m.aperture_variance(x, y, r) for r, x, y in apertures] for m in maps]
    predicted += [[maps[1].aperture_variance(x, y, r, variance) for r, x, y in apertures]]
    predicted += [plain, plain * noise_ratio(pixfrac, scale) ** 2]
    observed = np.mean(np.square(measured), axis=0).reshape(len(RADII), -1).mean(axis=1)
    counting = 1 / np.sqrt(2 * realisations * len(places))
    print(f"\n{pattern}: {len(places)} apertures, {realisations} realisations; counting noise {counting:.3f}")
    middle = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    print(f"  R = {maps[1].noise_ratio(*middle):.3f} here, closed form {noise_ratio(pixfrac, scale):.3f}")
    print("  radius         " + "".join(f"{r:7d}" for r in RADII))
    names = "every pixel", "blocks", "blocks, scaled", "variance plane", "variance, R"
    for name, values in zip(names, predicted, strict=True):
        ratio = np.sqrt(np.reshape(values, (len(RADII), -1)).mean(axis=1) / observed)
        print(f"  {name:15s}" + "".join(f"{v:7.3f}" for v in ratio))
    one = np.sqrt(np.reshape(predicted[1], (len(RADII), -1)) / np.reshape(predicted[0], (len(RADII), -1)))
    print("  blocks / exact, scatter from aperture to aperture")
    print("                 " + "".join(f"{v:7.3f}" for v in one.std(axis=1)))


def cost(n: int, repeat: int) -> None:
    """Print the time of the sums in units of that of the drizzle."""
    print(f"\ntime for one image of {n} x {n} pixels, ns per input pixel (median of {repeat})")
    for scale, pixfrac in ((1.0, 1.0), (1.0, 0.6), (0.5, 1.0)):
        pixmap, shape = pixel_map(n, scale, 3.0, np.zeros(2)), (int(n / scale),) * 2
        data = np.ones((n, n), np.float32)
        drizzle, sums = Drizzle(out_shape=shape), CovarianceSums(shape)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeat + 1):
            start = time.perf_counter()
            drizzle.add_image(data, 1.0, pixmap, weight_map=data, pixfrac=pixfrac)
            middle = time.perf_counter()
            sums.add_image(data, pixmap, weight_map=data, spreading=Spreading(pixfrac=pixfrac))
            times[0].append(middle - start)
            times[1].append(time.perf_counter() - middle)
        a, b = (np.median(t[1:]) / n**2 * 1e9 for t in times)
        print(f"  output pixel {scale}, pixfrac {pixfrac}: drizzle {a:.1f}, covariance {b:.1f}, ratio {b / a:.2f}")


def main() -> None:
    """Run all patterns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of the simulated images")
    parser.add_argument("--realisations", type=int, default=200)
    parser.add_argument("--cost-size", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    for pattern in PATTERNS:
        compare(pattern, options.size, options.realisations)
    cost(options.cost_size, options.repeat)


if __name__ == "__main__":
    main()
