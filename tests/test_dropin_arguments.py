"""Arguments that `run_hotpants`, `run_zogy` and `run_sfft` share."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from skyloom.errors import InputError, ReadError, ShapeError
from skyloom.subtraction.dropin_arguments import bad_plane, check_gain, error_plane, real_plane, usable_errors


def test_planes_are_read_checked_and_made_native(tmp_path):
    data = np.arange(12, dtype=">i2").reshape(3, 4)
    fits.writeto(tmp_path / "a.fits", data)
    for plane in (data, tmp_path / "a.fits", str(tmp_path / "a.fits"), data.tolist()):
        found = real_plane(plane, "the image")
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, data)
    masked = real_plane(np.ma.masked_greater(data, 5), "the image")
    np.testing.assert_array_equal(np.isnan(masked), data > 5)


@pytest.mark.parametrize(
    ("plane", "error", "match"),
    [
        ("nowhere.fits", ReadError, "The image is 'nowhere.fits', which is no FITS image"),
        (np.zeros((3, 3), complex), InputError, "complex128; real numbers"),
        (None, InputError, "object; real numbers"),
        (np.zeros(3), ShapeError, r"\(3,\); an image"),
        (np.zeros((0, 3)), ShapeError, "an image"),
        (np.zeros((4, 3)), ShapeError, r"\(4, 3\), but \(3, 4\) is needed"),
    ],
)
def test_what_is_no_plane(plane, error, match):
    with pytest.raises(error, match=match):
        real_plane(plane, "the image", (3, 4))


def test_files_without_an_image(tmp_path):
    (tmp_path / "text.fits").write_text("no image at all")
    with pytest.raises(ReadError, match="no FITS image"):
        real_plane(tmp_path / "text.fits", "the mask")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    with pytest.raises(ReadError, match="no FITS image"):
        real_plane(tmp_path / "empty.fits", "the mask")


def test_masks_and_errors():
    assert not bad_plane(None, (2, 3), "mask").any()
    np.testing.assert_array_equal(bad_plane([[0, 2, 0], [np.nan, 0, 1]], (2, 3), "mask"), [[0, 1, 0], [1, 0, 1]])
    for no_plane in (None, False, True):
        assert error_plane(no_plane, (2, 3), "err") is None
    np.testing.assert_array_equal(error_plane(5, (2, 3), "err"), np.full((2, 3), 5.0))


@pytest.mark.parametrize("gain", [0, -1.0, np.nan, np.inf, "2", [1.0]])
def test_gains_are_finite_numbers_above_0(gain):
    with pytest.raises(InputError, match=r"image_gain is .*; a finite number above 0"):
        check_gain(gain, "image_gain")


def test_gains_may_be_any_number_or_left_out():
    for gain in (None, 1, 2.5, np.float32(3), np.int16(4)):
        check_gain(gain, "image_gain")


def test_errors_that_images_can_have():
    err = np.array([1.0, 1e-20, 0.0, -1.0, np.nan, np.inf, -np.inf, 3e38])
    np.testing.assert_array_equal(usable_errors(err), [True, True] + [False] * 6)
    np.testing.assert_array_equal(usable_errors(err, zero=True), [True] * 3 + [False] * 5)
