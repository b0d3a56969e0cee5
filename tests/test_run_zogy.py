"""`run_zogy`: results, masks, noise maps and errors of the drop-in."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from simulate import far_from_sources, simulate_pair
from skyloom.errors import InputError, NoUsableDataError, ShapeError, SkyloomWarning, TooFewSourcesError
from skyloom.psf import PsfexModel, as_psf
from skyloom.psf.analytic import Profile
from skyloom.subtraction import run_zogy


def moffat(fwhm, half=12):
    return Profile(fwhm).stamp(half)


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(11, 384, n_transients=12, snr=(12, 40))


def test_run_zogy_returns_what_it_is_asked_for(pair):
    data = pair.science.data.astype(">f4"), pair.template.data.astype(np.float64)
    copies = [np.array(plane) for plane in data]
    errors = [np.sqrt(np.asarray(image.variance, float)) for image in (pair.science, pair.template)]
    kept = [np.array(error) for error in errors]
    psfs = {
        "image_psf": pair.science_psf.stamp(192, 192),
        "template_psf": PsfexModel(pair.template_psf.stamp(192, 192)[None]).to_dict(),
    }
    result = run_zogy(
        *data,
        err=errors[0],
        template_err=errors[1],
        **psfs,
        image_gain=1.5,
        template_gain=12,
        get_psf=True,
        get_Fpsf=True,
    )
    assert [plane.shape for plane in result] == [(384, 384), (384, 384), (41, 41), (384, 384), (384, 384)] or len(
        result
    ) == 5
    assert all(plane.dtype == np.float64 for plane in result)
    d, score, _, flux, error = result
    far = far_from_sources(pair)
    assert abs(score[far].std() - 1) < 0.06
    assert_allclose(score[far], (flux / error)[far], rtol=1e-5)
    assert len(run_zogy(*data, **psfs)) == 2
    assert abs(d[far].mean()) < 1
    for plane, copy in zip((*data, *errors), (*copies, *kept), strict=True):
        assert_array_equal(plane, copy)


def test_masks_of_run_zogy_count(pair):
    mask = np.zeros((384, 384), bool)
    mask[100:110, 200:220] = True
    data = np.where(mask, 1e5, pair.science.data)
    d, score, flux, error = run_zogy(
        data, pair.template.data, mask=mask, image_gain=1.5, template_gain=12, get_Fpsf=True,
        image_psf=as_psf(pair.science_psf), template_psf=as_psf(pair.template_psf),
    )  # fmt: skip
    assert not d[mask].any()
    assert not score[mask].any()
    assert not flux[mask].any()
    assert np.isinf(error[mask]).all()
    assert np.isfinite(error[~mask]).mean() > 0.99
    around = np.zeros_like(mask)
    around[85:125, 185:235] = True
    assert np.abs(score[around & far_from_sources(pair)]).max() < 6


@pytest.mark.parametrize("error", [np.inf, 1e10, np.nan, 0.0])
def test_errors_that_no_pixel_has_mask_it(error):
    rng = np.random.default_rng(19)
    n, r = rng.normal(100, 5, (2, 128, 128))
    err = np.full(n.shape, 5.0)
    options = {"scale": 1.0, "fit_scale": False, "fit_shift": False, "dx": 0, "dy": 0, "image_psf": moffat(3.0),
               "template_psf": moffat(3.0)}  # fmt: skip
    mask = np.zeros(n.shape, bool)
    mask[40, 50] = True
    masked = run_zogy(n, r, err=err, template_err=err, mask=mask, get_Fpsf=True, **options)
    with_error = run_zogy(n, r, err=np.where(mask, error, err), template_err=err, get_Fpsf=True, **options)
    assert (masked[1] != 0).sum() == mask.size - 1
    for plane, expected in zip(with_error, masked, strict=True):
        assert_array_equal(plane, expected)


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_units_do_not_matter(unit):
    rng = np.random.default_rng(20)
    n, r = rng.normal(100, 5, (2, 96, 96))
    psf = moffat(3.0)
    options = {"scale": 1.0, "fit_scale": False, "fit_shift": False, "dx": 0, "dy": 0, "image_psf": psf,
               "template_psf": psf}  # fmt: skip
    err = np.full(n.shape, 5.0)
    plain = run_zogy(n, r, err=err, template_err=err, **options)[1]
    scaled = run_zogy(n * unit, r * unit, err=err * unit, template_err=err * unit, **options)[1]
    assert_allclose(scaled, plain, rtol=0, atol=1e-3)  # float32 and float64


def test_without_stars_the_scale_must_be_given():
    rng = np.random.default_rng(16)
    noise = rng.normal(100, 5, (2, 128, 128))
    psf = moffat(3.0)
    with pytest.raises(TooFewSourcesError, match="science image has no source"):
        run_zogy(*noise, image_psf=psf, template_psf=psf)
    with pytest.warns(SkyloomWarning, match=r"scale that was given, 1.0"):
        _, score = run_zogy(*noise, image_psf=psf, template_psf=psf, scale=1.0)
    assert abs(score.std() - 1) < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_zogy(*noise, image_psf=psf, template_psf=psf, scale=1.0, fit_scale=False, fit_shift=False, dx=0, dy=0)


BLANK = np.random.default_rng(17).normal(100, 5, (64, 64))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"template": BLANK[:50]}, ShapeError, "one grid"),
        ({"mask": np.ones((64, 64), bool)}, NoUsableDataError, "image are masked"),
        ({"template": np.full((64, 64), np.nan)}, NoUsableDataError, "template are masked"),
        ({"mask": np.zeros((3, 3))}, ShapeError, "mask of the image"),
        ({"err": np.ones((3, 3))}, ShapeError, "noise of the image"),
        ({"err": np.zeros((64, 64))}, NoUsableDataError, "noise of the image"),
        ({"image_gain": -1.0}, InputError, "image_gain"),
        ({"dx": -1.0}, InputError, "dx"),
        ({"nx": 0}, InputError, "nx"),
        ({"scale": 0.0}, InputError, "flux_ratio"),
        ({"psf_clean": 2.0}, InputError, "psf_clean"),
        ({"image_psf": {"data": 1}}, InputError, "sampling"),
        ({"image_psf": "nowhere.psf"}, InputError, "nowhere"),
        ({"image_psf": 3.0}, InputError, "float"),
        ({"orde": 3}, InputError, "orde"),
        ({"image": BLANK * 0 + 7, "template": BLANK * 0 + 7}, NoUsableDataError, "noise"),
    ],
    ids=str,
)
def test_bad_input_is_named(arguments, error, text):
    psf = moffat(3.0)
    known = {"image": BLANK, "template": BLANK, "image_psf": psf, "template_psf": psf, "scale": 1.0}
    with pytest.raises(error, match=text):
        run_zogy(**(known | arguments))


@pytest.mark.parametrize("size", [(24, 24), (40, 33)], ids=str)
def test_tiny_images(size):
    rng = np.random.default_rng(18)
    n, r = rng.normal(100, 5, (2, *size))
    psf = moffat(3.0, 6)
    y, x = size[0] // 2, size[1] // 2
    n[y - 6 : y + 7, x - 6 : x + 7] += 1000 * psf
    options = {"scale": 1.0, "fit_scale": False, "fit_shift": False, "dx": 0, "dy": 0}
    d, score = run_zogy(
        n, r, err=np.full(size, 5.0), template_err=np.full(size, 5.0), image_psf=psf, template_psf=psf, **options
    )
    assert d.shape == score.shape == size
    assert np.unravel_index(score.argmax(), size) == (y, x)
