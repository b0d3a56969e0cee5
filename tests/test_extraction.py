"""Extraction of sources: buffers of `sep` that are too small for what stands above the threshold."""

import numpy as np
import pytest
import sep

from skyloom.errors import InputError
from skyloom.extraction import PIXELS, extract


@pytest.fixture
def limits():
    return sep.get_extract_pixstack(), sep.get_sub_object_limit()


def halo(side=620):
    """A halo above the threshold everywhere, with two stars: more pixels of one object than sep's buffer holds."""
    y, x = np.mgrid[:side, :side]
    plane = np.full((side, side), 20.0, np.float32)
    for y0, x0 in ((100, 200), (400, 150)):
        plane += np.float32(1000) * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 8).astype(np.float32)
    assert plane.size > PIXELS
    return plane


def test_buffers_grow_and_are_as_before(limits):
    found = extract(halo(), 5.0, err=1.0, minarea=5, deblend_cont=0.001)
    for y0, x0 in ((100, 200), (400, 150)):
        assert np.hypot(found["x"] - x0, found["y"] - y0).min() < 0.5
    assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == limits


def test_failures_are_typed(monkeypatch, limits):
    def fail(*_, **__):
        raise Exception("internal pixel buffer full")

    monkeypatch.setattr(sep, "extract", fail)
    with pytest.raises(InputError, match=r"extraction of a\.fits failed: internal pixel buffer full\. Raise"):
        extract(halo(), 5.0, name="a.fits")
    assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == limits
