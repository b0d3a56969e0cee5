import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from simulate import simulate_pair
from skyloom.errors import InputError, NoUsableDataError, ShapeError, TooFewStampsError
from skyloom.exposure import Exposure, MaskBit
from skyloom.subtraction import AlardLuptonOptions, subtract
from skyloom.subtraction.alard_lupton import _planes, _seeing
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.stamps import find_sources


@cache
def pair(seed=1, size=512, **options):
    return simulate_pair(seed, size, **options)


@cache
def default_subtraction():
    return subtract(pair().science, pair().template)


def discs(shape, table, radius, flux=0.0):
    """True within `radius` of the sources brighter than `flux`."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, bool)
    for row in table[table["flux"] > flux]:
        inside |= (x - row["x"]) ** 2 + (y - row["y"]) ** 2 <= radius**2
    return inside


def scatter(result, where):
    where = where & result.usable
    z = result.image[where] / np.sqrt(result.variance[where])
    return float(z.mean()), float(z.std()), int(where.sum())


def test_difference_scatters_as_its_variance_says():
    result, truth = default_subtraction(), pair()
    quiet = ~discs(result.image.shape, truth.transients, 15)
    near = discs(result.image.shape, truth.stars, 3, 2e4)
    mean, std, n = scatter(result, quiet & ~discs(result.image.shape, truth.stars, 20))
    # the relative error of a scatter of n independent pixels is 1 / sqrt(2 n); 4 times that, and 1 % for the
    # systematics
    assert abs(std - 1) < 0.01 + 4 / np.sqrt(2 * n)
    assert abs(mean) < 0.05
    _, std, n = scatter(result, quiet & near)
    assert std < 1.08 + 2 / np.sqrt(2 * n)


def test_transients_keep_their_flux():
    result, truth = default_subtraction(), pair()
    pulls = []
    for source in truth.transients:
        x, y, half = round(source["x"]), round(source["y"]), 8
        box = np.s_[y - half : y + half + 1, x - half : x + half + 1]
        psf = truth.science_psf.profile(source["x"], source["y"], source["x"] - x, source["y"] - y, half)
        flux = (psf * result.image[box]).sum() / (psf**2).sum()
        error = np.sqrt((psf**2 * result.variance[box]).sum()) / (psf**2).sum()
        # 1 % of systematics on top of the noise
        pulls.append((flux - source["flux"]) / np.hypot(error, 0.01 * source["flux"]))
    assert len(pulls) == 5
    assert np.max(np.abs(pulls)) < 4


def test_kernel_sum_is_the_flux_ratio():
    kernel = default_subtraction().kernel
    assert kernel.sum_at(100.0, 400.0) * pair().flux_ratio == pytest.approx(1, abs=0.01)
    assert kernel.image_at(100.0, 400.0).sum() == pytest.approx(kernel.sum_at(100.0, 400.0), rel=1e-9)


@pytest.mark.parametrize("unit", [2.0**-83, 2.0**83])
def test_the_unit_of_the_images_does_not_matter(unit):
    """Values of 1e-23 or 1e27: their squares are no numbers in single precision."""
    truth = simulate_pair(5, 256, n_stars=60, n_galaxies=2, n_transients=2)
    ordinary = subtract(truth.science, truth.template, AlardLuptonOptions(spatial_order=1))
    science, template = (
        one.replace(
            data=one.data.astype(np.float64) * unit,
            variance=one.variance.astype(np.float64) * unit**2,
            gain=one.gain / unit,
        )
        for one in (truth.science, truth.template)
    )
    result = subtract(science, template, AlardLuptonOptions(spatial_order=1))
    np.testing.assert_array_equal(result.mask, ordinary.mask)
    # rounding of float32, which the images were in before, at the values of the brightest stars
    atol = 1e-6 * np.abs(truth.science.data).max()
    for name in ("image", "matched", "background"):
        np.testing.assert_allclose(getattr(result, name) / unit, getattr(ordinary, name), rtol=1e-4, atol=atol)
    for name in ("variance", "variance_science", "variance_template"):
        np.testing.assert_allclose(getattr(result, name) / unit**2, getattr(ordinary, name), rtol=1e-4, atol=1e-4)
    assert result.statistics["noise_ratio"] == pytest.approx(ordinary.statistics["noise_ratio"], rel=1e-3)
    with pytest.raises(InputError, match="values of the template are of the order of"):
        subtract(truth.science, template)


def test_flux_ratio_varies_where_one_image_is_vignetted():
    truth = pair()
    corners = np.array([[20.0, 20.0], [490.0, 490.0], [256.0, 256.0]]).T
    np.testing.assert_allclose(default_subtraction().kernel.sum_at(*corners), 1 / truth.flux_ratio, rtol=0.01)
    y, x = np.mgrid[:512, :512]
    shade = 1 - ((x - 256) ** 2 + (y - 256) ** 2) / (2 * 256**2) * 0.35  # 0.65 in the corners
    data = (truth.science.data * shade).astype(np.float32)
    science = truth.science.replace(data=data, variance=truth.science.variance * (shade**2).astype(np.float32))
    result = subtract(science, truth.template)
    # a polynomial of second order is among the kernels; corners have no stamps beyond them
    expected = shade[corners[1].astype(int), corners[0].astype(int)] / truth.flux_ratio
    np.testing.assert_allclose(result.kernel.sum_at(*corners), expected, rtol=0.03)
    constant = subtract(science, truth.template, AlardLuptonOptions(vary_kernel_sum=False))
    assert np.ptp(constant.kernel.sum_at(*corners)) < 1e-9
    # what a constant ratio leaves is taken for scatter of the stars' colours, which costs depth
    assert constant.statistics["flux_scatter"] > 0.02
    assert result.statistics["flux_scatter"] < 0.01


def test_bookkeeping():
    result, truth = default_subtraction(), pair()
    assert result.convolved == "template"
    np.testing.assert_array_equal(result.variance, result.variance_science + result.variance_template)
    ok = result.usable
    for plane in (result.image, result.variance, result.matched, result.background):
        assert plane.dtype == truth.science.data.dtype
        assert plane.shape == truth.science.shape
        assert np.isfinite(plane).all()
    assert (result.image[~ok] == 0).all()
    assert (result.variance[ok] > 0).all()
    np.testing.assert_allclose((truth.science.data - result.matched)[ok], result.image[ok], atol=0.02)
    assert result.stamps["used"].sum() == result.statistics["n_stamps"] >= 10


def test_wider_template_means_that_the_science_image_is_convolved():
    swapped = subtract(pair().template, pair().science)
    assert swapped.convolved == "science"
    assert swapped.statistics["science_fwhm"] < swapped.statistics["template_fwhm"]
    where = ~discs(swapped.image.shape, pair().stars, 20) & ~discs(swapped.image.shape, pair().transients, 15)
    _, std, n = scatter(swapped, where)
    assert abs(std - 1) < 0.01 + 4 / np.sqrt(2 * n)
    # on the flux scale of the science image: a transient of the template is negative, times the flux ratio
    bright = pair().transients[np.argmax(pair().transients["flux"])]
    ratio = default_subtraction().image[round(bright["y"]), round(bright["x"])] * pair().flux_ratio
    assert swapped.image[round(bright["y"]), round(bright["x"])] == pytest.approx(-ratio, rel=0.1)
    assert swapped.noise_kernel(200, 200).sum() == pytest.approx(1)
    # what was subtracted is the template, on the scale and with the sky of the science image
    scale = swapped.kernel.sum_at(200.0, 200.0)
    np.testing.assert_allclose(swapped.matched, pair().science.data / scale + swapped.background, rtol=1e-5)
    assert np.median(swapped.matched) == pytest.approx(np.median(pair().template.data), rel=0.01)


@pytest.mark.parametrize("convolve", ["template", "science"])
def test_background_is_what_the_model_says(convolve):
    """S = K * T + background with the images as they are, or T = K * S + b, whatever their skies."""
    science, template = pair().science, pair().template
    result = subtract(science, template, AlardLuptonOptions(convolve=convolve, spatial_order=1))
    if convolve == "template":
        matched = result.kernel.convolve(template.data.astype(np.float64)).data + result.background
        expected = science.data - matched
    else:
        total = result.kernel.sum_at(np.arange(512)[None, :], np.arange(512)[:, None])
        matched = template.data / total + result.background
        expected = result.kernel.convolve(science.data.astype(np.float64)).data / total - matched
    ok = np.s_[20:-20, 20:-20]  # where the kernel stays inside
    assert result.usable[ok].all()
    noise = np.sqrt(np.median(result.variance[ok]))
    # rounding of float32 at the brightest stars (1e5 ADU), through some hundred products
    np.testing.assert_allclose(result.image[ok], expected[ok], atol=0.02 * noise)
    np.testing.assert_allclose(result.matched[ok], matched[ok], atol=0.02 * noise)
    # the sky that the simulation added to both, less its gradient
    scale = result.kernel.sum_at(255.5, 255.5)
    skies = np.median(science.data), np.median(template.data)
    level = skies[0] - scale * skies[1] if convolve == "template" else skies[0] - skies[1] / scale
    assert np.median(result.background) == pytest.approx(level, abs=0.2 * float(noise))


@pytest.mark.parametrize("fwhm", [9.0, 15.0])
def test_seeing_of_wide_stars(fwhm):
    """The outer part of the box, where the local sky is measured, grows with the stars."""
    y, x = np.mgrid[:400, :400]
    rng = np.random.default_rng(5)
    data = rng.normal(0, 1, (400, 400)) + 100.0
    for cx, cy in [(80 + 80 * i, 80 + 80 * j) for i in range(4) for j in range(4)]:
        data += 1000 * np.exp(-4 * np.log(2) * ((x - cx) ** 2 + (y - cy) ** 2) / fwhm**2)
    planes = _planes(Exposure(data.astype(np.float32), np.ones(data.shape, np.float32)))
    found = _seeing({"science": planes, "template": planes}, find_sources(planes), None, 5.0)
    # 1 %: what the light of the stars in the outer part takes off; it is 2 % and 24 % in boxes of 25 pixels
    assert found == {"science": pytest.approx(fwhm, rel=0.01), "template": 5.0}


def test_chi2_does_not_depend_on_the_correlation_of_the_template():
    """Noise smoothed by resampling passes a kernel more easily than white noise of that variance."""
    rng = np.random.default_rng(8)
    quiet = simulate_pair(9, 384, n_stars=80, n_galaxies=0, n_transients=0, noise=False)
    found = {}
    for correlation in (1.0, 4.0):
        smoothing = smoothing_kernel(correlation)
        noise = ndimage.convolve(rng.normal(0, 24, quiet.template.shape), smoothing)
        template = Exposure(
            (quiet.template.data + noise).astype(np.float32),
            np.full(quiet.template.shape, 576 * (smoothing**2).sum(), np.float32),
            correlation=correlation,
        )
        noisy = quiet.science.data + rng.normal(0, 8, quiet.science.shape)
        science = Exposure(noisy.astype(np.float32), np.full(noisy.shape, 64, np.float32))
        options = AlardLuptonOptions(
            convolve="template", spatial_order=2, background_order=1, kernel_half_width=10
        )  # the same stamps whatever the default
        found[correlation] = subtract(science, template, options).statistics["chi2"]
    # error of the median over some 50 stamps of some 50 correlated pixels
    assert found[4.0] == pytest.approx(found[1.0], abs=0.08)


def test_identical_images_leave_nothing():
    science = pair().science
    result = subtract(science, science)
    # the Gaussians represent a spike to some 1e-4
    assert np.abs(result.image).max() < 1e-3 * science.data.max()
    assert np.std(result.image) < 0.02 * np.sqrt(np.median(science.variance))


@pytest.mark.parametrize(("factor", "offset"), [(2.5, 0.0), (1.0, 1e4), (1e-3, -50.0)])
def test_scale_and_offset_of_the_template_do_not_matter(factor, offset):
    template = pair().template
    other = Exposure(template.data * factor + offset, template.variance * factor**2)
    result = subtract(pair().science, other)
    expected = default_subtraction()
    assert result.statistics["kernel_sum"] * factor == pytest.approx(expected.statistics["kernel_sum"], rel=1e-3)
    ok = result.usable & expected.usable
    # float32 holds data of 1e4 to 1e-3
    noise = np.sqrt(np.median(expected.variance[ok]))
    assert np.std((result.image - expected.image)[ok]) < 0.02 * noise


def test_unusable_pixels_stay_local():
    science, template = pair().science, pair().template
    data, mask = template.data.copy(), np.zeros(template.shape, np.uint32)
    data[100:140, 200:240] = np.nan
    data[300, 300], mask[300, 300] = 1e6, MaskBit.COSMIC_RAY
    data[50:60, 400:420], mask[50:60, 400:420] = 1e5, MaskBit.SATURATED
    science_mask = np.zeros(science.shape, np.uint32)
    science_mask[250, 100:150] = MaskBit.BAD
    damaged = subtract(science.replace(mask=science_mask), Exposure(data, template.variance, mask))
    expected = default_subtraction()
    ok = damaged.usable & expected.usable
    noise = np.sqrt(np.median(expected.variance[ok]))
    assert np.percentile(np.abs(damaged.image - expected.image)[ok], 99.9) < 1.5 * noise
    assert np.abs(damaged.image - expected.image)[ok].max() < 8 * noise
    assert (
        damaged.mask[105:135, 205:235] & (MaskBit.NO_DATA | MaskBit.TEMPLATE) == MaskBit.NO_DATA | MaskBit.TEMPLATE
    ).all()
    assert damaged.mask[300, 300] & (MaskBit.COSMIC_RAY | MaskBit.TEMPLATE) == MaskBit.COSMIC_RAY | MaskBit.TEMPLATE
    assert damaged.mask[55, 410] & MaskBit.SATURATED
    assert (damaged.mask[250, 100:150] & (MaskBit.BAD | MaskBit.TEMPLATE) == MaskBit.BAD).all()
    assert (damaged.mask & MaskBit.SPREAD).any()
    assert damaged.mask[200, 50] == 0


@pytest.mark.parametrize("shape", [(333, 512), (512, 401)])
def test_any_shape(shape):
    box = np.s_[: shape[0], : shape[1]]
    images = [Exposure(image.data[box], image.variance[box]) for image in (pair().science, pair().template)]
    result = subtract(*images)
    assert result.image.shape == shape
    empty = ~discs(shape, pair().stars, 20) & ~discs(shape, pair().transients, 15)
    _, std, n = scatter(result, empty)
    assert abs(std - 1) < 0.01 + 4 / np.sqrt(2 * n)


def test_too_few_stars_is_said_with_counts():
    rng = np.random.default_rng(1)
    noise = [Exposure(rng.normal(100, 5, (128, 128)), np.full((128, 128), 25.0)) for _ in range(2)]
    with pytest.raises(TooFewStampsError, match=r"0 sources.*at least"):
        subtract(*noise, science_fwhm=4.0, template_fwhm=3.0)
    with pytest.raises(TooFewStampsError, match="stamps are needed"):
        subtract(*noise)


def test_no_common_pixel_and_other_shapes_are_errors():
    science = pair().science
    left, right = np.zeros(science.shape, bool), np.zeros(science.shape, bool)
    left[:, :256] = True
    right[:, 256:] = True
    with pytest.raises(NoUsableDataError, match="usable"):
        subtract(science.replace(mask=left), pair().template.replace(mask=right))
    nothing = np.zeros(science.shape, np.float32)  # as of a variance below what float32 can hold
    with pytest.raises(NoUsableDataError, match=r"of the template 0 % are usable, and 100 % have no variance"):
        subtract(science, Exposure(pair().template.data, variance=nothing))
    with pytest.raises(ShapeError, match="same grid"):
        subtract(science, Exposure(science.data[:-1]))


def test_sources_and_fixed_orders_are_taken():
    stars = pair().stars[pair().stars["flux"] > 5e3]
    result = subtract(
        pair().science,
        pair().template,
        AlardLuptonOptions(spatial_order=1, background_order=2),
        sources=stars,
        science_fwhm=4.2,
        template_fwhm=3.0,
    )
    assert (result.statistics["spatial_order"], result.statistics["background_order"]) == (1, 2)
    assert result.statistics["n_sources"] == len(stars)
    distance = np.hypot(result.stamps["x"][:, None] - stars["x"], result.stamps["y"][:, None] - stars["y"]).min(axis=1)
    assert distance.max() < 1


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    box = np.s_[:300, :300]
    images = [Exposure(image.data[box], image.variance[box]) for image in (pair().science, pair().template)]
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(subtract(*images))
    np.testing.assert_array_equal(results[0].image, results[1].image)
    np.testing.assert_array_equal(results[0].variance, results[1].variance)


@pytest.mark.parametrize("smoothness", ["curvature", "gradient"])
def test_the_strength_chosen_by_data_keeps_noise_out_of_a_kernel_of_free_pixels(smoothness):
    fields = {"n_stars": 60, "n_galaxies": 0, "n_transients": 0, "vary": 0}
    noisy, clean = simulate_pair(2, 320, **fields), simulate_pair(2, 320, noise=False, **fields)
    options = AlardLuptonOptions(
        basis="delta",
        convolve="template",
        spatial_order=0,
        background_order=1,
        kernel_half_width=7,
        smoothness=smoothness,
    )

    def match(pair, strength):
        result = subtract(pair.science, pair.template, dataclasses.replace(options, regularisation=strength))
        return result, result.kernel.image_at(160, 160)

    _, truth = match(clean, 1e-4)
    result, chosen = match(noisy, "auto")
    _, free = match(noisy, 0.0)
    # a fifth to a half in four fields
    assert np.linalg.norm(chosen - truth) < 0.6 * np.linalg.norm(free - truth)
    assert chosen.sum() == pytest.approx(truth.sum(), rel=0.01)
    assert result.statistics["regularisation"] > 0
    mean, std, n = scatter(result, ~discs(noisy.science.shape, noisy.stars, 20))
    assert abs(std - 1) < 0.01 + 4 / np.sqrt(2 * n)
    assert abs(mean) < 0.05


def test_free_pixels_follow_stars_that_no_gaussian_describes():
    """A telescope that jumped: the science image shows each star twice, 3 pixels apart and not equally bright."""
    pair = simulate_pair(5, 320, n_stars=60, n_galaxies=0, n_transients=0, vary=0, noise=False)
    science = pair.template.data * 0.8 + np.roll(pair.template.data, 3, axis=1) * 0.4
    rng = np.random.default_rng(5)
    noise = np.full(science.shape, 9.0, np.float32)
    image = Exposure((science + rng.normal(0, 3, science.shape)).astype(np.float32), noise)
    template = pair.template.replace(variance=np.full(science.shape, 0.01, np.float32))
    options = AlardLuptonOptions(convolve="template", spatial_order=0, background_order=0, kernel_half_width=6)
    result = subtract(image, template, dataclasses.replace(options, basis="delta"))
    kernel = result.kernel.image_at(160, 160)
    assert kernel[6, 6] == pytest.approx(0.8, abs=0.05)
    assert kernel[6, 9] == pytest.approx(0.4, abs=0.05)
    assert kernel.sum() == pytest.approx(1.2, rel=2e-3)
    _, std, n = scatter(result, discs(science.shape, pair.stars, 6, 2e4) & (np.arange(320) > 20))
    assert std < 1.02 + 4 / np.sqrt(2 * n)
    _, with_gaussians, _ = scatter(subtract(image, template, options), discs(science.shape, pair.stars, 6, 2e4))
    assert with_gaussians > 1.3 * std  # 1.53 against 1.03
