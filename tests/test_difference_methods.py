"""`difference` by all methods: one result, the same candidates, the kind of each, storage, the choice of a method."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import skyloom
from simulate import TEMPLATE, simulate_pair
from skyloom.cli import main
from skyloom.errors import InputError, ReadError
from skyloom.exposure import Exposure, MaskBit
from skyloom.pipeline import DifferenceOptions
from skyloom.pipeline.choose import choose_method, compare, ellipticity
from skyloom.pipeline.store import read_difference
from skyloom.psf import ArrayPsf, estimate_psf
from skyloom.psf.analytic import Profile
from skyloom.registration import detect_sources
from skyloom.subtraction import AlardLuptonOptions, SfftOptions, ZogyOptions


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(21, 320, n_stars=80, n_transients=6, snr=(15.0, 60.0), shift=(3.3, -2.6))


@pytest.fixture(scope="module")
def result(pair):
    return skyloom.difference(pair.science, pair.template, method="zogy")


@pytest.fixture(scope="module")
def candidates(result):
    return skyloom.detect(result)


def matches(table, truth, radius=2.0):
    """Return the row of the table at each true source, -1 where there is none."""
    if not len(table):
        return np.full(len(truth), -1)
    distance = np.hypot(table["x"][None, :] - truth["x"][:, None], table["y"][None, :] - truth["y"][:, None])
    return np.where(distance.min(axis=1) < radius, distance.argmin(axis=1), -1)


def test_a_proper_difference_has_what_every_difference_has(result, pair):
    assert result.method == "zogy"
    assert result.reason == "as asked for"
    assert result.kernel is None
    assert result.subtraction.convolved == "both"
    assert result.diagnostics["kernel_sum"] == pytest.approx(1 / pair.flux_ratio, rel=0.015)  # 60 stars, PSFs measured
    # 1e5 pixels, and a noise model from 60 000 sky pixels: 3 %
    assert result.diagnostics["noise_std"] == pytest.approx(1.0, abs=0.04)
    usable = result.subtraction.usable
    for plane in (result.image, result.variance, result.matched):
        assert np.isfinite(plane).all()
        assert not plane[~usable].any()
    assert (result.variance[usable] > 0).all()
    parts = result.subtraction.variance_science + result.subtraction.variance_template
    np.testing.assert_array_equal(parts, result.variance)
    np.testing.assert_allclose((result.image + result.matched)[usable], result.science.data[usable], rtol=1e-5)
    np.testing.assert_array_equal(result.subtraction.noise_kernel(10, 10), [[1.0]])


def test_transients_of_a_proper_difference_are_found(candidates, pair):
    rows = matches(candidates, pair.transients)
    assert (rows >= 0).all()
    found = candidates[rows]
    assert found["real"].mean() > 0.8
    pulls = (found["flux"] - pair.transients["flux"]) / found["flux_err"]
    assert np.abs(pulls).max() < 4.5
    others = candidates[~np.isin(np.arange(len(candidates)), rows)]
    assert others["real"].sum() <= 1


def test_errors_of_candidates_are_those_of_the_score(candidates):
    # the fit at the exact position finds up to 10 % more signal than the score on the nearest pixel;
    # what wings of bright stars leave, which is no point source, is not real
    real = candidates[candidates["real"]]
    assert len(real) >= 5
    np.testing.assert_allclose(real["snr"], real["significance"], rtol=0.15)


def test_a_proper_difference_is_stored_whole(result, candidates, tmp_path):
    path = result.write(tmp_path / "d.fits")
    stored = read_difference(path)
    assert (stored.method, stored.reason, stored.kernel) == ("zogy", "as asked for", None)
    again = skyloom.detect(stored)
    assert len(again) == len(candidates)
    np.testing.assert_allclose(again["snr"], candidates["snr"], rtol=1e-4)  # float32 planes
    for name in ("flags", "kind"):
        np.testing.assert_array_equal(again[name], candidates[name])
    with fits.open(path) as hdus:
        assert "KERNEL" not in hdus
        hdus["COVERAGE"].name = "SOMETHING"
        hdus.writeto(tmp_path / "broken.fits", checksum=True)
    with pytest.raises(ReadError, match="COVERAGE"):
        skyloom.detect(tmp_path / "broken.fits")


def scene(moved=(), appeared=(), changed=(), seed=5):
    """Return science image and template of 256 x 256 pixels with a grid of stars, and what differs."""
    rng = np.random.default_rng(seed)
    psfs = [ArrayPsf(Profile(fwhm).stamp(15)) for fwhm in (4.0, 3.4)]
    images = [rng.normal(200.0, 10.0, (256, 256)) for _ in psfs]

    def add(image, psf, x, y, flux):
        ix, iy = round(x), round(y)
        image[iy - 15 : iy + 16, ix - 15 : ix + 16] += flux * psf.stamp_at(0, 0, x - ix, y - iy)

    for image, psf in zip(images, psfs, strict=True):
        for x in range(24, 240, 36):
            for y in range(24, 240, 36):
                add(image, psf, x, y, 2e4 if (x, y) not in changed or image is images[0] else 1.5e4)
    for x, y in moved:
        add(images[0], psfs[0], x + 0.7, y, 1e4)
        add(images[1], psfs[1], x - 0.7, y, 1e4)
    for x, y in appeared:
        add(images[0], psfs[0], x, y, 2e3)
    return [Exposure(image, np.full(image.shape, 100.0)) for image in images]


def test_candidates_are_transient_variable_or_moving():
    science, template = scene(moved=[(43, 43)], appeared=[(115, 115)], changed=[(168, 168)])
    options = DifferenceOptions(method="zogy", align="none")
    table = skyloom.detect(skyloom.difference(science, template, options=options))
    for (x, y), kind in (((43, 43), "moving"), ((115, 115), "transient"), ((168, 168), "variable")):
        near = np.hypot(table["x"] - x, table["y"] - y) < 4
        assert near.any()
        assert (table["kind"][near] == kind).all()
    assert len(table) <= 5  # both sides of the one that moved, and one by chance


@pytest.mark.parametrize("method", ["auto", "zogy"])
def test_stars_at_the_border_of_the_overlap_do_no_harm(method):
    """Half of the template is missing: circles and annuli around stars there have no pixel in it."""
    science, template = scene(appeared=[(79, 79)], seed=8)
    mask = np.zeros(template.shape, np.uint32)
    mask[:, 128:] = MaskBit.NO_DATA
    options = DifferenceOptions(method=method, align="none")
    result = skyloom.difference(science, template.replace(mask=mask), options=options)
    table = skyloom.detect(result)
    assert np.hypot(table["x"] - 79, table["y"] - 79).min() < 1
    assert (table["x"] < 128).all()


def test_single_hot_pixels_of_either_image_are_too_sharp(result):
    """A pixel that leaves 15 sigma in the difference looks like the filters, not like a star."""
    psf = result.psf
    for response in psf.pixel_responses(160, 160):
        # the filters are narrower than the PSF of the difference
        half_light = [np.sum(np.abs(plane) > 0.5 * plane.max()) for plane in (response, psf.stamp(160, 160))]
        assert half_light[0] < half_light[1]
    science, template = scene(seed=6)
    hot = np.array(science.data)
    hot[115, 115] += 400
    options = DifferenceOptions(method="zogy", align="none")
    table = skyloom.detect(skyloom.difference(science.replace(data=hot), template, options=options))
    near = np.hypot(table["x"] - 115, table["y"] - 115) < 2
    assert near.sum() == 1
    assert "too_sharp" in table["flag_text"][near][0]


def test_several_frames_on_both_sides_are_properly_coadded():
    deep = simulate_pair(22, 256, n_stars=70, n_transients=3, snr=(20.0, 40.0))
    rng = np.random.default_rng(23)

    def frames(exposure, model, extra):
        variance = exposure.variance + extra**2
        return [exposure.replace(data=rng.normal(model, np.sqrt(variance)), variance=variance) for _ in range(3)]

    sciences = frames(deep.science, deep.science_model, 15.0)
    templates = frames(deep.template, deep.template_model, 10.0)
    options = DifferenceOptions(method="zogy", align="none")
    one = skyloom.difference(sciences[0], templates[0], options=options)
    three = skyloom.difference(sciences, templates, options=options)
    assert three.science.psf is not None  # the proper co-add knows its PSF
    assert three.template.psf is not None
    sky = [float(np.median(d.score.flux_variance[d.score.valid])) for d in (one, three)]
    assert sky[1] == pytest.approx(sky[0] / 3, rel=0.1)  # PSFs and flux ratio are measured anew
    assert three.diagnostics["noise_std"] == pytest.approx(1.0, abs=0.06)
    table = skyloom.detect(three)
    assert (matches(table, deep.transients) >= 0).all()


def test_options_tell_the_method():
    assert DifferenceOptions().chosen is None
    for kind, method in ((AlardLuptonOptions, "alard-lupton"), (SfftOptions, "sfft"), (ZogyOptions, "zogy")):
        assert DifferenceOptions(subtraction=kind()).chosen == method
        assert isinstance(DifferenceOptions(method=method).options_of(method), kind)
    with pytest.raises(InputError, match="SfftOptions"):
        DifferenceOptions(method="sfft", subtraction=ZogyOptions())
    with pytest.raises(InputError, match="dict"):
        DifferenceOptions(subtraction={})


def test_command_line(pair, tmp_path, capsys):
    for name in ("science", "template"):
        skyloom.write_exposure(getattr(pair, name), tmp_path / f"{name}.fits")
    files = [str(tmp_path / f"{name}.fits") for name in ("science", "template")]
    assert main(["difference", *files, "-o", str(tmp_path), "--method", "zogy"]) == 0
    printed = capsys.readouterr().out
    assert "zogy: as asked for" in printed
    assert "both convolved" in printed
    assert (tmp_path / "science.report.html").stat().st_size > 10_000
    arguments = ["difference", *files, "-o", str(tmp_path / "2"), "--method", "zogy", "--convolve", "science"]
    assert main(arguments) != 0
    assert "--convolve" in capsys.readouterr().err


def chosen(science, template):
    """Return the method that the images ask for, and why, from what `difference` measures of them."""
    sources = detect_sources(science)
    return choose_method(DifferenceOptions(), science, template, estimate_psf(science, sources), sources)


def test_the_images_choose_the_method():
    shallow = dataclasses.replace(TEMPLATE, gain=0.5, sky=300.0, read_noise=6.0)
    options = {"n_stars": 80, "n_transients": 0}
    deep = simulate_pair(24, 320, **options)
    method, reason = chosen(deep.science, deep.template)
    assert (method, "deep template" in reason) == ("alard-lupton", True)
    method, reason = chosen(deep.science, deep.science.replace(data=deep.science.data * np.float32(0.5) + 7))
    assert (method, "share their noise" in reason) == ("alard-lupton", True)
    like = simulate_pair(24, 320, template=dataclasses.replace(shallow, gain=1.5, fwhm=4.1), **options)
    method, reason = chosen(like.science, like.template)
    assert (method, "like seeing" in reason) == ("zogy", True)
    mask = np.array(like.science.mask)
    mask[100:104, 100:104] |= np.uint32(MaskBit.SATURATED)
    method, reason = chosen(like.science.replace(mask=mask), like.template)
    assert (method, "saturated" in reason) == ("alard-lupton", True)
    noisy = simulate_pair(24, 320, template=shallow, **options)
    method, reason = chosen(noisy.science, noisy.template)
    assert (method, "noisier" in reason) == ("zogy", True)
    trailed = simulate_pair(24, 320, template=dataclasses.replace(TEMPLATE, shear=(0.3, -0.1)), **options)
    method, reason = chosen(trailed.science, trailed.template)
    assert (method, "elongation" in reason) == ("zogy", True)
    few = simulate_pair(24, 256, n_stars=8, n_transients=0)
    method, reason = chosen(few.science, few.template)
    assert (method, "good stars" in reason) == ("sfft", True)
    crowded = simulate_pair(24, 256, n_stars=400, n_transients=0)
    method, reason = chosen(crowded.science, crowded.template)
    assert (method, "crowded" in reason) == ("alard-lupton", True)
    assert choose_method(DifferenceOptions(method="sfft"), few.science, few.template, None, None) == (
        "sfft",
        "as asked for",
    )


@pytest.mark.parametrize(("ratio", "angle"), [(1.0, 0.0), (1.4, 0.0), (2.0, 0.5), (1.7, 2.2)])
def test_ellipticity_of_gaussian_stars(ratio, angle):
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:200, :210].astype(float)
    data = rng.normal(100.0, 1.0, x.shape)
    sources = Table({"x": rng.uniform(-5, 215, 30), "y": rng.uniform(-5, 205, 30), "flux": np.full(30, 1e4)})
    for star in sources:
        along = (x - star["x"]) * np.cos(angle) + (y - star["y"]) * np.sin(angle)
        across = (y - star["y"]) * np.cos(angle) - (x - star["x"]) * np.sin(angle)
        data += 300 * np.exp(-(along**2 / ratio**2 + across**2) / (2 * 1.6**2))
    found = ellipticity(Exposure(data, np.ones(data.shape)), sources, 3.8)
    e = (ratio**2 - 1) / (ratio**2 + 1)
    # the median of 25 stars, some of which touch
    np.testing.assert_allclose(found, [e * np.cos(2 * angle), e * np.sin(2 * angle)], atol=0.03)
    bad = Exposure(data, np.ones(data.shape), np.full(data.shape, MaskBit.BAD, np.uint32))
    assert not ellipticity(bad.replace(mask=np.where(x + y < 1, 0, bad.mask)), sources, 3.8).any()


def test_widths_and_noise_are_compared_on_one_flux_scale():
    pair = simulate_pair(25, 320, n_stars=80, n_transients=0, template=dataclasses.replace(TEMPLATE, scale=0.4))
    width, noise = compare(pair.science, pair.template, detect_sources(pair.science), 4.3)
    # FWHM 4.2 and 3.0; pixels, neighbours and the common aperture bring half-light radii up to a tenth nearer together
    assert 3.0 / 4.2 - 0.02 < width < 3.0 / 4.2 + 0.1
    sigmas = [np.sqrt(np.median(image.variance)) for image in (pair.science, pair.template)]
    assert noise == pytest.approx(sigmas[1] / sigmas[0] / pair.flux_ratio, rel=0.05)


def test_why_a_method_was_taken_is_told():
    science, template = scene(seed=7)
    result = skyloom.difference(science, template, options=DifferenceOptions(align="none"))
    # 36 stars, FWHM 4.0 and 3.4, noise 1: like seeing
    assert result.method == "zogy"
    assert "like seeing" in result.reason
    assert result.diagnostics["method"] == "zogy"


def test_a_decorrelated_difference_has_its_own_psf_and_is_stored_with_its_score(pair, tmp_path):
    options = DifferenceOptions(subtraction=AlardLuptonOptions(decorrelate=True))
    result = skyloom.difference(pair.science, pair.template, options=options)
    assert result.psf is result.score.psf
    table = skyloom.detect(result)
    rows = matches(table, pair.transients)
    assert (rows >= 0).all()
    pulls = (table["flux"][rows] - pair.transients["flux"]) / table["flux_err"][rows]
    assert np.abs(pulls).max() < 4.5
    stored = read_difference(result.write(tmp_path / "d.fits"))
    assert stored.kernel is None  # the noise is white: the kernel tells nothing more of it
    again = skyloom.detect(stored)
    assert len(again) == len(table)
    # float32 planes; the PSF is sampled at 25 places
    np.testing.assert_allclose(again["snr"], table["snr"], rtol=2e-3)
