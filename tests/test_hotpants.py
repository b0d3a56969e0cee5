"""`run_hotpants`: the model of HOTPANTS against a plain oracle, its products, its table, regions, and quality."""

import inspect

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import hotpants_oracle as oracle
from simulate import simulate_pair
from skyloom import _kernels
from skyloom.compat.stdpipe import subtraction as drop_in
from skyloom.errors import InputError, NoOverlapError
from skyloom.subtraction import HotpantsBit, HotpantsKernel, HotpantsOptions, hotpants, run_hotpants
from skyloom.subtraction.al_hotpants.kernel import HotpantsBasis, Region

ALL = {f"get_{what}": True for what in ("convolved", "scaled", "noise", "kernel", "header")}
SMALL = {"ng": [2, 2, 0.8, 1, 1.8], "r": 4, "rss": 6, "nsx": 3, "nsy": 3}
"""A small basis: 6 + 3 functions."""


def field(rng, shape, n=30, sigma=1.3):
    """Gaussian stars on a sky of 100."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, 100.0)
    for _ in range(n):
        cx, cy = rng.uniform(8, shape[1] - 9), rng.uniform(8, shape[0] - 9)
        image += rng.uniform(2e3, 2e4) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
    return image


def varying_column(rng, n_basis, ko, bgo):
    column = np.zeros(HotpantsKernel.row_count(n_basis, ko, bgo))
    column[1] = 1.2
    n_kernel = (n_basis - 1) * len(oracle.exponents(ko))
    column[2 : 2 + n_kernel] = rng.normal(0, 0.02, n_kernel)
    n_background = len(oracle.exponents(bgo))
    column[2 + n_kernel : 2 + n_kernel + n_background] = rng.normal(0, 5, n_background)
    return column


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(3, 384, n_stars=120, n_galaxies=6, n_transients=4)


@pytest.fixture(scope="module")
def seeing(pair):
    return {"image_fwhm": 4.2, "template_fwhm": 3.0, "image_gain": 1.5, "template_gain": 12.0}


def sigmas(pair):
    return {"err": np.sqrt(pair.science.variance), "template_err": np.sqrt(pair.template.variance)}


def test_signature_and_order_of_results_are_those_of_stdpipe(pair, seeing):
    names = (
        "image template mask template_mask err template_err extra image_fwhm template_fwhm image_gain template_gain "
        "rel_r rel_rss nx ny obj get_convolved get_scaled get_noise get_kernel get_header _tmpdir _workdir _exe verbose"
    )
    parameters = inspect.signature(run_hotpants).parameters
    assert list(parameters) == names.split()
    defaults = {"template_gain": 1000, "rel_r": 3, "rel_rss": 4, "nx": 1, "get_noise": False, "verbose": False}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert drop_in.run_hotpants is run_hotpants
    image, template = pair.science.data, pair.template.data
    bare = run_hotpants(image, template, **seeing)
    assert isinstance(bare, np.ndarray)
    diff, convolved, scaled, noise, kernel, header = run_hotpants(image, template, **seeing, **ALL)
    np.testing.assert_array_equal(bare, diff)
    assert isinstance(kernel, Table)
    assert isinstance(header, fits.Header)
    inner = (slice(20, -20),) * 2
    np.testing.assert_allclose(image[inner] - convolved[inner], diff[inner], atol=0.05)  # float32 of 1e5
    np.testing.assert_allclose(scaled[inner] * noise[inner], diff[inner], rtol=1e-5, atol=1e-3)
    assert all(plane.dtype == np.float32 for plane in (diff, convolved, scaled, noise))


@pytest.mark.parametrize("degrees_sigmas", [((6, 4, 2), (0.7, 1.5, 3.0)), ((2, 1), (0.8, 1.8)), ((3,), (1.1,))])
def test_basis_is_that_of_hotpants(degrees_sigmas):
    basis = HotpantsBasis(6, *degrees_sigmas)
    expected = oracle.basis_images(*degrees_sigmas, 6)
    np.testing.assert_allclose(basis.images, expected, atol=1e-14)
    assert len(basis) == len(expected)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), ko=st.integers(0, 2))
def test_coefficients_survive_the_change_of_basis(seed, ko):
    rng = np.random.default_rng(seed)
    basis = HotpantsBasis(8, (4, 2), (0.9, 2.0))
    own = basis.orthonormal()
    coefficients = rng.normal(size=(len(own), len(oracle.exponents(ko))))
    coefficients[0, 1:] = 0
    converted = basis.coefficients_from(own, coefficients)
    expected = np.tensordot(coefficients.T, own.images, axes=1)
    got = np.tensordot(converted.T, basis.images, axes=1)
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("ko", "bgo"), [(0, 0), (1, 1), (2, 0)])
def test_unweighted_fit_solves_hotpants_normal_equations(ko, bgo):
    rng = np.random.default_rng(10 * ko + bgo)
    template, image = (field(np.random.default_rng(5), (80, 90), sigma=s) for s in (1.2, 1.7))
    template, image = template + rng.normal(0, 3, template.shape), image + rng.normal(0, 3, image.shape)
    options = HotpantsOptions.from_mapping({**SMALL, "ko": ko, "bgo": bgo, "c": "t", "n": "i", "fit": "hotpants",
                                            "ks": 1e9, "tu": 1e6, "iu": 1e6, "tl": -1e6, "il": -1e6})  # fmt: skip
    result = hotpants(image, template, options)
    stars = list(zip(result.stamps["x"], result.stamps["y"], strict=True))
    assert len(stars) >= 6
    images = oracle.basis_images((2, 1), (0.8, 1.8), 4)
    column = oracle.fit(template, image, stars, 6, images, ko=ko, bgo=bgo)
    used = len(column)
    got = result.kernel.solutions[0]
    assert not got[used:].any()
    for x, y in ((10, 12), (45, 40), (80, 70)):
        where = {"x": x, "y": y, "width": 90, "height": 80}
        expected = oracle.kernel_at(column, images, ko, **where)
        # stamps are stored in float32: 1e-7 of 2e4, in a problem of condition 1e3
        np.testing.assert_allclose(result.kernel.image_at(x, y), expected, atol=2e-5 * np.abs(expected).max())
        np.testing.assert_allclose(
            result.kernel.background_at(x, y), oracle.background_at(column, 9, ko, bgo, **where), atol=2e-2
        )


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), ko=st.integers(0, 2), bgo=st.integers(0, 2), convolve=st.sampled_from("ti"))
def test_planes_are_those_of_the_oracle(seed, ko, bgo, convolve):
    rng = np.random.default_rng(seed)
    shape = (rng.integers(14, 20), rng.integers(14, 20))
    image, template = rng.normal(100, 10, shape), rng.normal(50, 10, shape)
    basis = HotpantsBasis(2, (2, 1), (0.8, 1.4))
    column = varying_column(rng, len(basis), ko, bgo)
    column[2 : 2 + 8 * len(oracle.exponents(ko))] *= 0.2  # on so small an image every variation is a fast one
    region = Region(0, shape[1] - 1, 0, shape[0] - 1, 0, shape[1] - 1, 0, shape[0] - 1)
    way = {"t": "template", "i": "image"}[convolve]
    kernel = HotpantsKernel(basis, ko, bgo, (region,), column[None], (way,))
    sd_i, sd_t = rng.uniform(1, 3, shape), rng.uniform(1, 3, shape)
    options = HotpantsOptions(ki=kernel, ini=sd_i, tni=sd_t, tl=-1e3, il=-1e3, n=convolve, r=2)
    result = hotpants(image, template, options)
    moved, still = (template, image) if convolve == "t" else (image, template)
    sd_moved, sd_still = (sd_t, sd_i) if convolve == "t" else (sd_i, sd_t)
    matched, diff, noise = oracle.planes(
        still, moved, column, basis.images, ko=ko, bgo=bgo, var_image=sd_still**2, var_template=sd_moved**2
    )
    inner = (slice(2, -2),) * 2
    sign = 1 if convolve == "t" else -1
    # float32 sums of values of 100; on the scale of the convolved image, hence divided by the kernel's sum
    np.testing.assert_allclose(result.diff[inner], sign * diff[inner] / 1.2, atol=2e-3)
    np.testing.assert_allclose(result.convolved[inner], matched[inner] / 1.2, atol=2e-3)
    # K^2 is taken to first order along x over the width of this small image
    np.testing.assert_allclose(result.noise[inner], noise[inner] / 1.2, rtol=1e-2)
    border = np.ones(shape, bool)
    border[inner] = False
    assert (result.mask[border] & HotpantsBit.OUTPUT_ISBAD).all()
    assert not (result.mask[inner] & HotpantsBit.OUTPUT_ISBAD).any()


@pytest.mark.parametrize(("c", "n"), [("t", "t"), ("t", "i"), ("i", "i"), ("i", "t"), ("i", "u"), ("t", "u")])
def test_flux_scale_of_the_difference(pair, seeing, c, n):
    image, template = pair.science.data, pair.template.data
    found = run_hotpants(image, template, **seeing, extra={"c": c, "n": n, "ko": 1, "bgo": 1}, get_header=True)
    total = float(found[1]["KSUM00"])
    science_over_template = 1 / pair.flux_ratio
    assert total == pytest.approx(science_over_template if c == "t" else pair.flux_ratio, rel=0.03)
    system = {"t": "t", "i": "i", "u": "i" if c == "t" else "t"}[n]
    reference = run_hotpants(image, template, **seeing, extra={"c": c, "n": "i", "ko": 1, "bgo": 1})
    scale = {"i": 1.0, "t": total if c == "i" else 1 / total}[system]
    inner = (slice(30, -30),) * 2
    np.testing.assert_allclose(found[0][inner], reference[inner] * scale, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("ko", "left"), [(0, 2e-5), (1, 0.03)])
def test_exact_model_leaves_nothing(ko, left):
    """A noiseless image that is a kernel times the template plus a background is fitted to the rounding of float32.

    The fit takes the polynomials of the kernel in the middle of a stamp: 6 pixels of 70 of a variation of 2 %.
    """
    rng = np.random.default_rng(2)
    template = field(rng, (150, 140), n=60)
    basis = HotpantsBasis(4, (2, 1), (0.8, 1.8))
    region = Region(0, 139, 0, 149, 0, 139, 0, 149)
    truth = HotpantsKernel(basis, ko, 1, (region,), varying_column(rng, 9, ko, 1)[None], ("template",))
    limits = {"tl": -1e9, "il": -1e9, "tu": 1e9, "iu": 1e9}
    model = -hotpants(np.zeros_like(template), template, HotpantsOptions(ki=truth, r=4, n="i", **limits)).diff
    inner = (slice(4, -4),) * 2
    image = np.full_like(template, 100.0)
    image[inner] = model[inner]
    options = HotpantsOptions.from_mapping(
        {**SMALL, **limits, "ko": ko, "bgo": 1, "c": "t", "n": "i", "nsx": 5, "nsy": 5}
    )
    result = hotpants(image, template, options)
    assert np.abs(result.diff[16:-16, 16:-16]).max() < left * np.ptp(image)
    assert result.kernel.solutions[0, 1] == pytest.approx(1.2, rel=1e-5 if ko == 0 else 1e-2)


def test_table_makes_the_round_trip_through_fits(pair, seeing, tmp_path):
    extra = {
        "ko": 1,
        "bgo": 1,
        "oki": tmp_path / "kernel.fits",
        "outim": tmp_path / "diff.fits",
        "allm": True,
        "hki": True,
    }
    diff, noise, table, header = run_hotpants(
        pair.science.data, pair.template.data, **seeing, extra=extra, nx=2, ny=1,
        get_noise=True, get_kernel=True, get_header=True,
    )  # fmt: skip
    assert table.colnames == ["Region0", "Region1"]
    for key in ("NGAUSS", "DGAUSS1", "SGAUSS3", "FWKERN", "CKORDER", "BGORDER"):
        assert key in table.meta
    assert len(table) == 49 * 3 + 3 + 1
    assert table["Region0"][0] == 0
    kernels = [
        HotpantsKernel.from_table(table),
        HotpantsKernel.from_table(Table({n: table[n] for n in table.colnames}, meta=table.meta), header),
        HotpantsKernel.read(tmp_path / "kernel.fits"),
        HotpantsKernel.read(tmp_path / "diff.fits"),
    ]
    for kernel in kernels:
        for x, y in ((50, 60), (300, 200)):
            np.testing.assert_allclose(kernel.image_at(x, y), kernels[0].image_at(x, y), rtol=1e-12)
        number = kernel.region_at(300, 200)
        assert kernel.sum_at(300, 200) == pytest.approx(float(header[f"KSUM0{number}"]), abs=1e-4)
    with fits.open(tmp_path / "diff.fits") as hdus:
        assert len(hdus) == 5
        np.testing.assert_array_equal(hdus[0].data, diff)
        np.testing.assert_array_equal(hdus[3].data, noise)
    # the same kernel, read from the file, gives the same difference
    again = run_hotpants(
        pair.science.data, pair.template.data, **seeing, extra={"ki": tmp_path / "kernel.fits"}, nx=2, ny=1
    )
    np.testing.assert_allclose(again[20:-20, 20:-20], diff[20:-20, 20:-20], atol=0.05)
    with pytest.raises(NoOverlapError):
        kernels[0].image_at(5000, 10)
    broken = table.copy()
    del broken.meta["FWKERN"]
    with pytest.raises(InputError, match="FWKERN"):
        HotpantsKernel.from_table(broken)


def test_a_table_of_the_binary_needs_no_border_for_one_region():
    basis = HotpantsBasis(3, (1,), (1.0,))
    table = Table({"Region0": np.arange(float(HotpantsKernel.row_count(3, 0, 0)))})
    table.meta.update({"NGAUSS": 1, "DGAUSS1": 1, "SGAUSS1": 1.0, "FWKERN": 7, "CKORDER": 0, "BGORDER": 0})
    kernel = HotpantsKernel.from_table(table, {"REGION00": "[1:100,1:80]", "CONVOL00": "IMAGE"})
    expected = oracle.kernel_at(table["Region0"], basis.images, 0, x=3, y=4, width=100, height=80)
    np.testing.assert_allclose(kernel.image_at(3, 4), expected, atol=1e-14)
    assert kernel.convolved == ("image",)
    with pytest.raises(InputError, match="REGION00"):
        HotpantsKernel.from_table(table)


def two_regions(first, second):
    """Two regions side by side, each with one Gaussian and a constant background."""
    basis = HotpantsBasis(3, (0,), (1.2,))
    regions = Region(0, 49, 0, 59, 0, 61, 0, 59), Region(50, 99, 0, 59, 38, 99, 0, 59)
    columns = np.array([[0, total, level] for total, level in (first, second)], float)
    return HotpantsKernel(basis, 0, 0, regions, columns, ("template", "template"))


def test_regions_blend_without_steps():
    flat = np.full((60, 100), 100.0)
    kernel = two_regions((1.0, 0.0), (1.1, 20.0))
    limits = {"tl": -1.0, "il": -1.0, "n": "i", "r": 3, "nrx": 2, "nsx": 1, "nsy": 1, "rss": 4}
    rows = {
        blend: hotpants(flat, flat, HotpantsOptions(ki=kernel, blend=blend, **limits)).convolved[30, 3:-3]
        for blend in (True, False)
    }
    for row in rows.values():
        np.testing.assert_allclose(row[[0, 20]], 100, atol=1e-3)
        np.testing.assert_allclose(row[[70, 90]], 130, atol=1e-3)
    assert np.abs(np.diff(rows[False])).max() == pytest.approx(30, abs=1e-3)
    # a sine from 12 pixels before to 12 pixels after the border: its steepest place is in the middle
    assert np.abs(np.diff(rows[True])).max() < 30 * 0.5 * np.pi / 2 / 12 * 1.01
    assert rows[True][46] + rows[True][47] == pytest.approx(230, abs=1e-3)


def test_regions_tile_the_field_and_are_fitted_each(pair, seeing):
    extra = {"ko": 0, "bgo": 0, "nsx": 5, "nsy": 5}
    diff, header = run_hotpants(pair.science.data, pair.template.data, **seeing, nx=2, extra=extra, get_header=True)
    assert header["NREGION"] == 4
    limits = [header[f"REGION{k:02d}"] for k in range(4)]
    assert limits == ["[1:192,1:192]", "[193:384,1:192]", "[1:192,193:384]", "[193:384,193:384]"]
    for k in range(4):
        assert float(header[f"KSUM{k:02d}"]) == pytest.approx(1 / pair.flux_ratio, rel=0.05)
    assert (diff[15:-15, 15:-15] != np.float32(1e-30)).all()


def test_small_regions_are_judged_where_they_are():
    """Polynomials of a region are not looked at far outside of it."""
    pair = simulate_pair(4, 600, n_stars=800, n_galaxies=0, n_transients=0)
    extra = {"ko": 1, "bgo": 0, "ng": [2, 4, 1.0, 2, 2.5], "nsx": 8, "nsy": 8, "rss": 8, "r": 7}
    arguments = {"image_fwhm": 4.2, "template_fwhm": 3.0, "image_gain": 1.5, "template_gain": 12.0}
    diff, header = run_hotpants(pair.science.data, pair.template.data, **arguments, nx=6, extra=extra, get_header=True)
    assert header["NREGION"] == 36
    sums = [float(header[f"KSUM{k:02d}"]) for k in range(36)]
    np.testing.assert_allclose(sums, 1 / pair.flux_ratio, rtol=0.05)
    assert (diff[15:-15, 15:-15] != np.float32(1e-30)).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), sky=st.floats(-100, 1e4), sigma=st.floats(0.5, 50))
def test_sky_of_a_stamp_is_not_that_of_its_stars(seed, sky, sigma):
    rng = np.random.default_rng(seed)
    pixels = rng.normal(sky, sigma, 5000)
    pixels[:750] += rng.exponential(50 * sigma, 750)
    level, deviation = _kernels.sky_statistics(np.sort(pixels).astype(np.float32), 3.0)
    assert abs(level - sky) < 0.6 * sigma
    assert 0.8 * sigma < deviation < 1.5 * sigma


def test_background_noise_and_fluxes_of_stars_and_transients(pair, seeing):
    """Z has deviation 1 on the sky and 1.05 on stars; the difference holds the transients' fluxes."""
    diff, scaled = run_hotpants(
        pair.science.data, pair.template.data, **seeing, **sigmas(pair), extra={"ko": 1, "bgo": 1}, get_scaled=True
    )
    y, x = np.mgrid[:384, :384]
    near_star = np.zeros(diff.shape, bool)
    clear = np.ones(diff.shape, bool)
    clear[:30], clear[-30:], clear[:, :30], clear[:, -30:] = False, False, False, False
    for star in pair.stars:
        near_star |= (np.hypot(x - star["x"], y - star["y"]) < 3) & (star["flux"] > 2e4)
    for source in pair.transients:
        clear &= np.hypot(x - source["x"], y - source["y"]) > 12
    sky = scaled[clear & ~near_star]
    stars = scaled[clear & near_star]
    assert 1.4826 * np.median(np.abs(sky)) == pytest.approx(1.0, abs=0.02)
    assert np.std(stars) < 1.25
    total = 0.0
    for source in pair.transients:
        sx, sy = round(source["x"]), round(source["y"])
        if 40 < sx < 344 and 40 < sy < 344:
            psf = pair.science_psf.profile(source["x"], source["y"], source["x"] - sx, source["y"] - sy, 8)
            box = np.s_[sy - 8 : sy + 9, sx - 8 : sx + 9]
            flux = (diff[box] * psf).sum() / (psf**2).sum()
            sigma = np.sqrt((pair.science.variance[box] * psf**2).sum()) / (psf**2).sum()
            total = max(total, abs(flux - source["flux"]) / sigma)
    assert total < 5


def test_stars_given_are_used_and_reported(pair, seeing, tmp_path):
    bright = pair.stars[pair.stars["flux"] > 1e4]
    found = run_hotpants(pair.science.data, pair.template.data, **seeing, obj=bright, get_header=True,
                         extra={"afssc": 0, "savexy": tmp_path / "stamps.reg"})  # fmt: skip
    lines = (tmp_path / "stamps.reg").read_text().splitlines()
    assert found[1]["NSTAMPS"] == len(lines) - 1 > 3
    xy = np.array([line[4:-1].split(",")[:2] for line in lines[1:]], float) - 1
    stars = np.column_stack([bright["x"], bright["y"]])
    nearest = np.hypot(*(xy[:, None] - stars[None]).transpose(2, 0, 1)).min(axis=1)
    assert nearest.max() < 1  # each is the pixel of a star
    # the same through the file of HOTPANTS, whose first pixel is 1
    np.savetxt(tmp_path / "xy", stars + 1)
    extra = {"afssc": 0, "ssf": tmp_path / "xy"}
    again = run_hotpants(pair.science.data, pair.template.data, **seeing, extra=extra)
    np.testing.assert_array_equal(again, found[0])


def test_basis_images_can_be_given(pair, seeing):
    images = list(HotpantsBasis(9, (2, 2), (1.0, 2.2)).images)
    images[1:] = [one + 0.3 * images[0] for one in images[1:]]  # their sums are taken out
    kernels = [
        run_hotpants(pair.science.data, pair.template.data, **seeing, extra=extra, get_kernel=True)
        for extra in ({"pca": [len(images), *images], "rss": 15}, {"ng": [2, 2, 1.0, 2, 2.2], "r": 9, "rss": 15})
    ]
    inner = (slice(30, -30),) * 2
    # the same functions, hence the same kernel, to the float32 of the stamps
    np.testing.assert_allclose(kernels[0][0][inner], kernels[1][0][inner], atol=0.5)
    own = HotpantsKernel.from_table(kernels[0][1], pca=np.array(images))
    other = HotpantsKernel.from_table(kernels[1][1])
    np.testing.assert_allclose(own.image_at(200, 200), other.image_at(200, 200), atol=1e-4)
    with pytest.raises(InputError, match="pca"):
        HotpantsKernel.from_table(kernels[0][1])


def test_same_bits_for_any_number_of_threads_and_inputs_unchanged(pair, seeing, monkeypatch):
    image, template = pair.science.data.copy(), pair.template.data.copy()
    before = image.copy(), template.copy()
    image.flags.writeable = template.flags.writeable = False
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(run_hotpants(image, template, **seeing, extra={"ko": 1, "bgo": 1}, err=True, template_err=True,
                                    get_noise=True))  # fmt: skip
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(template, before[1])
