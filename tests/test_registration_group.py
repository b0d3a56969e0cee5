"""Groups of images: one frame, and the joint fit."""

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.registration_sim import Truth
from skyloom.errors import InputError, RegistrationError
from skyloom.exposure import Exposure
from skyloom.registration import RegistrationOptions, Transform, register_group
from skyloom.registration.fit import StarList
from skyloom.registration.group import _common_stars

SIZE, NOISE = 600, 0.05


def field(seed=1, count=1100):
    """Return stars of a wide field, and their fluxes."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-500, SIZE + 700, (count, 2)), 1 + rng.pareto(0.8, count)


def views(truths, seed=1, noise=NOISE):
    """Return the tables of what several images show of one field."""
    xy, flux = field(seed)
    rng = np.random.default_rng(seed + 100)
    tables = []
    for number, truth in enumerate(truths):
        p = truth(xy)
        inside = ((p > 0) & (p < SIZE - 1)).all(axis=1) & (rng.random(len(p)) > 0.1)
        p = p[inside] + rng.normal(0, noise, (int(inside.sum()), 2))
        table = Table({"x": p[:, 0], "y": p[:, 1], "flux": flux[inside] * (1 + number)})
        table["x_err"] = table["y_err"] = np.full(len(p), noise)
        table.meta = {"shape": (SIZE, SIZE), "name": f"image {number}"}
        tables.append(table)
    return tables


def truths(count, shift=40.0):
    rng = np.random.default_rng(count)
    rest = [
        Truth(
            rng.uniform(0.9, 1.1),
            rng.uniform(0, 360),
            bool(rng.random() < 0.3),
            rng.uniform(-shift, shift, 2),
            size=SIZE,
        )
        for _ in range(count - 1)
    ]
    return [Truth(shift=(0.0, 0.0), size=SIZE), *rest]


def errors(group, known):
    return [known[i].rms_error(one)[0] for i, one in enumerate(group) if one is not None]


def test_all_to_one_frame_with_progress():
    known, seen = truths(4), []
    tables = views(known)
    group = register_group(tables, reference=0, progress=lambda *call: seen.append(call))
    assert group[0] is None
    assert group.reference == 0
    assert len(group) == 4
    # 200 stars with the noise of both, four to six unknowns an axis, corners
    assert max(errors(group, known)) < 0.05
    assert [call[1] for call in seen] == list(range(8))
    assert {call[2] for call in seen} == {8}
    assert "3 images registered" in str(group)
    assert group.stars is None
    # by default the deepest
    assert register_group(tables).reference == int(np.argmax([len(t) for t in tables]))


def test_joint_fit_averages_the_stars():
    known = truths(9)
    tables = views(known)
    pairs = register_group(tables, reference=0)
    together = register_group(tables, reference=0, joint=True)
    single, joint = np.mean(errors(pairs, known)), np.mean(errors(together, known))
    # where all overlap, a transform's error is its own image's and that of the frame, which the reference defines
    assert joint < 1.05 * single
    # residuals of a pair: both lists' noise; of the joint fit: nearly that of the image alone
    assert np.median([r.rms_xy[0] for r in pairs if r]) == pytest.approx(NOISE * np.sqrt(2), rel=0.1)
    assert np.median([r.rms_xy[0] for r in together if r]) == pytest.approx(NOISE, rel=0.12)
    assert together.rounds < 12
    stars = together.stars
    xy, flux = field()
    distance = np.hypot(*(np.column_stack([stars["x"], stars["y"]])[:, None] - xy).transpose(2, 0, 1))
    star = distance.argmin(axis=1)
    often = np.asarray(stars["n_images"]) >= 6
    # the mean of six to nine; the frame's own error besides
    assert np.sqrt((distance.min(axis=1)[often] ** 2).mean() / 2) < 0.7 * NOISE
    assert np.median(np.asarray(stars["rms"])[often]) == pytest.approx(NOISE, rel=0.15)
    np.testing.assert_allclose(np.asarray(stars["flux"]) / flux[star], 1.0, rtol=1e-6)
    assert (np.diff(stars["flux"]) <= 0).all()


def test_chain_reaches_images_that_share_nothing_with_the_reference():
    known = [Truth(shift=(s, 0.0), size=SIZE) for s in (0.0, -330.0, -650.0)]
    tables = views(known, seed=4)
    pairs = register_group(tables, reference=0)
    together = register_group(tables, reference=0, joint=True)
    assert pairs[2] is None
    assert 2 in pairs.errors
    assert together[2] is not None
    assert not together.errors
    own = np.array([[100.0, 100.0], [500.0, 300.0], [300.0, 550.0]])
    frame = own + np.array([650.0, 0.0])
    np.testing.assert_allclose(together[2].template_to_source(frame), known[2](frame), atol=0.3)


def test_images_that_do_not_match_are_named():
    known = truths(3)
    tables = [*views(known), views(truths(2), seed=77)[1], Exposure(np.random.default_rng(1).normal(0, 1, (64, 64)))]
    for joint in (False, True):
        group = register_group(tables, reference=0, joint=joint)
        assert sorted(group.errors) == [3, 4]
        assert group[3] is None
        assert group[4] is None
        assert "2 refused" in str(group)
    with pytest.raises(RegistrationError, match="None of the 2"):
        register_group([tables[0], tables[3]], reference=0)
    with pytest.raises(RegistrationError):
        register_group(tables, reference=4)
    with pytest.raises(InputError, match="0 to 4"):
        register_group(tables, reference=5)
    with pytest.raises(InputError, match="no images"):
        register_group([])


def test_reference_that_is_none_of_the_images():
    known = truths(3)
    tables = views(known)
    group = register_group(tables[1:], RegistrationOptions(max_order=1), reference=tables[0], joint=True)
    assert group.reference is None
    assert all(one is not None for one in group)
    assert max(k.rms_error(one)[0] for k, one in zip(known[1:], group, strict=True)) < 0.05


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_common_stars_are_weighted_means(seed):
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(np.arange(5) * 20.0, np.arange(4) * 20.0), axis=-1).reshape(-1, 2)
    images, measured = [], {k: [] for k in range(len(places))}
    for _ in range(3):
        shown = rng.permutation(len(places))[: rng.integers(1, len(places))]
        error = rng.uniform(0.01, 0.2, len(shown))
        xy = places[shown] + np.clip(rng.normal(0, 0.1, (len(shown), 2)), -0.4, 0.4)
        images.append((Transform.linear(np.eye(2)), StarList(xy, error, (100, 100), shown), np.ones(len(shown))))
        for k, p, e in zip(shown, xy, error, strict=True):
            measured[int(k)].append((p, e))
    table = _common_stars(images)
    known = [k for k, values in measured.items() if values]
    assert len(table) == len(known)
    xy = np.column_stack([table["x"], table["y"]])
    for k in known:
        p, e = (np.array(part) for part in zip(*measured[k], strict=True))
        row = int(np.hypot(*(xy - places[k]).T).argmin())
        np.testing.assert_allclose(xy[row], np.average(p, axis=0, weights=e**-2.0))
        assert table["n_images"][row] == len(p)
        assert table["x_err"][row] == pytest.approx((e**-2.0).sum() ** -0.5)
        assert np.isnan(table["rms"][row]) == (len(p) == 1)
