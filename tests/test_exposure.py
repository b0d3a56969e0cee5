"""`Exposure`: finite everywhere, masked where it must be, and never changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from skyloom.errors import InputError, ShapeError, SkyloomError
from skyloom.exposure import UNUSABLE, Exposure, MaskBit

SKY = np.random.default_rng(0).normal(100, 5, (6, 8)).astype(np.float32)


def test_not_a_number_becomes_no_data():
    data, variance = SKY.copy(), np.ones_like(SKY)
    data[0, :3] = [np.nan, np.inf, -np.inf]
    variance[1, :4] = [0, -1, np.nan, np.inf]
    exposure = Exposure(data, variance)
    assert (exposure.mask[0, :3] == MaskBit.NO_DATA).all()
    assert (exposure.mask[1, :4] == MaskBit.BAD).all()
    assert exposure.mask.astype(bool).sum() == 7
    assert (exposure.data[0, :3] == 0).all()
    assert (exposure.variance[1, :4] == 0).all()
    np.testing.assert_array_equal(exposure.usable, exposure.mask == 0)
    assert np.isnan(data[0, 0])


def test_variance_beyond_float32_is_bad():
    exposure = Exposure(SKY, np.full(SKY.shape, 1e60))
    assert not exposure.usable.any()
    assert Exposure(SKY.astype(np.float64), np.full(SKY.shape, 1e60)).usable.all()


def test_saturation_is_inclusive():
    exposure = Exposure(SKY, saturation=float(SKY.max()))
    assert (exposure.mask == MaskBit.SATURATED).sum() == 1
    assert exposure.mask.ravel()[SKY.argmax()] == MaskBit.SATURATED


@pytest.mark.parametrize("bit", list(MaskBit))
def test_which_bits_make_a_pixel_unusable(bit):
    exposure = Exposure(SKY, mask=np.full(SKY.shape, int(bit)))
    assert exposure.usable.any() == (bit in (MaskBit.SPREAD, MaskBit.TEMPLATE))
    assert bool(bit & UNUSABLE) != exposure.usable.any()


def test_planes_are_read_only_and_the_callers_stay_writeable():
    data, mask = SKY.copy(), np.zeros(SKY.shape, np.uint32)
    exposure = Exposure(data, data, mask)
    for plane in (exposure.data, exposure.variance, exposure.mask):
        with pytest.raises(ValueError, match="read-only"):
            plane[0, 0] = 1
    data[0, 0] = mask[0, 0] = 1  # still the caller's
    assert exposure.mask[0, 0] == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        exposure.gain = 2.0


def test_boolean_masks_are_bad_and_masked_arrays_carry_theirs():
    bad = SKY > 105
    for exposure in (Exposure(SKY, mask=bad), Exposure(np.ma.array(SKY, mask=bad))):
        np.testing.assert_array_equal(exposure.mask, np.where(bad, int(MaskBit.BAD), 0))


@pytest.mark.parametrize("name", ["gain", "exptime", "correlation", "read_noise", "saturation", "zeropoint"])
@pytest.mark.parametrize("value", [np.nan, np.inf, "x", [1, 2]])
def test_scalars_that_are_no_numbers(name, value):
    with pytest.raises(InputError, match=name) as caught:
        Exposure(SKY, **{name: value})
    assert name in caught.value.details
    assert isinstance(caught.value, SkyloomError)


@pytest.mark.parametrize("name", ["gain", "exptime", "correlation", "read_noise"])
def test_scalars_that_must_not_be_negative(name):
    with pytest.raises(InputError, match=name):
        Exposure(SKY, **{name: -1.0})
    if name == "read_noise":
        assert Exposure(SKY, read_noise=0).read_noise == 0
    else:
        with pytest.raises(InputError, match=name):
            Exposure(SKY, **{name: 0.0})


@pytest.mark.parametrize("plane", ["variance", "mask"])
def test_planes_of_another_shape(plane):
    with pytest.raises(ShapeError, match=r"\(3, 8\).*\(6, 8\)"):
        Exposure(SKY, **{plane: np.ones((3, 8), np.uint8), "name": "x"})


def test_masks_of_a_wrong_type():
    with pytest.raises(InputError, match="float32"):
        Exposure(SKY, mask=SKY)


def test_replace_checks_again_and_keeps_the_rest():
    exposure = Exposure(SKY, gain=2.0, name="x")
    other = exposure.replace(data=np.where(SKY > 105, np.nan, SKY))
    assert (other.gain, other.name) == (2.0, "x")
    np.testing.assert_array_equal(other.usable, SKY <= 105)
    with pytest.raises(InputError):
        exposure.replace(gain=-1)


def test_it_prints_in_one_line():
    text = repr(Exposure(SKY, SKY, name="a.fits"))
    assert "\n" not in text
    assert "a.fits" in text
    assert "8x6" in text
    assert "data+variance" in text


def test_coverage_has_the_shape_of_the_data():
    kept = Exposure(np.ones((4, 5)), coverage=np.full((4, 5), 0.25))
    assert kept.coverage.dtype == np.float32
    assert kept.replace(gain=2.0).coverage[3, 4] == 0.25
    with pytest.raises(ShapeError, match="coverage"):
        Exposure(np.ones((4, 5)), coverage=np.ones((5, 4)))
