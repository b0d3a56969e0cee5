"""Images, maps and calls that the tests of the drizzle kernels share."""

import os
import subprocess
import sys

import numpy as np

from skyloom.resampling import Drizzle

SEPARABLE = ["point", "turbo", "gaussian", "lanczos2", "lanczos3"]
VARIANTS = [*((k, False) for k in SEPARABLE), ("gaussian", True), ("lanczos2", True), ("lanczos3", True)]
"""Separable kernels, and whether their shares are normalised."""
CONSERVING = [("square", False), ("point", False), ("turbo", False), *((k, c) for k, c in VARIANTS if c)]
QUIET = "ignore:Kernel '"
"""Filter of the warnings about kernels that do not conserve flux."""


def rotation(degrees, scale=1.0):
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return [[c, -s], [s, c]]


def affine_map(shape, matrix, shift, curvature=0.0):
    """Pixel map about the middle of an image, with a quadratic distortion."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    u, v = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    u, v = u + curvature * (u * u + v * v), v + curvature * u * v
    return np.dstack([matrix[0][0] * u + matrix[0][1] * v + shift[0], matrix[1][0] * u + matrix[1][1] * v + shift[1]])


def image_planes(shape, seed=1):
    """Data, weights and variances."""
    rng = np.random.default_rng(seed)
    return rng.normal(100, 20, shape), rng.uniform(0.5, 2, shape), rng.uniform(1, 3, shape)


def drizzled(kernel, data, weight, pixmap, shape, *, conserving=False, scale=1.0, **options):
    """One image on an empty float64 output, whose pixels without data are 0; scale: output/input pixel."""
    outputs = {"out_img": np.zeros(shape), "out_wht": np.zeros(shape)}
    drizzle = Drizzle(kernel=kernel, fillval=0, fillval2=0, flux_conserving=conserving, **outputs)
    counts = drizzle.add_image(data, 1.0, pixmap, weight_map=weight, pixel_scale_ratio=scale, **options)
    return drizzle, counts


def results_of_instruction_sets(program, folder):
    """Run a program, which saves arrays in the file it is given and prints the instruction set, once for each set."""
    found = {}
    for level in ("baseline", "avx2", "avx512"):
        path = folder / f"{level}.npz"
        environment = {**os.environ, "SKYLOOM_SIMD": level}
        command = [sys.executable, "-c", program, str(path)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[result.stdout.strip()] = np.load(path)
    return found
