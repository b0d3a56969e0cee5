"""Candidates: what is found, how well it is measured, and what is called an artefact."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.wcs import WCS

from simulate import ideal_subtraction
from skyloom.detection import CandidateFlag, find_candidates, flag_text, forced_photometry, inject, score
from skyloom.detection import candidates as candidates_module
from skyloom.errors import InputError, NoUsableDataError, SkyloomWarning
from skyloom.exposure import Exposure, MaskBit
from skyloom.psf import ArrayPsf, PsfModel, shift_stamp
from skyloom.psf.analytic import Profile
from skyloom.psf.fit import pixel_blur


def difference(subtraction, psf):
    return SimpleNamespace(**{**vars(subtraction), "score": score(subtraction, psf)})


@pytest.fixture(scope="module")
def scene():
    """A field with stars, galaxies and transients, subtracted with the true kernel."""
    pair, subtraction = ideal_subtraction(seed=13, size=512, n_transients=14, snr=(8.0, 60.0))
    return pair, difference(subtraction, pair.science_psf)


@pytest.fixture(scope="module")
def found(scene):
    return find_candidates(scene[1])


@pytest.fixture(scope="module")
def blank():
    """An empty field, into which the tests put what they need."""
    return ideal_subtraction(seed=12, size=200, n_stars=0, n_galaxies=0, n_transients=0)


def add(blank, *artefacts, mask=None, science=0.0):
    """Return the difference of the empty field with images added."""
    pair, subtraction = blank
    changed = vars(subtraction) | {"image": subtraction.image + sum(artefacts)}
    changed["science"] = pair.science.replace(data=pair.science.data + science, mask=mask)
    if mask is not None:
        changed["mask"] = mask
    return difference(SimpleNamespace(**changed), pair.science_psf)


def star(blank, x, y, flux):
    """Return the image of a point source in the science image's PSF."""
    pair, _ = blank
    image, half = np.zeros(pair.science.shape), pair.science_psf.half
    ix, iy = round(x), round(y)
    image[iy - half : iy + half + 1, ix - half : ix + half + 1] = flux * pair.science_psf.profile(
        x, y, x - ix, y - iy, half
    )
    return image


def nearest(table, x, y):
    """Return the row of the candidate within 3 pixels of a place."""
    distance = np.hypot(table["x"] - x, table["y"] - y)
    assert distance.min() < 3, f"nothing at ({x}, {y}):\n{table}"
    return table[int(np.argmin(distance))]


# what is found


def test_transients_are_found_and_nothing_else(scene, found):
    pair, _ = scene
    near = np.hypot(found["x"][:, None] - pair.transients["x"], found["y"][:, None] - pair.transients["y"])
    bright = forced_snr(scene) > 6.5  # 1.5 sigma above the threshold of 5
    assert bright.sum() >= 10
    assert (near.min(axis=0)[bright] < 1.5).all()
    assert (near.min(axis=1) < 3).all()
    assert found["real"].all()


def forced_snr(scene):
    pair, diff = scene
    return np.asarray(forced_photometry(diff, np.column_stack([pair.transients["x"], pair.transients["y"]]))["snr"])


def test_positions_and_fluxes_agree_with_their_errors(scene, found):
    pair, _ = scene
    pull_x, pull_flux = [], []
    for row in found:
        i = int(np.argmin(np.hypot(row["x"] - pair.transients["x"], row["y"] - pair.transients["y"])))
        pull_x.append((row["x"] - pair.transients["x"][i]) / row["pos_err"])
        pull_x.append((row["y"] - pair.transients["y"][i]) / row["pos_err"])
        pull_flux.append((row["flux"] - pair.transients["flux"][i]) / row["flux_err"])
    # chi-square of n pulls: 99.9 % of draws lie below n + 4 sqrt(2 n)
    for pulls in (pull_x, pull_flux):
        assert np.sum(np.square(pulls)) < len(pulls) + 4 * np.sqrt(2 * len(pulls))


def test_table_is_sorted_and_described(found):
    assert (np.diff(np.abs(found["snr"])) <= 0).all()
    assert list(found["id"]) == list(range(1, len(found) + 1))
    assert sorted(found["rank"]) == list(found["id"])
    assert all(found[name].info.description for name in found.colnames)
    assert found["flux"].unit == "adu"
    assert found["x"].unit == "pix"
    assert found.meta["threshold"] == 5.0


def test_shape_of_point_sources(found):
    bright = found[found["snr"] > 20]
    assert len(bright) >= 3
    np.testing.assert_allclose(bright["fwhm"], found.meta["fwhm"], rtol=0.25)
    assert (bright["ellipticity"] < 0.4).all()
    assert (found["chi2"] < 1.6).all()


def test_science_and_template_flux(blank):
    constant = star(blank, 100, 100, 20000.0)
    new = star(blank, 100, 100, 5000.0)
    row = nearest(find_candidates(add(blank, new, science=constant + new)), 100, 100)
    # 0.5 %: light outside of the stamp; the rest is the noise of the flux
    assert row["science_flux"] == pytest.approx(25000, abs=125 + 4 * row["flux_err"])
    assert row["template_flux"] == pytest.approx(20000, abs=100 + 6 * row["flux_err"])


def test_fading_sources_are_real_and_can_be_left_out(blank):
    diff = add(blank, star(blank, 60, 80, -4000.0), star(blank, 140, 80, 4000.0))
    table = find_candidates(diff)
    assert nearest(table, 60, 80)["sign"] == -1
    assert nearest(table, 60, 80)["real"]
    assert (find_candidates(diff, both_signs=False)["sign"] == 1).all()


def test_one_bright_source_is_one_candidate(blank):
    table = find_candidates(add(blank, star(blank, 100.4, 90.3, 3e5)))
    assert len(table) == 1
    assert table["x"][0] == pytest.approx(100.4, abs=0.02)


def test_faint_neighbour_of_a_bright_source_is_found(blank):
    table = find_candidates(add(blank, star(blank, 100, 100, 40000.0), star(blank, 109, 100, 4000.0)))
    assert len(table) == 2
    assert nearest(table, 109, 100)["flux"] == pytest.approx(4000, rel=0.15)


def test_threshold(scene, found):
    low = find_candidates(scene[1], threshold=3.5)
    assert len(low) > len(found)
    assert (np.abs(low["significance"]) > 3.5).all()


def test_sky_coordinates_and_magnitudes(blank):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 20.0], [100.5, 100.5]
    wcs.wcs.cdelt = [-1e-4, 1e-4]
    diff = add(blank, star(blank, 60.0, 80.0, 10000.0))
    diff.science = diff.science.replace(wcs=wcs, zeropoint=25.0)
    row = nearest(find_candidates(diff), 60, 80)
    expected = wcs.pixel_to_world(row["x"], row["y"])
    assert row["ra"] == pytest.approx(expected.ra.deg)
    assert row["dec"] == pytest.approx(expected.dec.deg)
    assert row["mag"] == pytest.approx(25 - 2.5 * np.log10(row["flux"]))
    assert row["mag_err"] == pytest.approx(1.0857 * row["flux_err"] / row["flux"], rel=1e-3)


def test_empty_difference_gives_an_empty_table_with_all_columns(blank, found):
    table = find_candidates(add(blank), threshold=8.0)
    assert len(table) == 0
    assert table.colnames == found.colnames


# artefacts


def flags_at(blank, x, y, *artefacts, **options):
    return CandidateFlag(int(nearest(find_candidates(add(blank, *artefacts, **options)), x, y)["flags"]))


def test_misregistered_star_is_a_dipole(blank):
    shifted = star(blank, 100.3, 100.0, 50000.0) - star(blank, 100.0, 100.0, 50000.0)
    table = find_candidates(add(blank, shifted, science=star(blank, 100.3, 100.0, 50000.0)))
    assert len(table) == 2
    assert all(flags & CandidateFlag.DIPOLE for flags in table["flags"])


def test_separate_sources_of_opposite_sign_are_no_dipole(blank):
    table = find_candidates(add(blank, star(blank, 90, 100, 4000.0), star(blank, 102, 100, -4000.0)))
    assert not any(flags & CandidateFlag.DIPOLE for flags in table["flags"])


def test_second_moments_that_are_not_the_psfs_are_told(blank):
    """A blob of twice the width is no point source at a S/N where its chi-square does not tell; a faint star is one."""
    pair, _ = blank
    sigma = float(np.sqrt(np.median(pair.science.variance)))
    y, x = np.mgrid[:200, :200].astype(float)
    blob = np.exp(-((x - 60) ** 2 + (y - 60) ** 2) / (2 * 4.2**2))
    table = find_candidates(add(blank, 2.2 * sigma * blob, star(blank, 140, 60, 3000.0)))
    assert nearest(table, 140, 60)["real"]
    wide = nearest(table, 60, 60)
    assert wide["snr"] > 7
    assert "not_psf_like" in wide["flag_text"]


@pytest.mark.parametrize("angle", [0.0, 0.6, 1.6, 2.4])
def test_trails_of_moving_sources_are_told(blank, angle):
    """Seven pixels, not twice the FWHM, long: flagged on purpose, and said to be moving."""
    steps = np.linspace(-3.5, 3.5, 8)
    trail = sum(star(blank, 100 + t * np.cos(angle), 90 + t * np.sin(angle), 1000.0) for t in steps)
    row = nearest(find_candidates(add(blank, trail)), 100, 90)
    assert row["flag_text"].split()[-1] == "trailed"
    assert row["kind"] == "moving"
    assert not row["real"]


def test_the_fainter_epoch_decides_the_kind(blank):
    """A star that both epochs have is variable, on a brighter one's slope, too; beside a star it is a transient."""
    neighbour = star(blank, 60, 60, 60_000.0) + star(blank, 140, 60, 60_000.0)
    both = neighbour + star(blank, 66, 60, 25_000.0)
    change = star(blank, 66, 60, 6000.0) + star(blank, 147, 60, 6000.0)
    table = find_candidates(add(blank, change, science=both + change))
    assert nearest(table, 66, 60)["kind"] == "variable"
    assert nearest(table, 147, 60)["kind"] == "transient"


def test_cosmic_ray_is_too_sharp(blank):
    hit = np.zeros((200, 200))
    hit[70, 71] = 600.0
    assert CandidateFlag.TOO_SHARP in flags_at(blank, 71, 70, hit)


def test_hot_pixel_of_the_template_is_too_sharp(blank):
    hot = np.zeros((200, 200))
    kernel = blank[1].kernel
    hot[70 - kernel.half : 71 + kernel.half, 71 - kernel.half : 72 + kernel.half] = -4000 * kernel.image
    assert CandidateFlag.TOO_SHARP in flags_at(blank, 71, 70, hot)


def test_extended_residual_is_not_psf_like(blank):
    wide = np.zeros((200, 200))
    wide[60:141, 60:141] = 60000 * Profile(11.0).stamp(40)
    assert CandidateFlag.NOT_PSF_LIKE in flags_at(blank, 100, 100, wide)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_bad_rows_and_columns_are_not_psf_like(blank, axis, sign):
    line = np.zeros((200, 200))
    line[100] = 45.0 * sign
    table = find_candidates(add(blank, line if axis == 0 else line.T, star(blank, 140, 140, 9000.0)))
    inside = (np.minimum(table["x"], table["y"]) > 25) & (np.maximum(table["x"], table["y"]) < 175)
    assert table["n_merged"].sum() > 6
    assert (~table["real"]).sum() < 0.8 * table["n_merged"].sum()  # peaks near one another are one row
    kept = table[inside & table["real"]]
    assert [(round(row["x"]), round(row["y"])) for row in kept] == [(140, 140)]


@pytest.mark.parametrize("angle", [0.1, 0.54, 0.9, 1.3, 2.0, 2.5])
def test_faint_trails_are_not_psf_like(blank, angle):
    """A trail of 1.3 sigma in a pixel is a row of peaks above 5 sigma; a source on it remains one."""
    y, x = np.mgrid[:200, :200] - 100.0
    across = y * np.cos(angle) - x * np.sin(angle)
    trail = 20.0 * np.exp(-(across**2) / (2 * 1.9**2))
    table = find_candidates(add(blank, trail, star(blank, 140, 60, 9000.0), star(blank, 100, 100, 9000.0)))
    assert table["n_merged"].sum() > 8
    assert (~table["real"]).sum() < 0.8 * table["n_merged"].sum()  # peaks near one another are one row
    places = {(round(row["x"]), round(row["y"])) for row in table[table["real"]]}
    expected = {(140, 60), (100, 100)}
    # at the border, where half of a trail is seen, and beyond a source, chance may decide
    inside = {(x, y) for x, y in places if 20 < x < 180 and 20 < y < 180}
    assert all(any(np.hypot(x - a, y - b) <= 1.5 for x, y in inside) for a, b in expected)
    assert len(inside) <= 3


def test_a_bleed_trail_is_one_row(blank):
    """What subtraction leaves beside a bleed trail is one entry; a star elsewhere is another."""
    mask = np.zeros((200, 200), np.uint32)
    mask[40:150, 100:102] = MaskBit.SATURATED
    left = np.zeros((200, 200))
    left[40:150, [99, 102]] = np.random.default_rng(4).normal(0, 400, (110, 2))
    table = find_candidates(add(blank, left, star(blank, 40, 60, 9000.0), mask=mask))
    trail = table[np.abs(table["x"] - 100.5) < 8]
    assert trail["n_merged"].max() > 20  # of a trail that is some 30 FWHM long
    assert not trail["real"].any()
    assert len(trail) < 0.3 * trail["n_merged"].sum()
    assert nearest(table, 40, 60)["real"]
    assert nearest(table, 40, 60)["n_merged"] == 1


def test_shapes_that_noise_does_not_leave_are_unknown(blank):
    """A single hot pixel is sharper than any source: it has no width, and says so; it is flagged all the same."""
    hot = np.zeros((200, 200))
    hot[90, 80] = 3000.0
    row = nearest(find_candidates(add(blank, hot)), 80, 90)
    assert np.isnan(row["fwhm"])
    assert np.isnan(row["ellipticity"])
    assert row["flags"] & CandidateFlag.TOO_SHARP


def test_source_on_a_faint_line_is_real(blank):
    line = np.zeros((200, 200))
    line[100] = 8.0
    assert not flags_at(blank, 100, 100, line, star(blank, 100, 100, 9000.0))


def test_short_trail_is_not_psf_like(blank):
    trail = np.zeros((200, 200))
    trail[100, 93:108] = 140.0
    table = find_candidates(add(blank, trail))
    assert len(table) >= 1
    assert all(flags & CandidateFlag.NOT_PSF_LIKE for flags in table["flags"])


def test_residual_in_proportion_to_bright_stars(blank):
    places = [(x, y) for x in (40, 100, 160) for y in (40, 100, 160)]
    stars = [star(blank, x, y, 2e5) for x, y in places]
    errors = [0.01, -0.012, 0.009, 0.011, -0.01, 0.012, -0.009, 0.01, 0.011]
    left = sum(error * image for error, image in zip(errors, stars, strict=True))
    new = star(blank, 70, 130, 2400.0)
    table = find_candidates(add(blank, left, new, science=sum(stars) + new))
    assert table.meta["bright_residual"] == pytest.approx(0.01, rel=0.4)
    for x, y in places:
        assert nearest(table, x, y)["flags"] & CandidateFlag.BRIGHT_RESIDUAL
    assert nearest(table, 70, 130)["real"]  # of the same flux, but on empty sky
    # twenty bright pixels that only one image has are no stars that subtract badly
    hot = np.zeros((200, 200))
    hot[20:180:8, 20] = 8000.0
    table = find_candidates(add(blank, left, new, hot, science=sum(stars) + new + hot))
    assert table.meta["bright_residual"] == pytest.approx(0.01, rel=0.4)
    assert nearest(table, 70, 130)["real"]


@pytest.mark.parametrize(
    ("bit", "flag"),
    [(MaskBit.SATURATED, CandidateFlag.SATURATED), (MaskBit.BAD, CandidateFlag.MASKED)],
)
def test_unusable_pixels_flag_their_neighbours(blank, bit, flag):
    mask = np.zeros((200, 200), np.uint32)
    mask[97:104, 101:106] = bit
    assert flag in flags_at(blank, 100, 100, star(blank, 100, 100, 9000.0), mask=mask)
    assert not flags_at(blank, 60, 100, star(blank, 60, 100, 9000.0), mask=mask)


def test_saturated_pixels_of_the_template_count(blank):
    diff = add(blank, star(blank, 100, 100, 9000.0))
    mask = np.zeros((200, 200), np.uint32)
    mask[100, 105] = MaskBit.SATURATED
    diff.template = diff.template.replace(mask=mask)
    assert nearest(find_candidates(diff), 100, 100)["flags"] == CandidateFlag.SATURATED


@pytest.mark.parametrize("border", ["array", "mask"])
def test_edge(blank, border):
    mask = np.zeros((200, 200), np.uint32)
    x = 2 if border == "array" else 52
    if border == "mask":
        mask[:, :50] = MaskBit.NO_DATA
    image = np.roll(star(blank, 100, 100, 20000.0), x - 100, axis=1)
    image[:, 150:] = 0
    assert CandidateFlag.EDGE in flags_at(blank, x, 100, image, mask=mask)


def test_flag_text():
    assert flag_text(CandidateFlag.DIPOLE | CandidateFlag.EDGE) == "dipole edge"
    assert flag_text(0) == ""
    assert all(flag.name.lower() in flag_text(sum(CandidateFlag)) for flag in CandidateFlag)


# photometry and injection


def test_forced_photometry_is_unbiased_and_its_errors_are_right(blank):
    pair, subtraction = blank
    diff = difference(subtraction, pair.science_psf)
    axis = np.arange(25.0, 176.0, 6.0)
    xy = np.array([(x + 0.3, y - 0.4) for x in axis for y in axis])
    table = forced_photometry(diff, xy)
    # 676 positions 6 px apart, PSF FWHM 4.2: nearly independent, 2.7 % standard error of the std
    assert np.std(table["snr"]) == pytest.approx(1, abs=0.12)
    assert np.mean(table["snr"]) == pytest.approx(0, abs=0.15)


def test_forced_flux_is_that_of_the_candidate(scene, found):
    forced = forced_photometry(scene[1], np.column_stack([found["x"], found["y"]]))
    alone = [np.hypot(found["x"] - x, found["y"] - y)[np.arange(len(found)) != i].min() > 40
             for i, (x, y) in enumerate(found.iterrows("x", "y"))]  # fmt: skip
    assert sum(alone) >= 3
    np.testing.assert_allclose(forced["flux"][alone], found["flux"][alone], rtol=1e-6)
    np.testing.assert_allclose(forced["flux_err"], found["flux_err"], rtol=1e-6)


def test_forced_photometry_where_there_is_nothing(blank):
    mask = np.zeros((200, 200), np.uint32)
    mask[60:140, 60:140] = MaskBit.BAD
    table = forced_photometry(add(blank, mask=mask), [(-50, 3), (100, 100), (np.nan, 1), (20, 20)])
    np.testing.assert_array_equal(np.isfinite(table["flux"]), [False, False, False, True])
    assert list(table["coverage"][:3]) == [0, 0, 0]
    with pytest.raises(InputError, match=r"\(N, 2\)"):
        forced_photometry(add(blank), np.zeros((2, 3)))


def test_injected_sources_have_flux_noise_and_variance():
    psf = ArrayPsf(Profile(4.0).stamp(12))
    exposure = Exposure(np.zeros((60, 60)), np.ones((60, 60)), gain=0.5)
    quiet = inject(exposure, psf, [30.25], [28.75], [1e4])
    assert quiet.data.sum() == pytest.approx(1e4, rel=1e-4)
    np.testing.assert_array_equal(quiet.variance, exposure.variance)
    np.testing.assert_allclose(quiet.data[29 - 12 : 29 + 13, 30 - 12 : 30 + 13],
                               1e4 * shift_stamp(psf.stamp(0, 0), 0.25, -0.25), atol=1e-3)  # fmt: skip
    totals = [inject(exposure, psf, 30, 30, 1e4, rng=np.random.default_rng(i)).data.sum() for i in range(200)]
    assert np.mean(totals) == pytest.approx(1e4, rel=0.005)
    # photon noise of 1e4 / gain; 200 draws know it to 5 %
    assert np.std(totals) == pytest.approx(np.sqrt(1e4 / 0.5), rel=0.2)
    noisy = inject(exposure, psf, 30, 30, 1e4, rng=np.random.default_rng(1))
    assert (noisy.variance - 1).sum() == pytest.approx(1e4 / 0.5, rel=1e-4)


def test_injected_sources_may_hang_over_the_border():
    psf = ArrayPsf(Profile(4.0).stamp(12))
    exposure = Exposure(np.zeros((40, 50)), gain=1.0)
    full = psf.stamp(0, 0)
    # a quarter of a PSF centred on the corner pixel, the row and column of its middle included
    assert inject(exposure, psf, 0, 0, 1.0).data.sum() == pytest.approx(full[12:, 12:].sum(), rel=1e-5)
    assert inject(exposure, psf, 49, 39, 1.0).data.sum() == pytest.approx(full[:13, :13].sum(), rel=1e-5)
    assert inject(exposure, psf, [500, -13], [0, 5], [1.0, 1.0]).data.sum() == 0


def test_injection_errors():
    psf, exposure = ArrayPsf(np.ones((3, 3))), Exposure(np.zeros((9, 9)))
    with pytest.raises(InputError, match="no gain"):
        inject(exposure, psf, 4, 4, 10, rng=np.random.default_rng(1))
    with pytest.raises(InputError, match="must be the same"):
        inject(exposure, psf, [4, 5], 4, 10)
    with pytest.raises(InputError, match="not finite"):
        inject(exposure, psf, np.nan, 4, 10)


def test_errors_follow_the_scatter_of_the_score(blank):
    diff = add(blank, star(blank, 100, 100, 9000.0))
    expected = nearest(find_candidates(diff), 100, 100)
    wrong = SimpleNamespace(**{**vars(diff), "score": diff.score.rescaled(0.5)})  # errors too small by half
    row = nearest(table := find_candidates(wrong), 100, 100)
    assert table.meta["error_scale"] == pytest.approx(2, rel=0.05)
    assert row["flux_err"] == pytest.approx(expected["flux_err"], rel=0.05)
    assert row["significance"] == pytest.approx(expected["significance"], rel=0.05)
    assert find_candidates(wrong, calibrate=False).meta["error_scale"] == 1
    assert len(find_candidates(wrong, calibrate=False)) > 10


# errors


@pytest.mark.parametrize("threshold", [0, -1, np.nan])
def test_bad_threshold(blank, threshold):
    with pytest.raises(InputError, match="above 0"):
        find_candidates(add(blank), threshold=threshold)


def test_nothing_usable(blank):
    with pytest.raises(NoUsableDataError, match="no usable pixel"):
        find_candidates(add(blank, mask=np.full((200, 200), np.uint32(MaskBit.BAD))))


def test_too_many_peaks_are_a_warning(blank, monkeypatch):
    monkeypatch.setattr(candidates_module, "MAX_CANDIDATES", 3)
    with pytest.warns(SkyloomWarning, match="only the 3 most significant"):
        assert len(find_candidates(add(blank), threshold=2.0)) <= 3


def test_fluxes_of_narrow_stars_are_right_at_any_phase(blank):
    oversampling = 4
    fine = pixel_blur(Profile(1.5, 3.5).stamp(9, oversampling=oversampling), oversampling, mode="nearest")
    fine /= fine[::oversampling, ::oversampling].sum()
    psf = PsfModel(fine[None], 0, blank[1].image.shape, oversampling=oversampling)
    # the noise is 0.1 % of the flux
    places, flux = [(40.0, 50.0), (90.5, 50.5), (140.25, 60.5), (60.5, 140.0), (120.4, 150.6)], 1e6
    image = np.zeros(blank[1].image.shape)
    for x, y in places:
        ix, iy = round(x), round(y)
        image[iy - 9 : iy + 10, ix - 9 : ix + 10] += flux * psf.stamp_at(x, y, x - ix, y - iy)
    changed = vars(blank[1]) | {"image": blank[1].image + image}
    scored = difference(SimpleNamespace(**changed), psf)
    table = find_candidates(scored)
    for (x, y), forced in zip(places, forced_photometry(scored, places), strict=True):
        row = nearest(table, x, y)
        # pixel-shifted stamps are 1 to 2 % off half-way between pixels
        assert row["flux"] == pytest.approx(flux, rel=2e-3)
        assert row["flux"] == pytest.approx(forced["flux"], rel=1e-3)
        assert np.hypot(row["x"] - x, row["y"] - y) < 3e-3
