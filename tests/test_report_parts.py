"""The parts of the review page: stretches, cutouts, pictures, the candidate table, single plots and positions."""

from __future__ import annotations

import base64
import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from browser.report_scene import decode_png, make_difference, tan_wcs, value_of
from skyloom.report import images, page, plots, summary
from skyloom.report.candidates import candidate_list
from skyloom.report.planes import SPRITE_PIXELS, collect, cutout_size


@pytest.fixture(scope="module")
def difference():
    return make_difference()


def test_table_values_masks_and_types():
    table = Table(
        {
            "x": [1.0, 2.0, 3.0],
            "y": [4.0, 5.0, 6.0],
            "snr": [5.0, -9.0, np.nan],
            "name": [b"a", b"b", b"c"],
            "good": [True, False, True],
            "shape": np.zeros((3, 2)),
            "ra": [np.nan] * 3,
        },
        masked=True,
    )
    table["name"].mask = [False, True, False]
    made = candidate_list(table)
    columns = {column["key"]: column for column in made.columns}
    assert list(columns) == ["id", "snr", "x", "y", "name", "good"]
    assert columns["snr"]["values"] == [-9.0, 5.0, None]
    assert columns["name"]["values"] == [None, "a", "c"]
    assert columns["good"]["values"] == [False, True, True]
    assert columns["id"]["values"] == [1, 2, 3]
    assert not made.flagged.any()
    np.testing.assert_array_equal(made.xy[:, 0], [2, 1, 3])


def test_flags_are_readable():
    names = ["", "edge", "edge bright_residual", "Not a Flag_name", "masked not_psf_like"]
    table = Table({"x": np.arange(5.0), "y": np.arange(5.0), "flag_text": names})
    made = candidate_list(table)
    column = next(column for column in made.columns if column["key"] == "flag_text")
    assert column["values"] == ["", "edge", "edge, bright residual", "Not a Flag_name", "masked, not psf like"]
    np.testing.assert_array_equal(made.flagged, [False, True, True, True, True])


def test_diagnostics_of_the_pipeline_go_first(difference):
    known = SimpleNamespace(**{**vars(difference), "diagnostics": {"noise_std": 1.0625, "score_std": 1.25}})
    numbers = summary.summarize(known, candidate_list(None), collect(known))
    assert (numbers.pull_std, numbers.score_std) == (1.0625, 1.25)
    said = next(one for one in summary.judge(numbers) if one.text.startswith("Noise"))
    assert said.state == "poor"
    assert "single pixels are right (D/σ 1.062)" in said.text
    assert "1.250" in said.text


def test_ranked_candidates_come_in_that_order():
    table = Table({"x": np.arange(4.0), "y": np.arange(4.0), "snr": [9.0, 8.0, 7.0, 6.0], "rank": [3, 1, 4, 2]})
    np.testing.assert_array_equal(candidate_list(table).xy[:, 0], [1, 3, 0, 2])


def test_stars_with_large_errors_do_not_make_the_map(difference):
    """One half of the stars is good and shifted by 0.1 px to the right; the other is bad and all over the place."""
    rng = np.random.default_rng(2)
    matched = difference.registration.matched.copy()
    good = np.arange(len(matched)) % 2 == 0
    matched["sigma"] = np.where(good, 0.01, 1.0)
    matched["dx"] = np.where(good, 0.1, rng.normal(0, 1, len(matched)))
    matched["dy"] = np.where(good, 0.0, rng.normal(0, 1, len(matched)))
    changed = SimpleNamespace(
        **{**vars(difference), "registration": SimpleNamespace(n_matched=150, rms=0.1, matched=matched)}
    )
    views = collect(changed)
    subject = plots.Subject(changed, views, summary.summarize(changed, candidate_list(None), views))
    assert "a typical one (0.100 px)" in plots.astrometry_map(subject).caption
    x, y, dx, dy = (np.asarray(matched[name])[good] for name in ("x_source", "y_source", "dx", "dy"))
    means = plots._cell_means(difference.image.shape, x, y, dx, dy)
    assert 10 <= len(means) <= 25
    np.testing.assert_allclose(means[:, 2:], [[0.1, 0.0]] * len(means), atol=1e-12)
    assert "circle is the rms of the fit, 0.1000 px" in plots.astrometry(subject).caption


def test_kernels_are_cut_to_what_can_be_seen():
    tile = np.zeros((23, 23))
    tile[11, 11], tile[11, 16], tile[2, 2] = 1.0, 0.02, 0.005
    (((cut,),), side) = plots._core([[tile]])
    assert side == 11
    np.testing.assert_array_equal(cut, tile[6:17, 6:17])


@pytest.mark.parametrize(("count", "panels"), [(1, 4), (500, 4), (3000, 4), (5000, 3), (100000, 4)])
def test_cutout_size_is_odd_and_within_the_budget(count, panels):
    size = cutout_size(4.0, count, panels)
    assert size % 2 == 1
    assert 21 <= size <= 61
    assert size == 21 or size**2 * count * panels <= SPRITE_PIXELS


def reference_cut(plane, x, y, size, fill):
    """Cut pixel by pixel."""
    half = size // 2
    out = np.full((size, size), fill, plane.dtype)
    for j in range(size):
        for i in range(size):
            column, row = round(x) - half + i, round(y) - half + j
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                out[j, i] = plane[row, column]
    return out


@given(
    x=st.floats(-20, 40),
    y=st.floats(-20, 40),
    size=st.sampled_from([1, 3, 7]),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9)),
)
@settings(max_examples=60, deadline=None)
def test_cut_against_reference(x, y, size, shape):
    plane = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(
        images.cut(plane, np.array([[x, y]]), size, -1.0)[0], reference_cut(plane, x, y, size, -1.0)
    )


@given(shape=st.tuples(st.integers(1, 14), st.integers(1, 14)), factor=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_bin_against_reference(shape, factor, seed):
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=shape).astype(np.float32)
    usable = rng.random(shape) < 0.7
    mean, good = images.bin_plane(plane, usable, factor)
    extreme, _ = images.bin_plane(plane, usable, factor, extreme=True)
    assert mean.shape == (-(-shape[0] // factor), -(-shape[1] // factor))
    for j, i in np.ndindex(mean.shape):
        part = (slice(j * factor, (j + 1) * factor), slice(i * factor, (i + 1) * factor))
        inside = plane[part][usable[part]]
        assert good[j, i] == (2 * inside.size >= usable[part].size)
        if inside.size:
            assert mean[j, i] == pytest.approx(inside.mean(dtype=float), rel=1e-5, abs=1e-6)  # float32
            assert extreme[j, i] == inside[np.argmax(np.abs(inside))]


@given(
    values=arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3) | st.just(np.nan)),
    symmetric=st.booleans(),
    softening=st.floats(0.01, 1),
    high=st.floats(0.1, 500),
)
@settings(max_examples=80, deadline=None)
def test_stretch_can_be_inverted(values, symmetric, softening, high):
    stretch = images.Stretch(-high if symmetric else -0.3 * high, high, softening, symmetric, 100)
    level = stretch.apply(values, np.ones(values.shape, bool))
    np.testing.assert_array_equal(level == images.UNUSABLE_LEVEL, np.isnan(values))
    inside = level > 1
    inside &= level < 100
    low, top = (value_of(level[inside] + step, stretch.as_dict()) for step in (-0.5, 0.5))
    margin = 1e-9 * high
    assert ((values[inside] >= low - margin) & (values[inside] <= top + margin)).all()
    finite = values[np.isfinite(values)]
    assert (level[np.isfinite(values)][finite >= high] == 100).all()


@given(
    arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-1e6, 1e6) | st.just(np.nan)
    )
)
@settings(max_examples=80, deadline=None)
def test_quantiles_are_values_of_that_rank(values):
    found = images.quantiles(values, 0, 0.5, 1)
    for row, low, middle, high in zip(values, *found, strict=True):
        good = np.sort(row[np.isfinite(row)])
        if not good.size:
            assert (low, middle, high) == (0, 0, 0)
            continue
        assert (low, high) == (good[0], good[-1])
        assert good[(good.size - 1) // 2] <= middle <= good[good.size // 2]


def test_png_is_what_other_programs_read():
    levels = np.random.default_rng(0).integers(0, 129, (37, 53)).astype(np.uint8)
    uri = images.png_uri(levels)
    np.testing.assert_array_equal(decode_png(uri), levels)
    raw = base64.b64decode(uri.partition(",")[2])
    assert raw.count(b"gAMA") + raw.count(b"sRGB") + raw.count(b"iCCP") == 0
    assert zlib.crc32(b"IEND").to_bytes(4, "big") == raw[-4:]


def test_wcs_in_other_frames_and_with_gaps(difference):
    """Galactic coordinates become RA and Dec; a WCS that ends within the image gives positions where it can."""
    wcs = tan_wcs((300, 360))
    xy = np.array([[10.0, 20.0], [300.0, 200.0]])
    galactic = SimpleNamespace(pixel_to_world=lambda x, y: wcs.pixel_to_world(x, y).galactic)
    # float64 rotations: far below a milliarcsecond
    np.testing.assert_allclose(summary.sky_vectors(galactic, xy), summary.sky_vectors(wcs, xy), atol=1e-12)

    def only_left(x, y):
        return wcs.pixel_to_world(np.where(x < 150, x, np.nan), y)

    made = page._sky(SimpleNamespace(pixel_to_world=only_left), (300, 360))
    known = np.array([value is not None for value in made["sky"]["vectors"]]).reshape(25, 25, 3)
    np.testing.assert_array_equal(known[0, :, 0], np.linspace(-0.5, 359.5, 25) < 150)
    assert made["compass"] is None
    json.dumps(made, allow_nan=False)


def test_wcs_that_fails_costs_only_the_positions():
    wcs = tan_wcs((80, 90))
    wcs.pixel_to_world = None
    assert summary.sky_vectors(wcs, np.zeros((2, 2))) is None
    assert summary.pixel_scale(None, (80, 90)) is None
