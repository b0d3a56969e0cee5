import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d

from skyloom.convolution import exponents, monomials
from skyloom.errors import InputError
from skyloom.exposure import Exposure, MaskBit
from skyloom.subtraction.basis import ZeroSumDeltaBasis, default_sigmas, gaussian_basis
from skyloom.subtraction.changes import SPARED, SPIKE, THRESHOLD, changed_pixels
from skyloom.subtraction.fit import systematic_fraction
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.masking import combine_masks, spread_mask
from skyloom.subtraction.noise import convolved_noise_gain, smoothing_kernel
from skyloom.subtraction.normal import (
    Factored,
    Model,
    StampSums,
    local_coefficients,
    normal_matrix,
    normal_vector,
    solve,
)
from skyloom.subtraction.options import AlardLuptonOptions
from skyloom.subtraction.stamps import (
    Candidate,
    Planes,
    find_candidates,
    measure_fwhm,
    source_positions,
    spikes,
    spread,
    unflagged,
    without_spikes,
)


def gauss(sigma, half):
    axis = np.arange(-half, half + 1.0)
    image = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    return image / image.sum()


def test_basis_has_49_functions_of_which_one_carries_the_sum():
    basis = gaussian_basis((0.7, 1.5, 3.0), (6, 4, 2), 10)
    images = basis.images
    assert images.shape == (49, 21, 21)
    np.testing.assert_allclose(images.sum(axis=(1, 2)), np.eye(1, 49)[0], atol=1e-6)
    np.testing.assert_allclose(images[0], gauss(0.7, 10), atol=1e-12)


@pytest.mark.parametrize("wings", [False, True])
def test_wings_are_the_last_function_of_the_same_span(wings):
    basis = gaussian_basis((0.7, 1.5, 3.0, 6.0), (6, 4, 2, 0), 16, constant_wings=wings)
    assert (len(basis), basis.n_constant) == (50, int(wings))
    flat = basis.images.reshape(50, -1)
    np.testing.assert_allclose(flat.sum(axis=1), np.eye(1, 50)[0], atol=1e-6)
    np.testing.assert_allclose(flat[1:] @ flat[1:].T, np.eye(49), atol=1e-6)
    wide = gauss(6.0, 16).ravel()
    for share in (slice(None), slice(49)):  # with the last function, and without it
        left = wide - flat[share].T @ np.linalg.lstsq(flat[share].T, wide, rcond=None)[0]
        found = np.linalg.norm(left) / np.linalg.norm(wide)
        assert found < 1e-5 if share == slice(None) else (found > 0.1 or not wings)


def test_wings_need_others_before_them():
    assert gaussian_basis((0.7, 1.5), (0, 0), 8, constant_wings=True).n_constant == 0
    assert gaussian_basis((0.7, 1.5), (4, 2), 8, constant_wings=True).n_constant == 0


def test_basis_spans_alard_and_luptons_functions():
    basis = gaussian_basis((0.7, 1.5, 3.0), (6, 4, 2), 10)
    design = basis.images.reshape(len(basis), -1).T
    axis = np.arange(-10, 11.0)
    for sigma, p, q in ((0.7, 5, 1), (1.5, 2, 2), (3.0, 0, 2), (3.0, 0, 0)):
        image = np.outer(axis**q, axis**p) * gauss(sigma, 10)
        residual = image.ravel() - design @ np.linalg.lstsq(design, image.ravel(), rcond=None)[0]
        assert np.linalg.norm(residual) < 1e-5 * np.linalg.norm(image)


def test_basis_convolves_like_its_images():
    basis = gaussian_basis((0.8, 2.0), (2, 1), 5)
    stamp = np.random.default_rng(1).normal(size=(23, 26))
    expected = [convolve2d(stamp, image, mode="valid") for image in basis.images]
    np.testing.assert_allclose(basis.convolve(stamp), expected, atol=1e-10)


@pytest.mark.parametrize("seeing", [(4.0, 4.0), (4.2, 3.0), (3.0, 4.2), (8.0, 2.0)])
def test_widths_follow_the_seeing_and_never_vanish(seeing):
    narrow, middle, wide, wings = default_sigmas(*seeing, 4)
    assert (2 * narrow, wide, wings) == pytest.approx((middle, 2 * middle, 4 * middle))
    assert middle >= 1
    assert middle**2 == pytest.approx(max(1, abs(seeing[0] ** 2 - seeing[1] ** 2) / 5.545), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spatial=st.integers(0, 2),
    background=st.integers(0, 2),
    vary_sum=st.booleans(),
    n_constant=st.integers(0, 2),
)
def test_normal_equations_are_those_of_the_full_design(seed, spatial, background, vary_sum, n_constant):
    rng = np.random.default_rng(seed)
    n_basis, n_pixels, n_stamps = 4, 30, 25
    model = Model(n_basis, spatial, background, 2, vary_sum, n_constant)
    xy = rng.uniform(-1, 1, (2, n_stamps))
    terms = monomials(*xy, spatial, (0, 0), (1, 1)).T
    designs = rng.normal(size=(n_stamps, n_basis + 6, n_pixels))
    target, weight = rng.normal(size=(n_stamps, n_pixels)), rng.uniform(0.5, 2, (n_stamps, n_pixels))
    # the design, column by column: each basis image times each of its monomials, then the background
    columns = []
    for n in range(n_basis):
        powers = range(terms.shape[1]) if (vary_sum if n == 0 else n < n_basis - n_constant) else [0]
        columns += [(designs[:, n] * terms[:, [t]]).ravel() for t in powers]
    columns += [designs[:, n_basis + k].ravel() for k, (i, j) in enumerate(exponents(2)) if i + j <= background]
    full = np.array(columns)
    grams = np.einsum("smp,sp,snp->smn", designs, weight, designs)
    moments = np.einsum("smp,sp,sp->sm", designs, weight, target)
    np.testing.assert_allclose(normal_matrix(model, terms, grams), (full * weight.ravel()) @ full.T, atol=1e-9)
    np.testing.assert_allclose(normal_vector(model, terms, moments), full @ (weight * target).ravel(), atol=1e-9)
    # a solution, unpacked for each stamp, predicts what the full design does
    solution = rng.normal(size=len(full))
    local = local_coefficients(model, solution, terms)
    predicted = np.einsum("sm,smp->sp", local, designs)
    np.testing.assert_allclose(predicted.ravel(), solution @ full, atol=1e-9)
    zero_sum_terms = (n_basis - 1 - n_constant) * (terms.shape[1] - 1)
    assert model.varying(terms.shape[1]).shape == solution.shape
    assert model.varying(terms.shape[1]).sum() == zero_sum_terms


def test_noise_of_the_convolved_image_weakens_the_kernel_little():
    # y = 2 x + 0 x', both regressors observed with noise of variance 1: least squares alone would find 2 / (1 + 1 / 4)
    rng = np.random.default_rng(1)
    n = 200_000
    signal = rng.normal(0, 2, (2, n))
    design = np.vstack([signal + rng.normal(0, 1, (2, n)), np.ones(n)])
    target = 2 * signal[0] + rng.normal(0, 1, n)
    model, terms = Model(2, 0, 0, 0, vary_sum=False), np.ones((1, 1))
    gram, moment = design @ design.T, design @ target
    sums = [
        StampSums(gram[None], moment[None], np.array([target @ target]), np.array([noise]), np.diag([1.0, 1.0, 0.0]))
        for noise in (0.0, float(n))
    ]
    plain, corrected = (solve(model, terms, one) for one in sums)
    assert plain[0] == pytest.approx(1.6, abs=0.02)
    # one iteration leaves (N / (S + N))^2 = (1 / 5)^2; 5 standard errors of a slope, sqrt((1 + 4) / (4 n))
    assert corrected[0] == pytest.approx(2 * (1 - 0.2**2), abs=5 * np.sqrt(5 / (4 * n)))
    assert corrected[1] == pytest.approx(0, abs=5 * np.sqrt(5 / (4 * n)))


def changed_stamps(n=3, side=31, width=4.0):
    """Return residuals, signals, variances of stamps with a bright star each, and pixels that all count."""
    rng = np.random.default_rng(4)
    star = 1e5 * gauss(width / 2.355, side // 2)
    signals = np.repeat(star[None], n, axis=0)
    variances = 100.0 + signals
    return rng.normal(size=(n, side, side)) * np.sqrt(variances), signals, variances, np.ones((n, side, side), bool)


def test_transients_in_stamps_are_found_below_the_noise_of_pixels_and_misfits_are_not():
    residuals, signals, variances, usable = changed_stamps()
    residuals[1] += 0.01 * signals[1]  # what a kernel may leave of a bright star
    assert not changed_pixels(residuals, signals, variances, usable, width=4.0).any()
    faint = np.roll(gauss(4.0 / 2.355, 15), (8, -7), axis=(0, 1))
    # 8 sigma in all, 2 in its brightest pixel
    residuals[2] += 8 * 10 / np.sqrt((faint**2).sum()) * faint
    found = changed_pixels(residuals, signals, variances, usable, width=4.0)
    assert not found[:2].any()
    y, x = np.nonzero(found[2])
    assert np.hypot(y - 23, x - 8).min() == 0
    assert np.hypot(y - 23, x - 8).max() < 6
    usable[2, 20:, :12] = False  # what is masked anyway tells nothing
    assert not changed_pixels(residuals, signals, variances, usable, width=4.0).any()


def test_what_is_masked_tells_nothing_whatever_it_holds():
    residuals, signals, variances, usable = changed_stamps()
    residuals[2, 10:13, 10:13] += 1e3
    usable[:, 3, 3:6] = False
    expected = changed_pixels(residuals, signals, variances, usable, width=4.0)
    assert expected[2, 11, 11]
    for planes in (residuals, signals, variances):
        planes[:, 3, 3:6] = np.nan, np.inf, -1.0
    np.testing.assert_array_equal(changed_pixels(residuals, signals, variances, usable, width=4.0), expected)


def test_one_pixel_alone_is_no_transient():
    residuals, signals, variances, usable = changed_stamps()
    residuals[0, 5, 5] = 1e6
    assert not changed_pixels(residuals, signals, variances, usable, width=4.0).any()
    # the plain filter, by loops
    width, x, y = 3.0, 9, 12
    residuals[0, y - 1 : y + 2, x - 1 : x + 2] += 60
    gaussian = np.exp(-4 * np.log(2) * (np.mgrid[:31, :31][0] - y) ** 2 / width**2) * np.exp(
        -4 * np.log(2) * (np.mgrid[:31, :31][1] - x) ** 2 / width**2
    )
    cut = np.clip(residuals[0] / np.sqrt(variances[0]), -SPIKE, SPIKE) * np.sqrt(variances[0])
    seen = (gaussian * cut / variances[0]).sum() - SPARED * (gaussian * signals[0] / variances[0]).sum()
    expected = seen > THRESHOLD * np.sqrt((gaussian**2 / variances[0]).sum())
    found = changed_pixels(residuals, signals, variances, usable, width=width)
    assert expected
    assert found[0, y, x]


@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (4, 4), (20, 20)])
def test_planes_smaller_than_a_stamp_have_no_candidates(shape):
    planes = Planes(np.ones(shape), np.ones(shape), np.ones(shape, bool))
    xy = np.array([[shape[1] / 2, shape[0] / 2], [1.0, 1.0]])
    accepted, counts = find_candidates(planes, planes, xy, half=12, core=4, fwhm=3.0, min_snr=20.0)
    assert accepted == []
    assert counts["unusable pixels or border"] == counts["sources"] == 2


def test_singular_equations_have_a_finite_solution():
    design = np.random.default_rng(1).normal(size=(3, 10))
    design[2] = design[0] + design[1]
    truth = design.T @ [1.0, 2.0, 0.0]
    solution = Factored(design @ design.T).solve(design @ truth)
    np.testing.assert_allclose(design.T @ solution, truth, atol=1e-6)


def test_systematic_fraction_is_found():
    rng = np.random.default_rng(1)
    model, variance = rng.uniform(100, 1e5, 20000), np.full(20000, 100.0)
    noise = rng.normal(0, 10, 20000)
    # median of 20000: good to 1.2 / sqrt(20000), in eps somewhat more
    assert systematic_fraction(noise + 0.01 * model * rng.normal(size=20000), variance, model) == pytest.approx(
        0.01, rel=0.05
    )
    assert systematic_fraction(0.9 * noise, variance, model) == 0
    assert systematic_fraction(noise[:40], variance[:40], model[:40]) == 0


@pytest.mark.parametrize("correlation", [1.0, 1.2, 2.0, 5.0])
def test_noise_gain_is_what_smoothed_noise_shows(correlation):
    smoothing, kernel = smoothing_kernel(correlation), gauss(1.5, 6)
    assert (smoothing**2).sum() == pytest.approx(1 / correlation)
    noise = np.random.default_rng(1).normal(size=(600, 600))
    before = convolve2d(noise, smoothing, mode="valid")
    after = convolve2d(before, kernel, mode="valid")
    # some 600^2 / 30 independent patches
    assert after.var() / (before.var() * (kernel**2).sum()) == pytest.approx(
        convolved_noise_gain(kernel, correlation), rel=4 * np.sqrt(2 * 30) / 600
    )


def test_lost_pixels_matter_near_bright_stars_only():
    data = np.full((60, 80), 100.0, np.float32) + np.random.default_rng(1).normal(0, 5, (60, 80))
    data[30, 60] += 1e5
    mask = np.zeros(data.shape, np.uint32)
    mask[30, 20] = MaskBit.BAD
    mask[30, 60] = MaskBit.SATURATED
    exposure = Exposure(data.astype(np.float32), mask=mask)
    planes = Planes(np.where(exposure.usable, exposure.data - 100, 0), np.full(data.shape, 25.0), exposure.usable)
    basis = gaussian_basis((1.5,), (0,), 7)
    kernel = SpatialKernel(basis, np.ones((1, 1)), (0.0, 0.0), (1.0, 1.0))
    convolved = kernel.convolve(planes.data, None, planes.usable)
    bits = spread_mask(planes, exposure, kernel, convolved.lost, sigma=np.full(data.shape, 6.0), max_lost=0.1)
    # the bad pixel on the sky: 7 % of the kernel, 1 sigma at most
    assert bits[30, 20] == MaskBit.SPREAD
    assert bits[30, 60] == MaskBit.SATURATED
    assert bits[30, 64] == MaskBit.SATURATED
    assert convolved.lost[30, 65] < 1e-3  # and yet a saturated pixel of 1e5 has 27 there, of a noise of 6
    assert bits[30, 65] == MaskBit.SATURATED
    assert bits[0, 0] == MaskBit.EDGE
    assert bits[15, 40] == 0
    as_template = combine_masks(bits, np.zeros_like(bits), "template")
    assert as_template[30, 64] == MaskBit.SATURATED | MaskBit.TEMPLATE
    assert as_template[30, 20] == MaskBit.SPREAD
    assert as_template[0, 0] == MaskBit.EDGE
    np.testing.assert_array_equal(combine_masks(bits, np.zeros_like(bits), "science"), bits)


def test_stamps_are_spread_over_cells():
    rng = np.random.default_rng(1)
    stars = [
        Candidate(int(x), int(y), float(s))
        for x, y, s in zip(*rng.integers(0, 100, (2, 300)), rng.random(300), strict=True)
    ]
    cells = spread(stars, (100, 100), 5, 3)
    assert len(cells) == 25
    for cell in cells:
        assert len(cell) == 3
        assert [star.snr for star in cell] == sorted((star.snr for star in cell), reverse=True)
        inside = [s.snr for s in stars if (s.x // 20, s.y // 20) == (cell[0].x // 20, cell[0].y // 20)]
        assert [star.snr for star in cell] == sorted(inside, reverse=True)[:3]


@pytest.mark.parametrize("sigma", [1.2, 2.5])
def test_width_of_gaussian_stars(sigma):
    data = np.zeros((60, 60))
    data[18:43, 20:45] = 1e4 * gauss(sigma, 12)
    planes = Planes(data + 7, np.ones_like(data), np.ones(data.shape, bool))
    # sampled at pixel centres, so without the pixel's width; the ring's level costs some 1e-3
    assert measure_fwhm(planes, [Candidate(32, 30, 99.0)], 12) == pytest.approx(2.3548 * sigma, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"convolve": "both"},
        {"spatial_order": 5},
        {"background_order": "high"},
        {"gaussian_sigmas": (1.0,), "gaussian_orders": (4, 2)},
        {"gaussian_sigmas": (0.5, 1.0, 2.0, 3.0, 4.0)},
        {"gaussian_sigmas": (1.0, -1.0, 2.0)},
        {"gaussian_orders": (9,)},
        {"min_stamps": 0},
        {"kernel_half_width": 0},
        {"basis": "spline"},
        {"smoothness": "slope"},
        {"regularisation": -1.0},
        {"regularisation": "strong"},
        {"regularisation": 0.1, "basis": "gaussian"},
        {"smoothness": "gradient", "basis": "gaussian"},
        {"gaussian_orders": (4, 2), "basis": "delta"},
        {"gaussian_sigmas": (1.0, 2.0, 3.0), "basis": "delta"},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AlardLuptonOptions(**wrong)


@pytest.mark.parametrize("fwhm", [1.8, 3.0, 6.0])
def test_spikes_are_told_from_stars(fwhm):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:200, :200]
    data = np.zeros((200, 200))
    for cx, cy in rng.uniform(8, 192, (40, 2)):  # on all places of a pixel, of all brightnesses, blended
        data += rng.uniform(100, 1e5) * np.exp(-4 * np.log(2) * ((x - cx) ** 2 + (y - cy) ** 2) / fwhm**2)
    variance = data / 2 + 25.0
    data += rng.normal(size=data.shape) * np.sqrt(variance)
    usable = rng.random(data.shape) > 0.01
    hit = (rng.random(data.shape) < 0.01) & usable & (variance < 30)
    clean = data.copy()
    data[hit] += rng.uniform(400, 1e4, hit.sum())
    data[~usable] = 1e6
    planes = Planes(data.astype(np.float32), variance.astype(np.float32), usable)
    found = spikes(planes, fwhm)
    assert not (found & ~hit).any()
    # those beside another, or beside a masked pixel, may hide
    assert found[hit].mean() > 0.9
    repaired, where = without_spikes(planes, fwhm)
    np.testing.assert_array_equal(where, found)
    np.testing.assert_array_equal(repaired.data[~found], planes.data[~found])
    # a median of up to eight pixels of an empty sky: below the scatter of one, but for hits that touch
    assert np.median(np.abs(repaired.data[found] - clean[found])) < 1.5 * np.sqrt(27.0)


@pytest.mark.parametrize("name", ["flag", "flags"])
@pytest.mark.parametrize("kind", [int, np.uint8, float])
def test_one_reader_of_flags(name, kind):
    """stdpipe and SExtractor write flags, `detect_sources` flag; a row of an array is read like one of a table."""
    table = Table({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], name: np.array([0, 2, 4], kind)})
    for sources in (table, table.as_array()):
        assert unflagged(sources).tolist() == [True, False, False]
        assert source_positions(sources)[:, 0].tolist() == [1.0, 2.0]  # a neighbour does no harm, saturation does
    if kind is float:
        table[name][0] = np.nan
        assert not unflagged(table).any()
    assert unflagged(Table({"x": [1.0]})).all()


@pytest.mark.parametrize("half", [1, 4])
def test_delta_functions_are_the_pixels_of_the_kernel(half):
    basis = ZeroSumDeltaBasis(half)
    images = basis.images
    assert len(basis) == {1: 9, 4: 69}[half]  # pixels within half + 1/2 of the middle
    np.testing.assert_array_equal(images.sum(axis=(1, 2)), np.eye(1, len(basis))[0])
    rng = np.random.default_rng(half)
    kernel = rng.normal(size=(2 * half + 1,) * 2) * images.any(axis=0)
    coefficients = np.array([kernel[half + v, half + u] for v, u in basis.pixels])
    coefficients[0] = kernel.sum()
    np.testing.assert_allclose(np.tensordot(coefficients, images, 1), kernel, atol=1e-12)
    stamp = rng.normal(size=(2 * half + 6, 2 * half + 9)).astype(">f4")
    expected = [convolve2d(stamp, image, mode="valid") for image in images]
    np.testing.assert_allclose(basis.convolve(stamp), expected, atol=1e-5)


@pytest.mark.parametrize("derivative", [1, 2])
def test_roughness_is_the_sum_of_squared_differences(derivative):
    basis = ZeroSumDeltaBasis(3)
    coefficients = np.random.default_rng(2).normal(size=len(basis))
    kernel = np.where(basis.images.any(axis=0), np.tensordot(coefficients, basis.images, 1), np.nan)
    expected = sum(np.nansum(np.diff(kernel, derivative, axis=axis) ** 2) for axis in (0, 1))
    assert coefficients @ basis.roughness(derivative) @ coefficients == pytest.approx(expected)
    # what has no such differences costs nothing: a level, and for the curvature a slope
    axis = np.arange(-3, 4.0)
    free = np.ones((7, 7)) + (derivative - 1) * (2 * axis[:, None] - axis)
    flat = np.array([free[3 + v, 3 + u] for v, u in basis.pixels])
    flat[0] = (free * basis.images.any(axis=0)).sum()
    assert flat @ basis.roughness(derivative) @ flat == pytest.approx(0, abs=1e-9 * len(basis) * (free**2).max())


def test_a_penalty_is_that_of_the_kernel_at_the_stamps():
    rng = np.random.default_rng(4)
    n_basis, n_pixels, n_stamps = 9, 40, 12
    model, basis = Model(n_basis, 1, 0, 0, vary_sum=False), ZeroSumDeltaBasis(1)
    terms = monomials(*rng.uniform(-1, 1, (2, n_stamps)), 1, (0, 0), (1, 1)).T
    designs, target = rng.normal(size=(n_stamps, n_basis + 1, n_pixels)), rng.normal(size=(n_stamps, n_pixels))
    penalty = np.zeros((n_basis + 1, n_basis + 1))
    penalty[:n_basis, :n_basis] = 30 * basis.roughness(2)
    sums = StampSums(
        np.einsum("smp,snp->smn", designs, designs),
        np.einsum("smp,sp->sm", designs, target),
        (target**2).sum(axis=1),
        np.zeros(n_stamps),
        np.zeros_like(penalty),
        penalty,
    )
    solution = solve(model, terms, sums)
    # plain least squares: for each stamp the rows of its pixels, and rows that ask for no curvature of the kernel there
    values, vectors = np.linalg.eigh(penalty)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    rows, wanted = [], []
    for phi, design, data in zip(terms, designs, target, strict=True):
        for part, right in ((design.T, data), (root, np.zeros(n_basis + 1))):
            rows.append(np.hstack([part[:, :1], *(part[:, [n]] * phi for n in range(1, n_basis)), part[:, -1:]]))
            wanted.append(right)
    expected = np.linalg.lstsq(np.vstack(rows), np.concatenate(wanted), rcond=None)[0]
    np.testing.assert_allclose(solution, expected, atol=1e-9)
