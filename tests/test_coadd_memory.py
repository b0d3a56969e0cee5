"""Co-adds within a memory budget, in files, and extended: the same result as one run in memory."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from astropy.io import fits

from skyloom.errors import InputError, ReadError, SkyloomWarning, WriteError
from skyloom.exposure import Exposure, MaskBit
from skyloom.io import read, write_exposure
from skyloom.io.stream import StreamedImage, write_streamed
from skyloom.pipeline import coadd as coadd_aligning
from skyloom.stacking import CoaddOptions, coadd, drizzling, job, members, memory, outliers, read_coadd
from skyloom.stacking.memory import Budget, Scratch, parse_memory
from test_coadd import GRID, PLAIN, SHAPE, add_rays, observe, pointings

PLANES = "SCI", "VAR", "WHT", "DQ", "CTX", "EXPTIME"


def field(n=5, seed=3, **kind):
    rng = np.random.default_rng(seed)
    return [
        add_rays(observe(wcs, rng, exptime=10.0 + k, name=f"e{k}.fits", **kind), rng, 20)[0].replace(
            mask=rng.random(SHAPE) < 0.01
        )
        for k, wcs in enumerate(pointings(n, seed=seed))
    ]


def same_planes(one, other, planes=PLANES):
    for name in planes:
        np.testing.assert_array_equal(one.planes[name].read(), other.planes[name].read(), err_msg=name)


@pytest.mark.parametrize("method", ["clipped", "median", "proper"])
def test_any_budget_gives_the_same_bits(method, tmp_path, monkeypatch):
    monkeypatch.setattr(drizzling, "TILE", 64)
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    exposures = field()
    options = CoaddOptions(method, memory="1GB")
    large = coadd(exposures, options, wcs=GRID)
    # 1.5 MB for one exposure and 0.3 for a tile: all planes lie on disk, and the tiles come one by one
    small = coadd(exposures, replace(options, memory="2.1MB"), wcs=GRID, output=tmp_path / "co.fits")
    same_planes(large, small, [name for name in PLANES if name != "VAR"])
    # the file holds its root
    np.testing.assert_array_equal(np.sqrt(large.planes["VAR"].read()), np.sqrt(small.planes["VAR"].read()))
    assert small.exposure.correlation == large.exposure.correlation
    assert small.contributions == large.contributions
    if method == "clipped":
        np.testing.assert_array_equal(small.covariance.covariance, large.covariance.covariance)
        assert small.exposure.gain == large.exposure.gain
    assert [path.name for path in tmp_path.iterdir()] == ["co.fits"]


def test_tiles_leave_no_seams(monkeypatch):
    exposures = field()
    whole = coadd(exposures, wcs=GRID)
    monkeypatch.setattr(drizzling, "TILE", 64)
    tiles = coadd(exposures, wcs=GRID)
    # the same drops; positions in a tile are rounded otherwise: 1e-13 pixels
    for name in ("SCI", "VAR", "WHT"):
        np.testing.assert_allclose(tiles.planes[name].read(), whole.planes[name].read(), rtol=2e-6, atol=1e-5)
    same_planes(tiles, whole, ["CTX", "DQ"])
    used = whole.covariance.covariance != 0
    assert used.any()
    # pairs across the border of a tile are left out of the averages
    np.testing.assert_allclose(
        tiles.covariance.covariance[:2, :2], whole.covariance.covariance[:2, :2], rtol=0.02, atol=0.02 * 3
    )


def test_too_little_memory_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    exposures = field(2)
    with pytest.raises(InputError, match=r"at least \d+ MiB are needed") as caught:
        coadd(exposures, replace(PLAIN, memory="0.5MB"), wcs=GRID, output=tmp_path / "co.fits")
    assert caught.value.details["needed"] > 500_000
    with pytest.raises(InputError, match="output="):
        coadd(exposures, replace(PLAIN, memory=200_000), wcs=GRID)
    assert not list(tmp_path.iterdir())


def test_memory_in_words():
    assert parse_memory("1GiB") == 2**30
    assert parse_memory(" 1.5 MB ") == 1_500_000
    assert parse_memory("2g") == 2 * 10**9
    assert parse_memory(123) == 123
    assert parse_memory(None) is None
    assert Budget.of("1TiB").free < 2**40
    with pytest.raises(InputError, match="at least") as refused:
        Budget.of("1KiB").check(2**20, "This")
    # what the process has already counts
    Budget.of(refused.value.details["needed"] + 2**22).check(2**20, "This")
    for wrong in ("", "much", "-1GiB", 0, "1 parsec", "1e999"):
        with pytest.raises(InputError, match="memory"):
            CoaddOptions(memory=wrong)


def test_planes_on_disk_and_in_memory_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    with Scratch(tmp_path / "x") as scratch:
        planes = [scratch.plane((2, 9, 7), np.float32, on_disk=where) for where in (False, True)]
        for _ in range(5):
            y, x = np.sort(rng.integers(0, 7, (2, 2)), axis=1)
            window = slice(y[0], y[1] + 1), slice(x[0], x[1] + 1)
            values = rng.normal(size=(2, y[1] - y[0] + 1, x[1] - x[0] + 1))
            for plane in planes:
                plane.write(window, values)
        np.testing.assert_array_equal(planes[0].read(), planes[1].read())
        np.testing.assert_array_equal(planes[0].read(window), planes[1].read(window))
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_a_job_that_fails_leaves_the_old_file(tmp_path):
    exposures = field(3)
    path = tmp_path / "co.fits"
    coadd(exposures, PLAIN, wcs=GRID, output=path)
    before = path.read_bytes()
    calls = []

    def breaks():
        calls.append(1)
        if len(calls) > 1:
            raise OSError("the disk is gone")
        return exposures[0]

    with pytest.raises(OSError, match="gone"):
        coadd([*exposures, breaks], replace(PLAIN, overwrite=True, memory="1GB"), wcs=GRID, output=path)
    with pytest.raises(WriteError, match="exists"):
        coadd(exposures, PLAIN, wcs=GRID, output=path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_sources_that_wait_are_the_same_as_exposures(tmp_path):
    exposures = field(3)
    files = [write_exposure(one, tmp_path / one.name) for one in exposures]
    now = coadd(files, PLAIN, wcs=GRID)
    later = coadd([partial(read, path) for path in files], PLAIN, wcs=GRID)
    same_planes(now, later)
    with pytest.raises(InputError, match="an Exposure is needed"):
        coadd([lambda: 3], PLAIN, wcs=GRID)


# --- files ----------------------------------------------------------------------------------------


def test_streamed_files_are_what_astropy_writes(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        "A": rng.normal(size=(301, 77)).astype(np.float32),
        "B": rng.integers(0, 2**32, (30, 7), dtype=np.uint32),
        "C": rng.integers(-(2**31), 2**31, (3, 40, 11)).astype(np.int32),
        "D": rng.normal(size=(5, 5)),
    }

    def rows(array):
        return lambda plane, start, stop: (array[plane] if array.ndim == 3 else array)[start:stop]

    images = [StreamedImage(name, a.shape, a.dtype, rows(a), fits.Header()) for name, a in arrays.items()]
    table = fits.BinTableHDU.from_columns([fits.Column("N", "J", array=[1, 2])], name="T")
    path = write_streamed(fits.PrimaryHDU(), images, [table], tmp_path / "x.fits")
    with fits.open(path, checksum=True) as hdus:  # a wrong checksum warns, which is an error here
        for name, array in arrays.items():
            assert hdus[name].data.dtype.newbyteorder("=") == array.dtype
            np.testing.assert_array_equal(hdus[name].data, array)
            assert hdus[name].verify_checksum() == 1
            assert hdus[name].verify_datasum() == 1
        assert list(hdus["T"].data["N"]) == [1, 2]
    with pytest.raises(InputError, match="compressed"):
        write_streamed(fits.PrimaryHDU(), images, [], tmp_path / "x.fits.gz")


@pytest.mark.parametrize("name", ["co.fits", "co.fits.gz", "co.fits.fz"])
def test_coadds_come_back_from_files(name, tmp_path):
    result = coadd(field(3), wcs=GRID)
    back = read_coadd(result.write(tmp_path / name))
    same_planes(back, result, [plane for plane in PLANES if plane != "VAR"])
    np.testing.assert_allclose(back.exposure.variance, result.exposure.variance, rtol=2e-7)
    assert back.contributions == result.contributions
    assert back.options == result.options
    assert back.contributors(80, 75) == result.contributors(80, 75)
    np.testing.assert_allclose(back.psf.stamp(80, 75), result.psf.stamp(80, 75), atol=1e-12)
    for field_ in ("gain", "exptime", "zeropoint", "correlation", "unit"):
        assert getattr(back.exposure, field_) == getattr(result.exposure, field_)


# --- resuming -------------------------------------------------------------------------------------


def test_extended_means_are_those_of_one_run(tmp_path):
    exposures = [one.replace(name=f"e{k}") for k, one in enumerate(field(35, sky=100.0))]
    options = replace(PLAIN, flux_scale="exptime")
    whole = coadd(exposures, options, wcs=GRID)
    path = coadd(exposures[:33], options, wcs=GRID, output=tmp_path / "a.fits").path
    both = coadd(exposures[33:], resume=path, output=tmp_path / "b.fits")
    same_planes(both, whole, ["SCI", "WHT", "DQ", "CTX", "EXPTIME"])
    # a root and a square in single precision
    np.testing.assert_allclose(both.exposure.variance, whole.exposure.variance, rtol=3e-7)
    assert both.names == whole.names
    assert both.scales == whole.scales
    assert both.exposure.correlation == pytest.approx(whole.exposure.correlation, rel=1e-4)
    assert both.exposure.gain == pytest.approx(whole.exposure.gain, rel=1e-6)
    # of the blocks without border: there the weights of a block are not the same
    np.testing.assert_allclose(
        both.covariance.covariance[1, 1], whole.covariance.covariance[1, 1], rtol=0.01, atol=0.02
    )


def test_outliers_and_skies_of_new_exposures_are_judged_by_the_coadd():
    rng = np.random.default_rng(9)
    skies = [100.0, 130.0, 90.0, 160.0, 120.0]
    clean = [observe(wcs, rng, sky=sky) for wcs, sky in zip(pointings(5, seed=4), skies, strict=True)]
    exposures, hits = zip(*(add_rays(one, rng) for one in clean), strict=True)
    first = coadd(exposures[:4], wcs=GRID)
    both = coadd(exposures[4:], resume=first)
    # rays of some counts are hidden in the noise of the sky
    assert 0.9 * hits[4].sum() < both.n_rejected[4] < 2.5 * hits[4].sum()
    truth = coadd(clean, replace(PLAIN, background="match"), wcs=GRID)
    inner = np.s_[20:-20, 20:-20]
    pull = (both.exposure.data - truth.exposure.data)[inner] / np.sqrt(truth.exposure.variance[inner])
    # both miss a few pixels of the other; 8 sigma would be a ray
    assert np.abs(pull).max() < 8
    assert abs(np.median(pull)) < 0.1
    assert first.n_exposures == 4  # unchanged


def test_what_cannot_be_extended(tmp_path):
    exposures = field(3)
    first = coadd(exposures[:2], PLAIN, wcs=GRID)
    cases = [
        ({"options": CoaddOptions("median")}, "median"),
        ({"options": replace(PLAIN, weight="none")}, "weight"),
        ({"wcs": GRID}, "grid"),
        ({"options": replace(PLAIN, pixel_scale=0.5)}, "grid"),
        ({"options": replace(PLAIN, rotation=5.0)}, "grid"),
    ]
    for arguments, match in cases:
        with pytest.raises(InputError, match=match):
            coadd(exposures[2:], resume=first, **arguments)
    with pytest.raises(InputError, match="electron"):
        coadd([exposures[2].replace(unit="electron")], resume=first)
    median = coadd(exposures, CoaddOptions("median"), wcs=GRID)
    with pytest.raises(InputError, match="median"):
        coadd(exposures, PLAIN, resume=median)
    path = write_exposure(exposures[0], tmp_path / "single.fits")
    with pytest.raises(InputError, match="no co-add"):
        read_coadd(path)


def test_files_that_would_count_twice_are_refused(tmp_path):
    """Their noise is not independent: a run that is repeated by mistake would give too small errors."""
    files = [write_exposure(one.replace(mask=None), tmp_path / one.name) for one in field(2)]
    with pytest.raises(InputError, match=rf"{files[0].name} is given twice"):
        coadd([files[0], str(files[1]), str(files[0])], PLAIN, wcs=GRID)
    copy, link = tmp_path / "copy.fits", tmp_path / "link.fits"
    copy.write_bytes(files[0].read_bytes())
    link.symlink_to(files[0])
    for same in (copy, link):
        with pytest.raises(InputError, match=rf"{files[0].name} and .*{same.name} are the same file"):
            coadd([*files, same], PLAIN, wcs=GRID)
        with pytest.raises(InputError, match="are the same file"):
            coadd_aligning([*files, same], PLAIN, align="stars")
    with pytest.raises(ReadError, match="nowhere"):
        coadd([*files, tmp_path / "nowhere.fits"], PLAIN, wcs=GRID)
    chips = [fits.ImageHDU(one.data, one.wcs.to_header()) for one in field(2)]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(tmp_path / "chips.fits")
    calls = [partial(read, tmp_path / "chips.fits", ext=ext, gain=1.0, exptime=1.0) for ext in (1, 2)]
    assert coadd(calls, PLAIN, wcs=GRID).n_exposures == 2
    first = coadd(files, PLAIN, wcs=GRID)
    with pytest.warns(SkyloomWarning, match=f"has a {files[1].name} already"):
        coadd(files[1:], PLAIN, resume=first)


def test_skies_are_matched_by_one_thread_of_blas(monkeypatch):
    """Whose sums depend on the number of its threads."""
    from threadpoolctl import threadpool_info

    from skyloom.stacking import sky

    threads = []

    def lstsq(*arguments, **options):
        threads.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return solve(*arguments, **options)

    solve = sky.linalg.lstsq
    monkeypatch.setattr(sky.linalg, "lstsq", lstsq)
    coadd(field(3), CoaddOptions("mean"), wcs=GRID)
    assert set(threads) == {1}


def test_copies_are_found_without_reading_all_files(tmp_path, monkeypatch):
    """Exposures of one camera are of one size: whole files are read only where both of their ends are the same."""
    from skyloom.stacking import members

    read_whole = []

    def digest(path):
        read_whole.append(path.name)
        return file_digest(path)

    file_digest = members.file_digest
    monkeypatch.setattr(members, "file_digest", digest)
    body = bytes(300_000)
    contents = {"a": body, "b": b"b" + body[1:], "c": body[1:] + b"c", "d": body[:150_000] + b"d" + body[150_001:]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    members.check_repeats([tmp_path / name for name in "abcd"])
    assert sorted(read_whole) == ["a", "d"]
    (tmp_path / "e").write_bytes(contents["d"])
    with pytest.raises(InputError, match=r"d and .*e are the same file"):
        members.check_repeats([tmp_path / name for name in "abcde"])
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="a is given twice"):
        members.check_repeats(["~/a", tmp_path / "a"])


def test_names_of_no_files_are_told_by_a_typed_error(tmp_path, monkeypatch):
    from skyloom.stacking import members

    file = tmp_path / "a.fits"
    file.write_bytes(b"not for everyone")
    for name in ("~nobody-of-that-name/a.fits", "a" * 5000 + ".fits"):
        with pytest.raises(ReadError, match="cannot be the name of a file"):
            coadd([file, name], PLAIN, wcs=GRID)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(members, "file_digest", refuse)
    members.check_repeats([file, file])  # reading them tells


def test_command_line_extends(tmp_path, capsys):
    from skyloom.cli import main

    exposures = [one.replace(mask=None) for one in field(4)]
    files = [str(write_exposure(one, tmp_path / one.name)) for one in exposures]
    first, second, whole = (str(tmp_path / name) for name in ("a.fits", "b.fits", "c.fits"))
    how = ["--method", "mean", "--background", "none", "--memory", "2GiB"]
    assert main(["coadd", *files, "-o", whole, *how, "-q"]) == 0
    # the grid of the first run is that of all its exposures: here the same, from a file
    assert main(["coadd", *files[:2], "-o", first, "--reference", files[0], *how]) == 0
    assert main(["coadd", *files[2:], "-o", second, "--resume", first]) == 0
    assert "2 exposures" in capsys.readouterr().out
    result = read_coadd(second)
    assert result.n_exposures == 4
    direct = coadd(files, PLAIN, wcs=files[0])
    same_planes(result, direct, ["SCI", "WHT", "CTX"])
    assert (result.exposure.mask[75, 80] & int(MaskBit.NO_DATA)) == 0
    assert isinstance(result.exposure, Exposure)
    assert main(["coadd", *files, "-o", str(tmp_path / "d.fits"), "--resume", files[0]]) == 1


def test_only_the_tiles_at_work_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(drizzling, "TILE", 64)
    monkeypatch.setattr(memory, "resident_memory", lambda: 0)
    alive, most = weakref.WeakSet(), []

    class Watched(drizzling.TileSums):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(job, "TileSums", Watched)
    coadd(field(), CoaddOptions(memory="2.1MB"), wcs=GRID, output=tmp_path / "co.fits")
    assert len(most) == len(drizzling.tiles_of(SHAPE)) > 4
    assert max(most) == 1


def test_samples_and_medians_are_the_same_with_little_memory(monkeypatch):
    exposures = field(sky=50.0)
    large = coadd(exposures, CoaddOptions("median", memory="1TiB"), wcs=GRID)
    monkeypatch.setattr(members, "_SHARE_OF_SAMPLES", 2**40)  # all of them on disk
    monkeypatch.setattr(outliers, "_MEDIAN_BYTES", 10**5)  # blocks of some 10 pixels
    small = coadd(exposures, CoaddOptions("median", memory="1TiB"), wcs=GRID)
    same_planes(large, small)
    assert large.contributions == small.contributions


@pytest.mark.parametrize("cells", [1, 7, 50, 10**6])
def test_blocks_cover_all_rows_once(cells):
    seen = np.zeros((40, 33), int)
    for block in outliers._blocks((8, 40), 33, cells):
        assert seen[block].size <= max(cells, 1)
        seen[block] += 1
    assert (seen[8:] == 1).all()
    assert (seen[:8] == 0).all()
