"""Many images in one call: the same as one after another; a bad one is named, and leaves those before it in."""

from __future__ import annotations

import numpy as np
import pytest

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import Drizzle


def scene(count=4, n=12):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:n, :n].astype(float)
    return [
        {
            "data": rng.normal(size=(n, n)),
            "exptime": 1.0 + k,
            "pixmap": np.stack([x + 0.3 * k, y - 0.2 * k], -1),
            "weight_map": rng.uniform(1, 2, (n, n)),
            "pixfrac": 0.8,
        }
        for k in range(count)
    ]


def test_the_same_as_one_after_another():
    images = scene()
    together, single = Drizzle(out_shape=(13, 14)), Drizzle(out_shape=(13, 14))
    calls = []
    results = together.add_images(images, progress=lambda done, total: calls.append((done, total)))
    assert results == [single.add_image(**image) for image in images]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name in ("out_img", "out_wht", "out_ctx"):
        assert np.array_equal(getattr(together, name), getattr(single, name), equal_nan=True)
    assert together.total_exptime == single.total_exptime == 10


def test_a_generator_is_read_image_by_image():
    drizzle, seen = Drizzle(out_shape=(13, 14)), []

    def stream():
        for k, image in enumerate(scene()):
            assert drizzle.ctx_id == k
            yield image

    assert len(drizzle.add_images(stream(), progress=lambda done, total: seen.append(total))) == 4
    assert seen == [None] * 4


def test_nothing_is_no_error():
    assert Drizzle(out_shape=(3, 3)).add_images([]) == []


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"exptime": -1.0}, InputError, "strictly positive"),
        ({"weight_map": np.ones((3, 3))}, ShapeError, "'weight_map' shape"),
        ({"wheight": 1}, InputError, "wheight"),
        ({"dq": np.zeros((12, 12))}, TypeError, "unsigned integer"),
    ],
)
def test_a_bad_image_is_named_and_those_before_it_stay(change, error, words):
    images = scene()
    images[2].update(change)
    drizzle, first_two = Drizzle(out_shape=(13, 14)), Drizzle(out_shape=(13, 14))
    with pytest.raises(error, match=f"Image 2 .*{words}") as caught:
        drizzle.add_images(images)
    assert isinstance(caught.value, InputError)
    assert caught.value.details["image"] == 2
    first_two.add_images(images[:2])
    assert drizzle.ctx_id == 2
    assert np.array_equal(drizzle.out_img, first_two.out_img, equal_nan=True)
    assert np.array_equal(drizzle.out_wht, first_two.out_wht)


def test_what_is_no_image_is_named():
    with pytest.raises(InputError, match=r"Image 1 .* is a ndarray"):
        Drizzle(out_shape=(13, 14)).add_images([scene()[0], np.zeros((3, 3))])


def test_other_errors_carry_a_note(monkeypatch):
    drizzle = Drizzle(out_shape=(13, 14))

    def broken(*args, **keywords):
        raise MemoryError

    monkeypatch.setattr("skyloom.resampling.drizzle._kernels.DrizzleInput", broken)
    with pytest.raises(MemoryError) as caught:
        drizzle.add_images(scene())
    assert "Image 0" in caught.value.__notes__[0]


def test_no_drift_after_2000_images_in_float64():
    count, n = 2000, 16
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:n, :n].astype(float)
    steps = [(0.0, 0.0), (0.25, 0.5), (0.75, 0.125), (0.5, 0.875)]  # exact in binary: so are the shares
    shape = (n + 1, n + 1)
    drizzle = Drizzle(out_img=np.zeros(shape), out_wht=np.zeros(shape), max_ctx_id=count - 1)
    exact = np.zeros((3, *shape), np.longdouble)  # sums of a w, a w d and (a w)^2 v
    for k in range(count):
        data, weight, variance = rng.normal(100, 10, (n, n)), rng.uniform(0.1, 2, (n, n)), rng.uniform(1, 3, (n, n))
        dx, dy = steps[k % len(steps)]
        drizzle.add_image(data, 1.0, np.stack([x + dx, y + dy], -1), data2=variance, weight_map=weight)
        w = weight.astype(np.longdouble)
        for j, i, share in ((0, 0, (1 - dy) * (1 - dx)), (0, 1, (1 - dy) * dx), (1, 0, dy * (1 - dx)), (1, 1, dy * dx)):
            cells = exact[:, j : j + n, i : i + n]
            cells += np.stack([share * w, share * w * data, (share * w) ** 2 * variance])
    total = exact[0]
    # each image rounds a mean or a sum of positive numbers a few times, by half an ulp at most
    tolerance = 4 * count * 2.0**-53
    assert np.abs(drizzle.out_wht / total - 1).max() < tolerance
    assert np.abs(drizzle.out_img / (exact[1] / total) - 1).max() < tolerance
    assert np.abs(drizzle.out_img2[0] / (exact[2] / total**2) - 1).max() < tolerance
    assert drizzle.out_img.dtype == drizzle.out_img2[0].dtype == np.float64
