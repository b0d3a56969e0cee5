"""The review page in a real browser: what a reviewer clicks and types does what it says."""

from __future__ import annotations

import numpy as np
import pytest

from browser.chromium import Chromium, find_chromium
from browser.report_scene import make_candidates, make_difference
from skyloom.report import write_report
from skyloom.report.images import Stretch, cut

pytestmark = pytest.mark.browser

COUNT = 400


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip(
            "no Chromium on this machine (set SKYLOOM_CHROMIUM or install chromium): the review page was NOT "
            "tested in a browser"
        )
    with Chromium(program) as started:
        yield started


@pytest.fixture(scope="module")
def difference():
    return make_difference()


@pytest.fixture(scope="module")
def candidates(difference):
    return make_candidates(difference, COUNT)


@pytest.fixture(scope="module")
def address(difference, candidates, tmp_path_factory):
    return write_report(difference, candidates, tmp_path_factory.mktemp("report") / "night <1> & 2.html").as_uri()


@pytest.fixture
def opened(browser, address):
    """The page, opened anew, without any marks."""
    browser.open(address)
    browser.run("localStorage.clear()")
    browser.open(address)
    yield browser
    assert browser.problems() == []
    assert browser.requests() == [address]


def column(browser, key):
    """The text of a column in the rows that exist, from top to bottom."""
    return browser.run(
        f"""[...document.querySelectorAll("#candidates-table tbody tr[data-index]")].map((row) =>
            skyloomReport.data.columns.find((one) => one.key === {key!r}).values[row.dataset.index])"""
    )


def shown(browser):
    return int(browser.run("document.getElementById('count').textContent").split()[0].replace(",", ""))


def press_sort(browser, key):
    browser.click(f"#candidates-table th button[data-key={key}]")


def type_into(browser, element, value):
    """Set a control as a hand would: the value, and the event that tells of it."""
    browser.run(f"""(() => {{
        const control = document.getElementById({element!r});
        if (control.type === "checkbox") control.checked = {str(bool(value)).lower()};
        else control.value = {str(value)!r};
        control.dispatchEvent(new Event("input", {{bubbles: true}}));
    }})()""")


def selected(browser):
    return browser.run(
        "document.querySelector('#candidates-table [aria-selected=true] .column-id')?.textContent ?? null"
    )


def test_rows_on_screen_only(opened):
    rows = opened.run("document.querySelectorAll('#candidates-table tbody tr[data-index]').length")
    assert 5 < rows < 60
    assert shown(opened) == COUNT
    assert opened.run("document.getElementById('candidates-table').getAttribute('aria-rowcount')") == str(COUNT + 1)
    # the scroll bar is that of all rows
    height = opened.run("document.getElementById('scroller').scrollHeight")
    assert height > 80 * COUNT
    opened.run("document.getElementById('scroller').scrollTop = 1e9")
    opened.wait_for(
        f"[...document.querySelectorAll('tbody tr[data-index]')].some((row) => row.ariaRowIndex == '{COUNT + 1}')"
    )


def test_header_sorts(opened, candidates):
    snr = np.abs(candidates["snr"])
    assert np.abs(column(opened, "snr"))[0] == pytest.approx(snr.max(), rel=1e-8)
    press_sort(opened, "x")
    first = column(opened, "x")
    assert first == sorted(first)
    assert first[0] == pytest.approx(candidates["x"].min(), rel=1e-8)
    assert opened.run("document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    press_sort(opened, "x")
    last = column(opened, "x")
    assert last == sorted(last, reverse=True)
    assert last[0] == pytest.approx(candidates["x"].max(), rel=1e-8)
    assert opened.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    press_sort(opened, "flux")
    assert column(opened, "flux")[0] == pytest.approx(candidates["flux"].max(), rel=1e-8)
    # a column that is not in the table, with missing values at the end
    type_into(opened, "sort", "fwhm")
    widths = [value for value in column(opened, "fwhm") if value is not None]
    assert widths[0] == pytest.approx(candidates["fwhm"].max(), rel=1e-8)
    opened.run("document.getElementById('scroller').scrollTop = 1e9")
    opened.wait_for(f"document.querySelector('tbody tr[aria-rowindex=\"{COUNT + 1}\"]') !== null")
    assert column(opened, "fwhm")[-1] is None


def test_filters(opened, candidates):
    type_into(opened, "hide-flagged", True)
    assert shown(opened) == int((candidates["flags"] == 0).sum())
    type_into(opened, "hide-flagged", False)
    type_into(opened, "snr", 12.5)
    assert shown(opened) == int((np.abs(candidates["snr"]) >= 12.5).sum())
    assert opened.run("document.getElementById('snr-value').textContent") == "12.5"
    type_into(opened, "sign", "-1")
    assert shown(opened) == int((candidates["snr"] <= -12.5).sum())
    assert all(value < 0 for value in column(opened, "snr"))
    type_into(opened, "sign", "")
    type_into(opened, "snr", 0)
    type_into(opened, "search", "RESIDUAL saturated")
    assert shown(opened) == int((candidates["flags"] == 3).sum())
    type_into(opened, "search", "no such thing")
    assert shown(opened) == 0
    assert opened.run("document.getElementById('nothing').checkVisibility()")
    opened.key("j")  # nothing to move to: no error
    assert selected(opened) is None


def test_search_is_typed_and_does_not_trigger_keys(opened):
    opened.click("#search")
    for letter in "rb1":
        opened.key(letter)
    opened.key("Enter")
    assert opened.run("document.getElementById('search').value") == "rb1"
    assert opened.run("skyloomReport.view.plane") == "difference"
    assert opened.run("document.documentElement.dataset.ready") == "yes"


def test_click_on_a_row_moves_the_view(opened):
    opened.click("#candidates-table tbody tr[aria-rowindex='4'] .column-snr")
    index = opened.run("skyloomReport.table.selected")
    x, y = opened.run(f"[skyloomReport.data.x[{index}], skyloomReport.data.y[{index}]]")
    assert opened.run("skyloomReport.view.center") == pytest.approx([x, y])
    assert opened.run("skyloomReport.view.zoom > 1.3 * skyloomReport.view.width / skyloomReport.view.nx")
    assert selected(opened) == str(opened.run(f"skyloomReport.data.id[{index}]"))
    assert opened.run("document.getElementById('details-title').textContent") == f"Candidate {selected(opened)}"
    assert "flux error" in opened.run("document.getElementById('details').textContent").lower()


def test_keyboard_moves_and_marks_persist(opened, address, candidates, tmp_path):
    opened.key("j")
    first = selected(opened)
    assert first == str(candidates["id"][np.argmax(np.abs(candidates["snr"]))])
    opened.key("r")
    opened.key("j")
    second = selected(opened)
    assert second != first
    opened.key("b")
    opened.key("k")
    assert selected(opened) == first
    assert opened.run("document.getElementById('marked').textContent") == "1 real, 1 bogus"
    for _ in range(30):
        opened.key("j")
    place = opened.run("skyloomReport.table.order.indexOf(skyloomReport.table.selected)")
    assert place == 30
    box, outer = opened.run("""["#candidates-table [aria-selected=true]", "#scroller"].map((selector) => {
        const box = document.querySelector(selector).getBoundingClientRect();
        return [box.top, box.bottom];
    })""")
    assert outer[0] <= box[0] < box[1] <= outer[1] + 1

    opened.open(address)
    marks = "Object.entries(skyloomReport.marks.of).sort().join()"
    assert opened.run(marks) == ",".join(sorted([f"{first},real", f"{second},bogus"]))
    pressed = opened.run(
        "[...document.querySelectorAll('.marks button[aria-pressed=true]')].map((one) => one.textContent)"
    )
    assert pressed == ["real", "bogus"]
    type_into(opened, "mark", "bogus")
    assert column(opened, "id") == [int(second)]

    opened.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    opened.click("#export")
    opened.wait_for("document.getElementById('status').textContent === 'Marks exported.'")
    opened.run("new Promise((resolve) => setTimeout(resolve, 700))")
    lines = (tmp_path / "marks.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,x,y,ra,dec,snr,flux,flux_err,flags,mark,science,template"
    assert sorted((line.split(",")[0], line.split(",")[9]) for line in lines[1:]) == sorted(
        [(first, "real"), (second, "bogus")]
    )
    opened.key("j")
    opened.key("b")  # a second press takes the mark back
    assert opened.run("document.getElementById('marked').textContent") == "1 real, 0 bogus"


def test_mark_buttons(opened):
    opened.click("#candidates-table tbody tr[aria-rowindex='3'] button.bogus")
    assert opened.run("document.querySelector('tbody tr[aria-rowindex=\"3\"]').dataset.mark") == "bogus"
    assert selected(opened) is None  # marking does not move the view
    press_sort(opened, "mark")
    assert opened.run("document.querySelector('tbody tr[aria-rowindex=\"2\"]').dataset.mark") == "bogus"


def frame_box(browser):
    return browser.run("""(() => {
        const canvas = document.getElementById("frame");
        canvas.scrollIntoView({block: "nearest"});
        const box = canvas.getBoundingClientRect();
        return [box.x, box.y, box.width, box.height];
    })()""")


def test_wheel_zooms_about_the_cursor_and_drag_pans(opened):
    view = "skyloomReport.view"
    x, y, width, height = frame_box(opened)
    place = [round(x + 0.3 * width), round(y + 0.4 * height)]
    where = f"{view}.toImage({place[0] - x}, {place[1] - y})"
    before, zoom = opened.run(where), opened.run(f"{view}.zoom")
    opened.mouse("mouseWheel", *place, deltaX=0, deltaY=-600)
    opened.wait_for(f"{view}.zoom > 2 * {zoom}")
    # the browser tells the place of the cursor in whole screen pixels
    assert opened.run(where) == pytest.approx(before, abs=1 / zoom)
    center, zoom = opened.run(f"{view}.center"), opened.run(f"{view}.zoom")
    opened.mouse("mousePressed", *place, button="left", clickCount=1)
    opened.mouse("mouseMoved", place[0] + 40, place[1] + 25, button="left", buttons=1)
    opened.mouse("mouseReleased", place[0] + 40, place[1] + 25, button="left", clickCount=1)
    assert opened.run(f"{view}.center") == pytest.approx([center[0] - 40 / zoom, center[1] + 25 / zoom], abs=0.02)
    opened.click("#fit")
    nx, ny = opened.run(f"[{view}.nx, {view}.ny]")
    assert opened.run(f"{view}.center") == pytest.approx([(nx - 1) / 2, (ny - 1) / 2])
    assert opened.run(f"{view}.zoom") == pytest.approx(min(width / nx, height / ny))
    opened.click("#zoom-in")
    assert opened.run(f"{view}.zoom") == pytest.approx(1.5 * min(width / nx, height / ny))


def test_readout_tells_position_sky_and_value(opened, difference):
    opened.click("[data-plane=science]")
    opened.wait_for("Boolean(skyloomReport.view.pictures.get('science'))")
    left, top, _, _ = frame_box(opened)
    shown = opened.run("skyloomReport.view.frame.stretch")
    stretch = Stretch(**shown)
    data = np.where(
        difference.science.usable & (difference.science.data < 0.9 * shown["high"]), difference.science.data, 0
    )
    # the brightest pixel that is not cut off, one beside it, and sky
    bright = np.unravel_index(np.argmax(data), data.shape)
    for py, px in (bright, (bright[0] + 2, bright[1] - 1), (200, 120), (90, 200)):
        opened.run(f"Object.assign(skyloomReport.view, {{center: [{px}, {py}], zoom: 12}}).draw()")
        sx, sy = opened.run(f"skyloomReport.view.toScreen({px}, {py})")
        opened.mouse("mouseMoved", left + sx, top + sy)
        words = opened.run("document.getElementById('readout').textContent").split()
        assert words[0::2][:2] == ["x", "y"]
        # the browser tells the place of the cursor in whole screen pixels (a 12th of a pixel), the page one decimal
        assert [float(words[1]), float(words[3])] == pytest.approx([px, py], abs=1 / 12 + 0.05)
        sky = difference.wcs.pixel_to_world(float(words[1]), float(words[3]))
        ra, dec = (np.array(text.replace("−", "-").split(":"), dtype=float) for text in words[4:6])
        assert words[5].startswith("−")
        seconds = np.array([3600, 60, 1])
        assert 15 * ra @ seconds == pytest.approx(sky.ra.arcsec, abs=0.3)  # a decimal of x is 0.08 arcsec
        assert np.abs(dec) @ seconds == pytest.approx(-sky.dec.arcsec, abs=0.3)
        # the value is that of the grey level of this very pixel, in four digits
        value = float(words[words.index("≈") + 1])
        level = stretch.apply(np.array([value]), np.array([True]))
        assert level == stretch.apply(difference.science.data[py : py + 1, px], np.array([True]))
        assert words[-1] == "adu"
    opened.click("#fit")
    sx, sy = opened.run("skyloomReport.view.toScreen(2, 100)")
    opened.mouse("mouseMoved", left + sx, top + sy)
    assert "unusable" in opened.run("document.getElementById('readout').textContent")


def test_circle_can_be_picked(opened):
    left, top, _, _ = frame_box(opened)
    sx, sy = opened.run("skyloomReport.view.toScreen(skyloomReport.data.x[0], skyloomReport.data.y[0])")
    expected = opened.run(f"skyloomReport.data.id[skyloomReport.view.nearest({sx}, {sy})]")
    for kind in ("mousePressed", "mouseReleased"):
        opened.mouse(kind, left + sx, top + sy, button="left", clickCount=1)
    assert opened.run("skyloomReport.data.id[skyloomReport.table.selected]") == expected


def pixels(browser):
    """Mean colour of the middle of the frame as it is on screen."""
    return browser.run("""(() => {
        const canvas = document.getElementById("frame");
        const n = 60, x = canvas.width / 2 - n / 2, y = canvas.height / 2 - n / 2;
        const copy = new OffscreenCanvas(n, n).getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, -x, -y);
        const data = copy.getImageData(0, 0, n, n).data;
        return [0, 1, 2].map((k) => data.filter((_, i) => i % 4 === k).reduce((a, b) => a + b) / n / n);
    })()""")


def test_planes_blink_and_colours(opened):
    opened.key("c")
    opened.wait_for("Boolean(skyloomReport.view.pictures.get('difference'))")
    grey = pixels(opened)
    assert grey[0] == pytest.approx(grey[2], abs=25)
    for key, plane in (("1", "science"), ("2", "template"), ("4", "score"), ("3", "difference")):
        opened.key(key)
        assert opened.run("skyloomReport.view.plane") == plane
        assert opened.run("document.querySelector('[data-plane][aria-pressed=true]').dataset.plane") == plane
    opened.key(" ")
    assert opened.run("skyloomReport.view.plane") == "science"
    opened.wait_for("skyloomReport.view.plane === 'template'")
    opened.wait_for("skyloomReport.view.plane === 'science'")
    opened.key("3")
    assert opened.run("document.getElementById('blink').ariaPressed") == "false"
    opened.click("#colour")
    assert pixels(opened) != grey


def greys(browser, canvas, points):
    """The grey values of a canvas at canvas pixels."""
    return np.array(
        browser.run(f"""(() => {{
            const canvas = document.querySelector({canvas!r});
            const copy = new OffscreenCanvas(canvas.width, canvas.height)
                .getContext("2d", {{willReadFrequently: true}});
            copy.drawImage(canvas, 0, 0);
            return {np.asarray(points).tolist()}.map(([x, y]) => copy.getImageData(x, y, 1, 1).data[0]);
        }})()""")
    )


def test_cutouts_are_drawn_of_their_candidate(opened, difference):
    opened.key("c")  # no ticks
    opened.wait_for("""[...document.querySelectorAll("td.cutouts canvas")].slice(0, 5).every((canvas) => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        return new Set(copy.getImageData(0, 0, canvas.width, canvas.height).data).size > 20;
    })""")
    labels = opened.run("document.querySelector('td.cutouts canvas').getAttribute('aria-label')")
    assert "science, matched template, difference, score" in labels
    size = opened.run("skyloomReport.data.sprites.size")
    zoom, gap = 4, 6
    steps = np.arange(size) * zoom + zoom // 2
    planes = (difference.science.data, difference.matched, difference.image, difference.score.significance)
    for k, xy in enumerate(zip(column(opened, "x")[:3], column(opened, "y")[:3], strict=True)):
        for panel, plane in enumerate(planes):
            points = [(panel * (size * zoom + gap) + x, y) for y in steps[::-1] for x in steps]
            shown = greys(opened, f"tbody tr[aria-rowindex='{k + 2}'] canvas", points).reshape(size, size)
            usable = cut(difference.mask == 0, np.array([xy]), size, False)[0]
            values = cut(plane, np.array([xy]), size, 0.0)[0][usable]
            # brighter is lighter, pixel by pixel
            assert (np.diff(shown[usable][np.argsort(values, kind="stable")]) >= 0).all()


def test_frame_is_drawn_the_right_way_up(opened, difference):
    opened.key("c")
    opened.key("1")
    opened.wait_for("Boolean(skyloomReport.view.pictures.get('science'))")
    opened.run("Object.assign(skyloomReport.view, {center: [150, 180], zoom: 12}).draw()")
    width, height = opened.run("[skyloomReport.view.canvas.width, skyloomReport.view.canvas.height]")
    steps = np.arange(-10, 11)
    points = [(int(width / 2 + 12 * i), int(height / 2 - 12 * j)) for j in steps for i in steps]
    level = Stretch(**opened.run("skyloomReport.view.frame.stretch")).apply(
        difference.science.data[180 + steps[:, None], 150 + steps],
        difference.science.usable[180 + steps[:, None], 150 + steps],
    )
    expected = 255 * (level.ravel() - 1.0) / 127
    shown = greys(opened, "#frame", points)
    seen = level.ravel() > 0
    assert seen.sum() > 250
    assert np.abs(shown - expected)[seen].max() <= 1  # rounding
    assert set(shown[~seen]) == {96}  # the colour of unusable pixels


def test_works_without_a_mouse(opened):
    for _ in range(60):
        opened.key("Tab")
        if opened.run("document.activeElement.matches('#candidates-table tbody tr')"):
            break
    else:
        pytest.fail("no row can be reached with the tabulator key")
    opened.key("Enter")
    opened.key("ArrowDown")
    place = opened.run("skyloomReport.table.order.indexOf(skyloomReport.table.selected)")
    assert place == 1
    assert opened.run("document.activeElement.ariaSelected") == "true"


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_text(opened, address, dark):
    """WCAG 2.2, success criterion 1.4.3: a contrast of at least 4.5 for text."""
    opened.open(address, dark=dark)
    ratios = opened.run("""(() => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
                .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (element) => {
            const colour = getComputedStyle(element).backgroundColor;
            return colour !== "rgba(0, 0, 0, 0)" || !element.parentElement ? colour : behind(element.parentElement);
        };
        const text = "h1, h2, dt, dd, th button, td span, p, figcaption, label, summary, .sign, button, .legend li";
        const seen = [...document.querySelectorAll(text)];
        return seen.filter((one) => one.checkVisibility() && one.textContent.trim() && !one.disabled).map((one) => {
            const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 80)];
        });
    })()""")
    assert len(ratios) > 50
    assert [entry for entry in ratios if entry[0] < 4.5] == []


@pytest.mark.parametrize("width", [1400, 1000, 390])
def test_nothing_sticks_out(opened, address, width):
    opened.open(address, width=width, height=900)
    assert opened.run("document.documentElement.scrollWidth") <= width
    inner = opened.run(
        "[document.getElementById('scroller').scrollWidth, document.getElementById('scroller').clientWidth]"
    )
    assert inner[0] <= inner[1] + 1
    assert opened.run("document.getElementById('frame').getBoundingClientRect().width") > 300
    opened.key("j")
    assert selected(opened) is not None


def test_page_without_candidates(browser, tmp_path):
    path = write_report(make_difference((120, 100), n_stars=30, wcs=False), None, tmp_path / "quiet.html")
    browser.open(path.as_uri())
    browser.wait_for("Boolean(skyloomReport.view.pictures.get('difference'))")
    assert "No candidates" in browser.run("document.body.textContent")
    for key in ("j", "r", "b", "1", "4", "c", "+"):
        browser.key(key)
    assert browser.run("skyloomReport.view.plane") == "score"
    x, y, width, height = frame_box(browser)
    browser.mouse("mouseMoved", x + width / 2, y + height / 2)
    assert "x " in browser.run("document.getElementById('readout').textContent")
    assert browser.problems() == []
    assert browser.requests() == [path.as_uri()]


def test_hostile_names_run_nothing(browser, tmp_path):
    hostile = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
    difference = make_difference((90, 80), n_stars=20, science_name=hostile, header={"OBJECT": hostile})
    candidates = make_candidates(difference, 5)
    candidates["flag_text"] = [hostile] * 5
    candidates[hostile] = [hostile] * 5
    path = write_report(difference, candidates, tmp_path / "hostile.html")
    browser.open(path.as_uri())
    browser.key("j")
    assert browser.run("window.hit ?? 'safe'") == "safe"
    assert browser.run("document.querySelector('h1 .name').textContent") == hostile
    assert hostile in browser.run("document.getElementById('details').textContent")
    assert browser.run("document.images.length") == 0
    assert browser.problems() == []
    assert browser.requests() == [path.as_uri()]


def test_print_shows_more_than_the_rows_on_screen(opened):
    before = opened.run("document.querySelectorAll('#candidates-table tbody tr[data-index]').length")
    opened.run("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.run("document.querySelectorAll('#candidates-table tbody tr[data-index]').length") == 300
    opened.run("window.dispatchEvent(new Event('afterprint'))")
    assert opened.run("document.querySelectorAll('#candidates-table tbody tr[data-index]').length") == before
