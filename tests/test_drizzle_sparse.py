"""Drizzle with a sparse map: the bits of the full pixmap, for every kernel, map and number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from skyloom import _kernels
from skyloom.errors import InputError, ShapeError
from skyloom.resampling import Drizzle, SampledMap, maps

KERNELS = ["square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"]
SHAPE = (150, 211)  # columns: neither a multiple of a batch, nor of the nodes
FRAME = (170, 230)


def smooth(xy):
    x, y = xy[:, 0] - 90.3, xy[:, 1] - 70.1
    return np.stack([105 + 0.98 * x - 0.17 * y + 2e-4 * x * y, 80 + 0.17 * x + 0.97 * y + 3e-7 * x**3], 1)


def torn(xy):
    """With a step in the image, and a disc where it is not defined: cells around them are evaluated exactly."""
    out = smooth(xy)
    out[xy[:, 0] + 0.3 * xy[:, 1] > 120] += [4.0, -1.5]
    out[np.hypot(xy[:, 0] - 40, xy[:, 1] - 50) < 9.5] = np.nan
    return out


def narrow_nodes(xy):
    """So wavy along x that the nodes along it are close."""
    return xy + np.stack([0 * xy[:, 0], np.sin(xy[:, 0] / 5.0)], 1)


def drizzled(pixmap, shape=SHAPE, *, kernel="square", frame=FRAME, options=None, **arguments):
    rng = np.random.default_rng(4)
    drizzle = Drizzle(kernel=kernel, out_shape=frame, fillval=-1, flux_conserving=True, **(options or {}))
    drizzle.add_image(
        rng.normal(10, 1, shape).astype(np.float32),
        1.0,
        pixmap,
        weight_map=rng.uniform(0.5, 1, shape).astype(np.float32),
        data2=[rng.uniform(1, 2, shape).astype(np.float32)],
        dq=rng.integers(0, 4, shape).astype(np.uint32),
        **arguments,
    )
    return drizzle


def assert_same(found, needed):
    for name in ("out_img", "out_wht", "out_ctx", "out_dq"):
        np.testing.assert_array_equal(getattr(found, name), getattr(needed, name))
    np.testing.assert_array_equal(found.out_img2[0], needed.out_img2[0])
    assert needed.out_wht.sum() > 0


@pytest.mark.filterwarnings("ignore:In lanczos kernel")
@pytest.mark.parametrize("map_", [smooth, torn])
@pytest.mark.parametrize("pixfrac", [1.0, 0.7])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bits_are_those_of_the_full_pixmap(monkeypatch, kernel, pixfrac, map_):
    sampled = SampledMap(map_, SHAPE)
    assert sampled.evaluations < 0.6 * SHAPE[0] * SHAPE[1]
    assert isinstance(sampled.grid(), _kernels.MapGrid)
    pixmap = sampled.pixmap()
    assert np.isnan(pixmap).any() == (map_ is torn)
    needed = drizzled(pixmap, kernel=kernel, pixfrac=pixfrac)
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        assert_same(drizzled(sampled, kernel=kernel, pixfrac=pixfrac), needed)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 7), (7, 900), (900, 7), (64, 66), (40, 129)])
def test_images_of_any_shape(shape):
    sampled = SampledMap(lambda xy: smooth(xy) + np.array([0.0, 30.0]), shape)
    frame = (1100, 1300)
    assert_same(drizzled(sampled, shape, frame=frame), drizzled(sampled.pixmap(), shape, frame=frame))


@pytest.mark.parametrize("shape", [(200, 300), (9, 4000), (4000, 9)])
def test_nodes_that_are_close(shape):
    sampled, frame = SampledMap(narrow_nodes, shape), (shape[0] + 3, shape[1] + 3)
    assert_same(drizzled(sampled, shape, frame=frame), drizzled(sampled.pixmap(), shape, frame=frame))


def test_nodes_denser_than_pixels():
    shape, frame = (40, 200), (200, 300)
    sampled = SampledMap(smooth, shape)
    sampled._x = maps._axis(200, 700)
    sampled._nodes = sampled._grid(sampled._x.nodes, sampled._y.nodes)
    assert_same(drizzled(sampled, shape, frame=frame), drizzled(sampled.pixmap(), shape, frame=frame))


@pytest.mark.parametrize("kernel", ["square", "gaussian"])
def test_windows_and_the_estimate_of_the_scale(kernel):
    sampled = SampledMap(lambda xy: 0.6 * torn(xy), SHAPE)
    options = {"xmin": 11, "xmax": 170, "ymin": 3, "ymax": 140, "pixel_scale_ratio": None}
    needed = drizzled(sampled.pixmap(), kernel=kernel, **options)
    assert_same(drizzled(sampled, kernel=kernel, **options), needed)
    fixed = drizzled(sampled, kernel=kernel, **{**options, "pixel_scale_ratio": 1.0})
    assert np.array_equal(fixed.out_img, needed.out_img) == (kernel == "square")


def test_the_output_takes_its_shape_from_the_map():
    sampled = SampledMap(lambda xy: smooth(xy) + np.array([40.0, -300.0]), SHAPE)
    needed = drizzled(sampled.pixmap(), frame=None)
    found = drizzled(sampled, frame=None)
    assert_same(found, needed)
    for drizzle, pixmap in ((found, sampled), (needed, sampled.pixmap())):  # the second is on the frame of the first
        drizzle.add_image(np.ones(SHAPE), 1.0, pixmap, data2=[np.ones(SHAPE)])
    assert_same(found, needed)


def test_covariances():
    sampled = SampledMap(smooth, SHAPE)
    found, needed = (drizzled(p, options={"covariance": 32}) for p in (sampled, sampled.pixmap()))
    assert_same(found, needed)
    np.testing.assert_array_equal(found.covariance.correlation(100, 80), needed.covariance.correlation(100, 80))


def test_a_map_that_goes_nowhere():
    nowhere = SampledMap(lambda xy: np.full(xy.shape, np.nan), SHAPE)
    beside = SampledMap(lambda xy: xy + 1e4, SHAPE)
    with pytest.raises(InputError, match="No or too few valid pixels"):
        drizzled(nowhere)
    drizzle = Drizzle(out_shape=FRAME)
    assert drizzle.add_image(np.ones(SHAPE), 1.0, beside) == (SHAPE[0] * SHAPE[1], SHAPE[0])


def test_the_map_must_be_that_of_the_image():
    with pytest.raises(ShapeError, match="'pixmap' shape"):
        drizzled(SampledMap(smooth, (150, 210)))


def test_a_grid_is_checked_before_it_is_read():
    nodes, weight = np.zeros((4, 4, 2)), np.full((5, 4), 0.25)
    good, no_index, no_xy = np.zeros(5, np.int32), np.empty(0, np.int64), np.empty((0, 2))
    _kernels.MapGrid(nodes, good, weight, good, weight, no_index, no_xy)
    for first in ([0, 0, 0, 0, 1], [-1, 0, 0, 0, 0]):
        with pytest.raises(ValueError, match="stencils"):
            _kernels.MapGrid(nodes, np.array(first, np.int32), weight, good, weight, no_index, no_xy)
    for index in ([3, 2], [0, 25], [-1, 3]):
        with pytest.raises(ValueError, match="exact pixels"):
            _kernels.MapGrid(nodes, good, weight, good, weight, np.array(index), np.zeros((2, 2)))
