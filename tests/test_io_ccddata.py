"""`Exposure` from and to CCDData."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.wcs import WCS

from skyloom.errors import InputError
from skyloom.exposure import Exposure, MaskBit
from skyloom.io import from_ccddata, read, to_ccddata

SKY = np.random.default_rng(6).normal(100, 5, (10, 12))


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full_like(SKY, 3.0)),
        VarianceUncertainty(np.full_like(SKY, 9.0)),
        InverseVariance(np.full_like(SKY, 1 / 9)),
        StdDevUncertainty(np.full_like(SKY, 3000.0), unit="mJy"),
    ],
    ids=["std", "var", "ivar", "std in another unit"],
)
def test_uncertainties(uncertainty):
    unit = "Jy" if uncertainty.unit else "adu"
    exposure = from_ccddata(CCDData(SKY, unit=unit, uncertainty=uncertainty))
    np.testing.assert_allclose(exposure.variance, 9, rtol=1e-12)
    assert exposure.unit == unit


def test_unknown_uncertainty_is_refused():
    with pytest.raises(InputError, match="unknown"):
        from_ccddata(CCDData(SKY, unit="adu", uncertainty=UnknownUncertainty(np.ones_like(SKY))))


def test_header_mask_and_wcs_come_along():
    meta = {"GAIN": 2.5, "RDNOISE": 4.0, "EXPTIME": 30.0, "SATURATE": 200.0, "FILENAME": "x.fits"}
    ccd = CCDData(SKY, unit="adu", mask=SKY > 105, wcs=WCS(naxis=2), meta=meta)
    exposure = read(ccd)
    values = (exposure.gain, exposure.read_noise, exposure.exptime, exposure.saturation, exposure.name)
    assert values == (2.5, 4.0, 30.0, 200.0, "x.fits")
    np.testing.assert_array_equal(exposure.usable, SKY <= 105)
    assert exposure.wcs is ccd.wcs
    assert read(ccd, mask=False, gain=3.0).usable.all()
    assert read(CCDData(SKY, unit="electron", meta={"GAIN": 2.5})).gain == 1.0
    assert read(NDData(SKY)).unit == "adu"


def test_there_and_back():
    mask = np.where(SKY > 105, int(MaskBit.SATURATED), 0)
    exposure = Exposure(SKY, np.abs(SKY), mask, gain=2.0, read_noise=3.0, exptime=5.0, zeropoint=25.0, saturation=1e5)
    ccd = to_ccddata(exposure)
    np.testing.assert_array_equal(ccd.mask, ~exposure.usable)
    np.testing.assert_array_equal(ccd.flags, exposure.mask)
    again = from_ccddata(ccd)
    np.testing.assert_array_equal(again.data, exposure.data)
    np.testing.assert_array_equal(again.variance, exposure.variance)
    np.testing.assert_array_equal(again.usable, exposure.usable)
    for field in ("gain", "read_noise", "exptime", "zeropoint", "saturation", "unit"):
        assert getattr(again, field) == getattr(exposure, field), field
    ccd.data[:] = 0
    assert exposure.data.max() > 0  # the copy is a copy


@pytest.mark.parametrize("unit", ["electron", "adu", "Jy", "MJy / sr"])
def test_units(unit):
    exposure = from_ccddata(CCDData(SKY, unit=unit))
    assert to_ccddata(exposure).unit == units.Unit(unit)
