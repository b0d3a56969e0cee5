"""Point spread functions in PSFEx's format: reading, writing, evaluation, conversion."""

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_allclose, assert_array_equal

from skyloom.errors import InputError, ReadError, ShapeError
from skyloom.psf import ArrayPsf, PsfexModel, PsfModel, as_psf, stamp_at
from skyloom.psf.analytic import Profile
from skyloom.psf.fit import pixel_blur


def varying(order=2, shape=(200, 300)):
    rng = np.random.default_rng(1)
    n_terms = (order + 1) * (order + 2) // 2
    basis = rng.normal(0, 1e-4, (n_terms, 17, 17))
    basis -= basis.mean(axis=(1, 2), keepdims=True)
    basis[0] = Profile(3.0).stamp(8)
    return PsfModel(basis, order, shape)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_model_keeps_its_stamps(order, tmp_path):
    model = varying(order)
    psfex = PsfexModel.from_model(model)
    path = psfex.write(tmp_path / "model.psf")
    for other in (
        psfex,
        PsfexModel.read(path),
        PsfexModel.from_dict(psfex.to_dict()),
        as_psf(path),
        as_psf(psfex.to_dict()),
    ):
        for x, y in ((0.0, 0.0), (299.0, 50.0), (120.3, 199.0)):
            # float32 in the file
            assert_allclose(other.stamp(x, y), model.stamp(x, y), rtol=0, atol=2e-7)


@pytest.mark.parametrize("oversampling", [2, 3, 4])
def test_an_oversampled_model_keeps_its_stamps(oversampling, tmp_path):
    rng = np.random.default_rng(2)
    fine = Profile(2.0, 3.0, 0.1).stamp(8, oversampling=oversampling)
    basis = np.stack([fine / fine[::oversampling, ::oversampling].sum(), *(0.01 * rng.normal(size=(2, 1, 1)) * fine)])
    basis[1:] -= basis[1:, ::oversampling, ::oversampling].sum(axis=(1, 2))[:, None, None] * basis[0]
    model = PsfModel(basis, 1, (200, 300), oversampling=oversampling)
    path = PsfexModel.from_model(model).write(tmp_path / "model.psf")
    with fits.open(path) as hdus:
        assert hdus["PSF_DATA"].header["PSF_SAMP"] == 1 / oversampling
        # of the samples PSFEx asks for a sum of some 1
        assert hdus["PSF_DATA"].data["PSF_MASK"][0][0].sum() == pytest.approx(1, abs=0.01)
    again = PsfexModel.read(path)
    assert again.half == model.half
    for x, y, dx, dy in ((0.0, 0.0, 0.0, 0.0), (299.0, 50.0, 0.5, -0.25), (120.3, 199.0, -0.3, 0.41)):
        # float32 in the file
        assert_allclose(again.stamp_at(x, y, dx, dy), model.stamp_at(x, y, dx, dy), rtol=0, atol=1e-6)


def test_files_count_pixels_from_1(tmp_path):
    path = PsfexModel.from_model(varying(1)).write(tmp_path / "model.psf")
    with fits.open(path) as hdus:
        header = hdus["PSF_DATA"].header
        # the middle of 300 x 200 pixels, in FITS
        assert (header["POLZERO1"], header["POLZERO2"]) == (150.5, 100.5)
        assert (header["POLNAME1"], header["POLDEG1"], header["PSFAXIS3"]) == ("X_IMAGE", 1, 3)
        assert hdus["PSF_DATA"].data["PSF_MASK"][0].shape == (3, 17, 17)


@pytest.mark.parametrize("sampling", [0.5, 0.7, 1.0])
def test_supersampled_images_are_interpolated(sampling):
    axis = np.arange(-30, 31) * sampling
    sigma = 1.6
    fine = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    model = PsfexModel(3.7 * fine[None], sampling)
    pixels = np.arange(-model.half, model.half + 1.0)
    for dx, dy in ((0.0, 0.0), (0.3, -0.45)):
        exact = np.exp(-((pixels[:, None] - dy) ** 2 + (pixels - dx) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
        # the error of cubic splines is some (step / sigma)^4 / 100, and a step is up to 0.63 sigma
        assert np.abs(model.stamp_at(0, 0, dx, dy) - exact).max() < 3e-3 * exact.max()


def test_what_serves_as_a_psf():
    stamp = Profile(3.0).stamp(8)
    assert isinstance(as_psf(stamp), ArrayPsf)
    model = varying()
    assert as_psf(model) is model
    assert_array_equal(as_psf(stamp).stamp(3, 4), ArrayPsf(stamp).stamp(0, 0))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: as_psf(3.0), InputError, "float"),
        (lambda: as_psf({"data": np.ones((1, 5, 5))}), InputError, "sampling, degree"),
        (lambda: as_psf(PsfexModel(np.ones((1, 5, 5))).to_dict() | {"sampling": "x"}), InputError, "cannot be used"),
        (lambda: PsfexModel(np.ones((2, 5, 5)), degree=1), ShapeError, r"\(3, height, width\)"),
        (lambda: PsfexModel(np.full((1, 5, 5), np.nan)), InputError, "not finite"),
        (lambda: PsfexModel(np.ones((1, 5, 5)), sampling=0.0), InputError, "sampling 0.0"),
        (lambda: as_psf("nowhere.psf"), ReadError, "nowhere.psf"),
    ],
)
def test_bad_input_is_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_file_of_something_else(tmp_path):
    fits.writeto(tmp_path / "image.fits", np.ones((5, 5)))
    with pytest.raises(ReadError, match=r"no PSF model of PSFEx"):
        PsfexModel.read(tmp_path / "image.fits")


def test_super_sampled_models_are_evaluated_at_the_phase(tmp_path):
    fine = pixel_blur(Profile(1.6).stamp(8, oversampling=4), 4, mode="nearest")
    model = PsfexModel(fine[None], 0.25, fwhm=1.6)
    exact = model.stamp_at(0, 0, 0.5, 0.5)
    for psf in (as_psf(model), as_psf(model.to_dict()), as_psf(model.write(tmp_path / "model.psf"))):
        # float32 in the file
        assert_allclose(stamp_at(psf, 3, 4, 0.5, 0.5), exact, rtol=0, atol=1e-7)
    # one sample a pixel gives the flux of such a star 1 % wrong
    shifted = stamp_at(ArrayPsf(model.stamp(0, 0)), 3, 4, 0.5, 0.5)
    assert abs((shifted * exact).sum() / (shifted**2).sum() - 1) > 0.005
