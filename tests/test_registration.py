"""`register`: right or an error, never wrong."""

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS

from reference.registration_sim import MORE_REGIMES, REGIMES, Regime, make_images, make_lists, smaller, unrelated_lists
from skyloom.errors import InputError, NoMatchError, NoUsableDataError, TooFewSourcesError
from skyloom.exposure import Exposure
from skyloom.registration import (
    RegistrationOptions,
    detect_sources,
    register,
    register_group,
    register_to_catalogue,
)

LIST_NOISE = 0.03
QUICK_IMAGES = ["mirror, rotation", "distortion 40 px", "3000 hot pixels, 1000 tracks", "seeing 3 and 6 px"]


@pytest.mark.parametrize("name", [n for n in REGIMES if n not in ("8000 stars", "20000 stars", "8000 stars, rotation")])
def test_lists_of_every_regime(name):
    source, template, truth = make_lists(21, REGIMES[name], noise=LIST_NOISE)
    result = register(source, template)
    rms, worst = truth.rms_error(result)
    # the fit averages the noise of both lists over the matched stars; 10 unknowns per axis at most, and 4 sigma
    noise = LIST_NOISE * np.hypot(1, truth.scale) / truth.scale
    assert rms < 4 * noise * np.sqrt(2 * 10 / result.n_matched)
    assert worst < 0.2
    assert result.parity == (-1 if truth.mirrored else 1)
    assert result.n_matched >= 0.5 * min(len(truth.grid()) / 625 * len(template), len(source)) * 0.5
    grid = truth.grid()
    np.testing.assert_allclose(result.source_to_template(result.template_to_source(grid)), grid, atol=1e-6)


@pytest.mark.parametrize("name", QUICK_IMAGES)
def test_images_of_hard_regimes(name):
    source, template, truth = make_images(5, REGIMES[name])
    result = register(source, template)
    rms, worst = truth.rms_error(result)
    assert rms < 0.02
    assert worst < 0.2
    assert result.flux_ratio == pytest.approx(1, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(REGIMES))
def test_images_of_every_regime(name, seed):
    source, template, truth = make_images(1000 + seed, REGIMES[name])
    result = register(source, template)
    rms, worst = truth.rms_error(result)
    # the bar is for 200 stars and more; with fewer the noise counts
    assert rms < (0.02 if result.n_matched >= 200 else 0.1)
    assert worst < 0.2


def test_statistics_are_what_they_say():
    source, template, truth = make_lists(3, Regime(rotation=33.0, depth=0.25), noise=0.05)
    result = register(source, template)
    m = result.matched
    predicted = result.template_to_source(np.column_stack([m["x_template"], m["y_template"]]))
    np.testing.assert_allclose(m["dx"], m["x_source"] - predicted[:, 0], atol=1e-9)
    # both lists carry 0.05 px; the rms of n pairs is known to 1 / sqrt(2 n), 4 sigma, and clipping takes 1 %
    assert result.rms_xy == pytest.approx([0.05 * np.sqrt(2)] * 2, rel=4 / np.sqrt(2 * result.n_matched) + 0.02)
    assert result.rms == pytest.approx(np.hypot(*result.rms_xy))
    assert result.flux_ratio == pytest.approx(0.25, rel=1e-6)
    assert result.rotation == pytest.approx(33.0, abs=0.01)
    assert result.scale == pytest.approx(1.0, abs=1e-4)
    assert result.chance_probability < 1e-100
    grid = truth.grid()
    pull = (result.template_to_source(grid) - truth(grid)) / result.position_error(grid)
    assert np.abs(pull).max() < 6
    text = str(result)
    assert "\n" not in text
    assert f"{result.n_matched} stars" in text
    assert result.plot().get_title(loc="left").startswith(f"{result.n_matched} stars")
    assert result.wcs is None


def test_residual_map_is_the_mean_of_each_cell():
    source, template, _ = make_lists(3, Regime(stars=100))
    result = register(source, template)
    found = result.residual_map(4)
    m = result.matched
    for row in range(4):
        for column in range(4):
            inside = (m["x_source"] + 0.5) // 256 == column
            inside &= (m["y_source"] + 0.5) // 256 == row
            if not inside.any():
                assert np.isnan(found[row, column]).all()
                continue
            mean = [np.average(m[name][inside], weights=m["sigma"][inside] ** -2.0) for name in ("dx", "dy")]
            np.testing.assert_allclose(found[row, column], mean)


def test_result_is_deterministic_and_inputs_stay():
    source, template, _ = make_lists(4, REGIMES["overlap 30%"])
    copies = source.copy(), template.copy()
    one, two = register(source, template), register(source, template)
    np.testing.assert_array_equal(one.transform.coefficients, two.transform.coefficients)
    np.testing.assert_array_equal(one.covariance, two.covariance)
    for table, copy in zip((source, template), copies, strict=True):
        assert all((table[c] == copy[c]).all() for c in copy.colnames)
    with pytest.raises(AttributeError):
        one.method = "else"


def test_order_of_the_rows_does_not_matter():
    source, template, _ = make_lists(4, REGIMES["overlap 50%"])
    shuffled = [t[np.random.default_rng(k).permutation(len(t))] for k, t in enumerate((source, template))]
    grid = np.array([[500.0, 500.0], [800.0, 200.0]])
    np.testing.assert_allclose(
        register(*shuffled).template_to_source(grid), register(source, template).template_to_source(grid), atol=1e-9
    )


@pytest.mark.parametrize("seed", range(30))
def test_unrelated_lists_are_refused(seed):
    with pytest.raises(NoMatchError, match="better than chance") as caught:
        register(*unrelated_lists(7000 + seed))
    # the bound is honest: far from the threshold of 12
    assert caught.value.details["log_odds"] < 8


@pytest.mark.slow
def test_no_false_match_in_a_thousand():
    accepted = []
    for seed in range(1000):
        try:
            accepted.append((seed, str(register(*unrelated_lists(seed)))))
        except NoMatchError:
            continue
    assert accepted == []


def test_same_stars_in_a_regular_grid_are_ambiguous():
    rng = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(20, 1000, 50.0), np.arange(20, 1000, 50.0))
    xy = np.column_stack([x.ravel(), y.ravel()])
    tables = []
    for shift in (0.0, 7.0):
        p = xy + shift + rng.normal(0, 0.05, xy.shape)
        tables.append(
            Table({"x": p[:, 0], "y": p[:, 1], "flux": rng.uniform(1, 2, len(p))}, meta={"shape": (1024, 1024)})
        )
    with pytest.raises(NoMatchError, match="repeats itself"):
        register(*tables)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_few_stars_are_matched_or_refused_but_never_wrong(count):
    matched = 0
    for seed in range(20):
        source, template, truth = make_lists(seed, Regime(stars=count, rotation=None), spurious=0.0, missing=0.0)
        try:
            result = register(source, template)
        except NoMatchError:
            continue
        matched += 1
        assert truth.rms_error(result)[1] < 1.0
    # five stars are enough to be sure, unless their triangles are too flat to tell
    assert matched >= (0 if count == 4 else 15)


def test_tables_need_little():
    source, template, truth = make_lists(9)
    for table in (source, template):
        table.meta.clear()
        table.remove_column("flux")
        table["x"][3] = np.nan
    result = register(source, template, RegistrationOptions(source_shape=(1024, 1024), template_shape=(1024, 1024)))
    assert truth.rms_error(result)[0] < 0.05
    assert np.isnan(result.flux_ratio)
    assert np.isfinite(np.asarray(result.matched["dx"])).all()
    assert "flux_source" not in result.matched.colnames
    with pytest.raises(InputError, match="no column"):
        register(Table({"x": [1.0]}), template)


def wcs(rotation=0.0, offset=(0.0, 0.0), size=1024):
    w = WCS(naxis=2)
    t = np.radians(rotation)
    w.wcs.ctype, w.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 60.0]
    w.wcs.crpix = np.array([size / 2 + 0.5] * 2) + offset
    w.wcs.cd = np.array([[-np.cos(t), np.sin(t)], [np.sin(t), np.cos(t)]]) * 0.4 / 3600
    w.array_shape = (size, size)
    return w


def images_with_wcs(source_wcs):
    source, template, truth = make_images(8, smaller(Regime(rotation=30.0, shift=(0.0, 0.0))))
    n = truth.size
    return source.replace(wcs=source_wcs(n)), template.replace(wcs=wcs(size=n)), truth


def rotated(n, offset=(0.0, 0.0)):
    """WCS of a source that shows the template's sky rotated by 30 degrees."""
    w = wcs(size=n)
    t = np.radians(30.0)
    w.wcs.cd = w.wcs.cd @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    w.wcs.crpix += offset
    return w


@pytest.mark.parametrize("offset", [(0.0, 0.0), (11.0, -17.0)])
def test_wcs_is_used_where_it_is_nearly_right(offset):
    source, template, truth = images_with_wcs(lambda n: rotated(n, offset))
    result = register(source, template)
    assert result.method == "WCS"
    assert truth.rms_error(result)[0] < 0.03


def test_wrong_wcs_is_overruled():
    source, template, truth = images_with_wcs(lambda n: wcs(rotation=170.0, size=n))
    result = register(source, template)
    assert result.method != "WCS"
    assert truth.rms_error(result)[0] < 0.03
    ignored = register(*images_with_wcs(rotated)[:2], RegistrationOptions(use_wcs=False))
    assert ignored.method != "WCS"


def blank(**changes):
    return Exposure(np.random.default_rng(1).normal(100, 5, (64, 64)), name="night3.fits").replace(**changes)


def test_images_without_stars_are_named():
    template = make_images(1, smaller(Regime()))[1]
    with pytest.raises(TooFewSourcesError, match=r"night3\.fits"):
        register(blank(), template)
    with pytest.raises(NoUsableDataError, match=r"night3\.fits"):
        register(blank(mask=np.ones((64, 64), bool)), template)
    with pytest.raises(NoUsableDataError, match=r"night3\.fits"):
        register(template, blank(data=np.full((64, 64), np.nan)))
    with pytest.raises(NoUsableDataError, match="value 3"):
        register(template, blank(data=np.full((64, 64), 3.0)))
    with pytest.raises(TooFewSourcesError, match="3 sources") as caught:
        register(Table({"x": [1.0, 2.0, 3.0], "y": [1.0, 5.0, 2.0]}, meta={"name": "field"}), template)
    assert caught.value.details == {"name": "field", "found": 3, "needed": 4}


def test_options_are_checked():
    for bad in ({"max_order": 6}, {"scale_range": (2.0, 1.0)}, {"min_log_odds": 0.0}):
        with pytest.raises(InputError):
            RegistrationOptions(**bad)


@pytest.mark.parametrize("seed", [51644, 51965, 61166])
def test_bad_columns_are_no_evidence(seed):
    # half of the stars lie on the same three columns in both lists: any shift along them brings matches
    with pytest.raises(NoMatchError) as caught:
        register(*unrelated_lists(seed))
    assert caught.value.details["log_odds"] < 6


def test_lists_on_a_line_or_at_one_place_are_refused():
    x = np.arange(60.0)
    line = Table({"x": 7 * x, "y": np.full(60, 5.0), "flux": 60 - x}, meta={"shape": (500, 500)})
    place = Table({"x": np.full(60, 5.0), "y": np.full(60, 5.0), "flux": 60 - x}, meta={"shape": (500, 500)})
    for one in (line, place):
        with pytest.raises(NoMatchError):
            register(one, line)


def test_columns_of_text_are_named():
    good = Table({"x": np.arange(9.0), "y": np.arange(9.0) ** 2})
    with pytest.raises(InputError, match="column y"):
        register(Table({"x": np.arange(9.0), "y": ["?"] * 9}), good)


def test_copies_are_the_identity_and_nothing_more():
    source, _, _ = make_lists(3, REGIMES["base"])
    result = register(source, source)
    assert result.transform.kind == "similarity"
    assert result.transform.residual is None
    np.testing.assert_allclose(result.template_to_source([[10.0, 900.0]]), [[10.0, 900.0]], atol=1e-9)


def test_stars_that_look_alike_after_a_turn_about_the_centre_are_ambiguous():
    angle = np.radians(np.arange(0, 360, 30))
    rings = [r * np.column_stack([np.cos(angle), np.sin(angle)]) for r in (50, 100, 180, 260, 400)]
    x, y = (np.concatenate(rings) + 499.5).T
    table = Table({"x": x, "y": y, "flux": np.ones(len(x))}, meta={"shape": (1000, 1000)})
    with pytest.raises(NoMatchError, match="Two different transforms"):
        register(table, table)


@pytest.mark.parametrize("seed", range(30))
def test_copies_of_a_few_stars_are_matched(seed):
    """Two of 14 stars may lie as far apart as the control shifts them: that is no bad column."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(13, 16))
    x, y = rng.uniform(0, 200, (2, n))
    table = Table({"x": x, "y": y, "flux": 10 ** rng.uniform(2, 5, n)}, meta={"shape": (200, 200)})
    result = register(table, table)
    assert result.n_matched == n
    np.testing.assert_allclose(result.template_to_source([[7.0, 190.0]]), [[7.0, 190.0]], atol=1e-6)


def test_unrelated_lists_of_few_stars_are_refused():
    for seed in range(24):
        with pytest.raises(NoMatchError) as caught:
            register(*unrelated_lists(seed, 8, 120, 200))
        assert caught.value.details["log_odds"] < 6


@pytest.mark.parametrize(("seed", "level"), [(2, 60), (1, 8)])
def test_saturated_stars_do_not_bend_the_transform(seed, level):
    """Most stars are cut off at some times the noise: few have all of the weight."""
    *images, truth = make_images(seed, smaller(REGIMES["rotation 180"], 512, 60))
    cut = []
    for image in images:
        sky = np.median(image.data)
        top = sky + level * 1.4826 * np.median(np.abs(image.data - sky))
        cut.append(Exposure(np.minimum(image.data, top), saturation=float(top)))
    found = register(*cut)
    grid = truth.grid()
    error = np.sqrt(((found.template_to_source(grid) - truth(grid)) ** 2).sum(axis=1).mean()) / truth.scale
    assert error < 0.2
    # what is claimed is right to a factor of 2: the errors of saturated stars are a guess
    assert 0.5 < error / (found.overlap_error() / truth.scale) < 2


def test_what_is_certain_but_inexact_is_refused():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 500, (2, 12))
    stars = Table({"x": x, "y": y, "flux": 12.0 - np.arange(12), "x_err": np.full(12, 0.6), "y_err": np.full(12, 0.6)})
    stars.meta["shape"] = (500, 500)
    other = stars.copy()
    other["x"], other["y"] = x + rng.normal(0, 0.6, 12), y + rng.normal(0, 0.6, 12)
    with pytest.raises(NoMatchError, match="uncertain by"):
        register(other, stars)
    assert register(other, stars, RegistrationOptions(max_error=1.0)).overlap_error() > 0.2


def test_options_of_another_kind_and_plain_arrays():
    image = make_images(0, smaller(REGIMES["base"], 200, 40))[0]
    from_array, from_exposure = detect_sources(np.array(image.data)), detect_sources(Exposure(np.array(image.data)))
    np.testing.assert_array_equal(from_array["x"], from_exposure["x"])
    with pytest.raises(InputError):
        detect_sources("no such file.fits")
    for function in (register, lambda a, b, options: register_group([a, b], options), register_to_catalogue):
        with pytest.raises(InputError, match="options is a dict"):
            function(from_array, from_array, {})


def test_neighbours_that_fix_no_map_leave_the_polynomial(monkeypatch):
    source, template, _ = make_lists(0, MORE_REGIMES["irregular distortion 3 px"])

    def fail(*arguments, **options):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr("skyloom.registration.search.unmatched_part", lambda *_: 0.1)
    monkeypatch.setattr("skyloom.registration.search.follow", fail)
    assert register(source, template).n_matched > 100
