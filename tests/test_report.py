"""The review page without a browser: it is whole, self-contained, safe and says what the data say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table

import skyloom
from browser.report_scene import decode_png, make_candidates, make_difference, value_of
from simulate import simulate_pair
from skyloom.errors import WriteError
from skyloom.exposure import Exposure, MaskBit
from skyloom.report import images, page, summary, write_report
from skyloom.report.candidates import candidate_list
from skyloom.report.planes import collect

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Document(HTMLParser):
    """Collects elements, text and ids, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.ids, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def data_of(html):
    return json.loads(re.search(r'id="report-data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def difference():
    return make_difference()


@pytest.fixture(scope="module")
def candidates(difference):
    return make_candidates(difference, 30)


@pytest.fixture(scope="module")
def html(difference, candidates):
    return page.render(difference, candidates)


def test_page_is_well_formed(html):
    document = Document(html)
    assert len(document.ids) == len(set(document.ids))
    labelled = {attributes.get("for") for attributes in document.all("output")} | set(document.ids)
    assert {
        attributes["aria-labelledby"] for attributes in document.all("section") if "aria-labelledby" in attributes
    } <= labelled
    assert all("aria-label" in attributes for _, attributes in document.elements if attributes.get("role") == "img")
    references = re.findall(r'(?:xlink:)?href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert {first or second for first, second in references} <= set(document.ids)


def test_page_is_self_contained(html):
    document = Document(html)
    for _, attributes in document.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not re.search(r"url\((?!#|data:)|@import|fetch\(|XMLHttpRequest|WebSocket|importScripts", html)
    policy = next(a["content"] for a in document.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "http" not in policy
    # names of namespaces are no addresses that are loaded; there must be no others
    assert set(re.findall(r"https?://[^\"'\s<>)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_policy_allows_this_script_only(html):
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html


def test_same_input_gives_same_bytes(difference, candidates, html):
    assert page.render(difference, candidates) == html


def test_inputs_are_not_changed(difference, candidates):
    before = [np.array(plane) for plane in (difference.image, difference.variance, difference.mask, difference.matched)]
    table = candidates.copy()
    page.render(difference, candidates)
    for plane, saved in zip(
        (difference.image, difference.variance, difference.mask, difference.matched), before, strict=True
    ):
        np.testing.assert_array_equal(plane, saved)
    assert candidates.colnames == table.colnames
    assert all((candidates[name] == table[name]).all() for name in ("id", "x", "snr", "flag_text"))


HOSTILE = '<script>alert("1")</script>&<!--\'"></title></style>\u2028{{ 7*7 }}'


def test_hostile_names_are_text():
    header = {"OBJECT": HOSTILE, "FILTER": '" onload="alert(1)', "DATE-OBS": "</script><img src=x onerror=alert(1)>"}
    difference = make_difference((90, 80), n_stars=20, science_name=HOSTILE, header=header)
    difference.diagnostics[HOSTILE] = HOSTILE
    difference.diagnostics["timings"][HOSTILE] = 1.0
    difference.parameters[HOSTILE] = HOSTILE
    candidates = make_candidates(difference, 5)
    candidates["flag_text"] = [HOSTILE] * 5
    candidates[HOSTILE] = [HOSTILE] * 5
    candidates["flux"].description = candidates["flux"].unit = None
    candidates["snr"].description = HOSTILE
    text = page.render(difference, candidates)
    document = Document(text)
    assert len(document.all("script")) == 2
    assert not document.all("img")
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)
    assert document.words.count("<script>alert") >= 3
    assert "49" not in re.findall(r"<h1>.*?</h1>", text, re.DOTALL)[0]
    data = data_of(text)
    assert data["science"] == HOSTILE
    assert next(column for column in data["columns"] if column["key"] == HOSTILE)["values"] == [HOSTILE] * 5


def test_numbers_agree_with_the_inputs(difference, candidates, html):
    document = Document(html)
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)", html))
    assert facts["Matched stars"] == "150"
    assert facts["Registration rms"] == f"{difference.registration.rms:.3f} px"
    assert f"{difference.registration.rms * 0.8:.3f}″" in document.words  # 0.8 arcsec per pixel
    assert facts["Kernel sum"] == "1.2340"
    assert facts["Stamps used"] == "35 of 40"
    assert facts["Run time"] == "2.25 s"
    assert facts["FWHM"] == "3.10 px"  # the seeing, as the command prints it, not the width of the PSF
    assert facts["Template FWHM"] == "2.90 px"
    usable = difference.mask & ~np.uint32(MaskBit.TEMPLATE | MaskBit.SPREAD) == 0
    pull = (difference.image / np.sqrt(difference.variance))[usable]
    # robust and plain deviation of N Gaussian values agree to a few times 1.2 / sqrt(N)
    assert float(facts["Std of D/σ"]) == pytest.approx(
        pull[np.abs(pull) < 5].std(), abs=5e-4 + 4 * 1.2 / np.sqrt(pull.size)
    )
    flagged = int((candidates["flags"] != 0).sum())
    assert f"{30 - flagged} candidates (and {flagged} flagged as artefacts)." in document.words
    assert "Noise calibrated" in document.words
    assert "Registration good" in document.words


@pytest.mark.parametrize(("factor", "word"), [(1.4, "Noise underestimated"), (0.7, "Noise overestimated")])
def test_noise_that_is_not_calibrated_is_called_so(factor, word):
    difference = make_difference((150, 140), n_stars=30, noise_factor=factor)
    views = collect(difference)
    numbers = summary.summarize(difference, candidate_list(None), views)
    # the quoted noise is `factor` times too small, so D/sigma is `factor` times too wide: 4 sigma of 21 000 pixels
    assert numbers.pull_std == pytest.approx(factor, rel=4 * 1.2 / np.sqrt(150 * 140))
    assert any(one.text.startswith(word) for one in summary.judge(numbers))


def test_noise_that_the_candidates_allow_for_is_no_alarm(candidates):
    difference = make_difference((150, 140), n_stars=30, noise_factor=1.4)
    table = candidates.copy()
    table.meta["error_scale"] = 1.4
    numbers = summary.summarize(difference, candidate_list(table), collect(difference))
    (noise,) = (one for one in summary.judge(numbers) if one.text.startswith("Noise"))
    assert noise.state == "fair"
    assert noise.text.endswith("allow for it (errors x 1.4).")


@pytest.mark.parametrize(("rms", "word"), [(0.05, "good"), (0.3, "fair"), (0.6, "poor")])
def test_registration_is_judged_by_the_fwhm(difference, rms, word):
    registration = SimpleNamespace(n_matched=20, rms=rms, matched=difference.registration.matched)
    changed = SimpleNamespace(**{**vars(difference), "registration": registration})
    numbers = summary.summarize(changed, candidate_list(None), collect(changed))
    assert any(one.text.startswith(f"Registration {word}") for one in summary.judge(numbers))


def test_frames_hold_the_pixels(difference, html):
    frames = {frame["key"]: frame for frame in data_of(html)["frames"]}
    planes = {
        "science": difference.science.data,
        "template": difference.matched,
        "difference": difference.image,
        "score": difference.score.significance,
    }
    assert list(frames) == list(planes)
    assert frames["science"]["stretch"] == frames["template"]["stretch"]
    for key, plane in planes.items():
        levels, stretch = decode_png(frames[key]["uri"]), frames[key]["stretch"]
        assert levels.shape == plane.shape
        inside = (levels > 1) & (levels < stretch["levels"])
        low, high = (value_of(levels[inside] + step, stretch) for step in (-0.5, 0.5))
        # float32 planes: the value may lie on the edge of its level
        margin = 1e-5 * (stretch["high"] - stretch["low"])
        assert ((plane[inside] >= low - margin) & (plane[inside] <= high + margin)).all()
        assert inside.mean() > 0.5
    masked = decode_png(frames["difference"]["uri"]) == images.UNUSABLE_LEVEL
    np.testing.assert_array_equal(masked, (difference.mask != 0))
    np.testing.assert_array_equal(decode_png(frames["science"]["uri"]) == 0, ~difference.science.usable)


def test_cutouts_are_those_of_the_candidates(difference, candidates, html):
    data = data_of(html)
    sprites = data["sprites"]
    size = sprites["size"]
    columns = {column["key"]: column["values"] for column in data["columns"]}
    assert np.all(np.diff(np.abs(columns["snr"])) <= 0)
    assert sprites["count"] == 30
    assert sprites["panels"] == ["Science", "Matched template", "Difference", "Score"]
    sheet = decode_png(sprites["uris"][0])[::-1]
    assert sheet.shape == (30 * size, 4 * size)
    for k in range(30):
        x, y = round(columns["x"][k]), round(columns["y"][k])
        panel = sheet[k * size : (k + 1) * size, 2 * size : 3 * size][::-1]
        cut = images.cut(difference.image, np.array([[x, y]]), size, 0.0)[0]
        seen = images.cut(difference.mask == 0, np.array([[x, y]]), size, False)[0]
        np.testing.assert_array_equal(panel == 0, ~seen)
        # a stretch is monotonic: order of levels is order of values
        order = np.argsort(cut[seen], kind="stable")
        assert np.all(np.diff(panel[seen][order].astype(int)) >= 0)


def test_sky_positions_from_the_grid_are_those_of_the_wcs(difference, html):
    data = data_of(html)
    sky = data["sky"]
    vectors = np.array(sky["vectors"]).reshape(sky["ny"], sky["nx"], 3)
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 1, (50, 2)) * (np.array(difference.image.shape[::-1]) - 1)
    g = (xy - [sky["x0"], sky["y0"]]) / [sky["dx"], sky["dy"]]
    i, f = np.floor(g).astype(int), g - np.floor(g)
    near = sum(
        vectors[i[:, 1] + b, i[:, 0] + a] * (np.abs(1 - a - f[:, 0]) * np.abs(1 - b - f[:, 1]))[:, None]
        for a in (0, 1)
        for b in (0, 1)
    )
    true = summary.sky_vectors(difference.wcs, xy)
    arcsec = np.rad2deg(np.linalg.norm(near / np.linalg.norm(near, axis=1, keepdims=True) - true, axis=1)) * 3600
    assert arcsec.max() < 0.01 * data["pixelScale"]
    assert data["pixelScale"] == pytest.approx(0.8, rel=1e-4)
    assert data["compass"]["N"] == pytest.approx([0, 1], abs=1e-3)
    assert data["compass"]["E"] == pytest.approx([-1, 0], abs=1e-3)


def test_plots_are_all_there_and_say_their_numbers(difference, html):
    document = Document(html)
    names = {attributes["id"] for attributes in document.all("figure")}
    assert names == {
        f"plot-{name}"
        for name in (
            "noise",
            "star-residuals",
            "astrometry",
            "astrometry-map",
            "photometry",
            "kernel",
            "stamps",
            "fwhm",
        )
    }
    matched = difference.registration.matched
    ratio = np.median(matched["flux_source"] / matched["flux_template"])
    found = re.search(r"Median ([\d.]+), robust scatter ([\d.]+)%", document.words)
    assert float(found[1]) == pytest.approx(ratio, abs=2e-3)  # nearest rank of 150 values that scatter by 1 %
    assert float(found[2]) == pytest.approx(1.0, abs=4 * 1.2 / np.sqrt(150))
    assert f"mean ({matched['dx'].mean():+.4f}, {matched['dy'].mean():+.4f}) px" in document.words
    assert "35 of 40 stamps" in document.words
    assert not re.search(r"#0(\d)(0\1){2}", html), "a placeholder colour is left"


@pytest.mark.parametrize("missing", [None, "attribute"])
def test_optional_parts_may_be_missing(missing):
    full = make_difference((90, 80), n_stars=20, wcs=False)
    optional = ("score", "matched", "psf", "kernel", "registration", "stamps", "diagnostics", "parameters", "wcs")
    kept = {name: value for name, value in vars(full).items() if name not in optional}
    if missing is None:
        kept |= dict.fromkeys(optional)
    text = page.render(SimpleNamespace(**kept), make_candidates(full, 4))
    document = Document(text)
    data = data_of(text)
    assert [frame["key"] for frame in data["frames"]] == ["science", "template", "difference"]
    assert data["sky"] is None
    assert "ra" not in {column["key"] for column in data["columns"]}
    assert {attributes["id"] for attributes in document.all("figure")} == {"plot-noise"}
    assert "Registration not measured" in document.words


@pytest.mark.parametrize("none", [None, Table()])
def test_no_candidates(difference, none):
    text = page.render(difference, none)
    document = Document(text)
    assert "0 candidates (and 0 flagged as artefacts)." in document.words
    assert not document.all("table") or "candidates-table" not in document.ids
    assert data_of(text)["sprites"]["uris"] == []


def test_nothing_usable_at_all():
    shape = (40, 50)
    science = Exposure(np.full(shape, np.nan), np.ones(shape), name="cloud.fits")
    difference = SimpleNamespace(
        image=np.full(shape, np.nan),
        variance=np.full(shape, np.nan),
        mask=science.mask,
        science=science,
        template=science,
    )
    document = Document(page.render(difference, Table({"x": [3.0, np.nan], "y": [4.0, np.nan]})))
    assert "Noise unknown" in document.words
    assert "Only 0% of the pixels can be used" in document.words


def test_thousands_of_candidates_stay_small():
    difference = make_difference((1500, 1400), n_stars=400)
    candidates = make_candidates(difference, 4000)
    text = page.render(difference, candidates)
    assert len(text.encode()) < 15e6
    sprites = data_of(text)["sprites"]
    assert sprites["count"] == 4000
    assert sprites["size"] >= 21
    frame = data_of(text)["frames"][0]
    assert frame["bin"] == 2
    assert decode_png(frame["uri"]).shape == (750, 700)


def test_candidates_beyond_the_budget_have_no_cutouts(monkeypatch, difference):
    monkeypatch.setattr("skyloom.report.planes.SPRITE_PIXELS", 21**2 * 4 * 10)
    text = page.render(difference, make_candidates(difference, 13))
    assert data_of(text)["sprites"]["count"] == 10
    assert "3 of the faintest candidates have no cutouts" in Document(text).words


def test_written_whole_or_not_at_all(tmp_path, difference):
    path = write_report(difference, None, tmp_path / "night.html")
    assert path == tmp_path / "night.html"
    first = path.read_text(encoding="utf-8")
    assert first.startswith("<!doctype html>")
    assert write_report(difference, None, str(path)).read_text(encoding="utf-8") == first
    assert [one.name for one in tmp_path.iterdir()] == ["night.html"]
    with pytest.raises(WriteError, match="does not exist"):
        write_report(difference, None, tmp_path / "nowhere" / "night.html")


def test_page_of_a_real_difference():
    pair = simulate_pair(3, size=256, n_stars=150, n_transients=6, snr=(30, 60), shift=(2.3, -1.7))
    made = skyloom.difference(pair.science, pair.template)
    found = skyloom.detect(made)
    text = page.render(made, found)
    document = Document(text)
    assert len(document.all("figure")) == 8
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)", text))
    assert facts["Matched stars"] == str(made.registration.n_matched)
    assert facts["Std of the score"] == f"{made.diagnostics['score_std']:.3f}"
    assert facts["Kernel sum"] == f"{made.diagnostics['kernel_sum']:.4f}"
    assert facts["Stamps used"] == f"{made.stamps['used'].sum()} of {len(made.stamps)}"
    columns = {column["key"]: column["values"] for column in data_of(text)["columns"]}
    assert columns["id"] == list(found["id"][np.argsort(found["rank"], kind="stable")])
    for transient in pair.transients:
        assert np.hypot(np.subtract(columns["x"], transient["x"]), np.subtract(columns["y"], transient["y"])).min() < 1
