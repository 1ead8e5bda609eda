"""The grading page in a real browser: thirty by keyboard alone, kills, two graders, names that are markup."""

from __future__ import annotations

import contextlib
import http.server
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from surveybridge.jobs.drawing.overlay import directions
from surveybridge.jobs.drawing.rendering import views
from surveybridge.jobs.vet import Config, open_session
from surveybridge.storage.grades import latest_grades, read_grades
from surveybridge.storage.orientation import Orientation
from surveybridge.storage.problems import default_problem
from surveybridge.storage.query import query
from tests.jobs.turned_sky import NORTH, SCALE, make_turned
from tests.jobs.vetting_runs import NASTY, command, in_thread, request
from tests.storage.problem_files import problem
from tests.storage.test_other_problems import other_run

pytestmark = pytest.mark.slow  # browsers

VIEWS = len(views(default_problem()))

DRAWN = "#mosaic[aria-busy=false]"
"""There once all cards are."""

LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}

CONTRAST = """(images, views) => Promise.all(images.map(async image => {
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const width = canvas.width / views;
  return Array.from({ length: views }, (_, k) => {
    const values = context.getImageData(k * width, 0, width, canvas.height).data.filter((_, place) => place % 4 < 3);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
  });
}))"""
"""Of each image, once the browser has it: standard deviation of the levels in each view; an error if it never comes."""


@pytest.fixture
def troubles() -> Iterator[list[str]]:
    """What browsers complain of; a test that expects a complaint takes it out."""
    said: list[str] = []
    yield said
    assert said == []


@pytest.fixture
def run(run_to_grade):
    return run_to_grade


@pytest.fixture
def opened(browser, troubles):
    """Open pages of one person each: their storage is their own."""
    contexts = []

    def open_page(
        url: str,
        viewport: dict[str, int] = LAPTOP,
        context: Any = None,
        grader: str | None = None,
        selector: str = DRAWN,
    ) -> Any:
        if context is None:
            context = browser.new_context(viewport=viewport)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: noted(message) and troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        if grader is not None:
            page.fill("#name", grader)
            page.keyboard.press("Enter")
        page.wait_for_selector(selector, state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def noted(message: Any) -> bool:
    """Whether a message is a complaint; that a server which was killed or has ended is away is none."""
    return message.type in ("error", "warning") and "net::ERR_" not in message.text


def wait_until_saved(page: Any) -> None:
    page.locator("#saved", has_text="saved").wait_for()


def counting(run: Any) -> dict[tuple[str, str], str | None]:
    rows = latest_grades(read_grades(run)).to_pylist()
    return {(row["grader"], row["object_id"]): row["grade"] for row in rows}


def contrast(images: Any) -> np.ndarray:
    return np.array(images.evaluate_all(CONTRAST, VIEWS))


def shown_names(page: Any) -> list[str]:
    return list(page.locator(".card .name").all_text_contents())


def test_pictures_are_there_and_not_blank_on_laptop_and_phone(run, opened):
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        for viewport in (LAPTOP, PHONE):
            page = opened(url, viewport)
            assert page.locator(".card").count() == 60
            assert page.locator(".card img").count() == 240
            for card in page.locator(".card").all()[::6]:  # pictures far below come when they are near
                card.scroll_into_view_if_needed()
            shown = contrast(page.locator(".card img.v0"))
            assert shown.shape == (60, VIEWS) and shown.min() > 5
            page.keyboard.press("Enter")
            page.locator("#single img").nth(VIEWS - 1).wait_for(state="attached")
            assert page.locator("#single img").count() == VIEWS
            assert contrast(page.locator("#single img")).min() > 5
            assert page.evaluate("() => document.documentElement.scrollWidth") <= viewport["width"]
            assert (
                page.locator("#grades button").evaluate_all("all => Math.min(...all.map(one => one.clientHeight))") > 34
            )


def test_thirty_by_keyboard_with_reload_and_kill_in_the_middle_lose_nothing(run, opened):
    wanted: dict[tuple[str, str], str] = {}
    with command(run.url, "--port", "0", "--grader", "ann") as vet:
        port = str(vet.port)
        page = opened(vet.url)
        names = shown_names(page)

        def press(many: int) -> None:
            for _ in range(many):
                k = len(wanted)
                wanted["ann", names[k]] = "ABCX"[k % 4]
                page.keyboard.press("abcx"[k % 4])

        press(10)
        page.reload()  # at once, whatever is saved by then
        page.wait_for_selector(DRAWN, state="attached")
        assert page.locator("#position").text_content() == "11 of 75"
        press(5)
        wait_until_saved(page)
        assert len(counting(run)) == 15
        press(3)
        vet.process.send_signal(signal.SIGKILL)
        press(4)
        page.locator("#saved", has_text="kept in this browser").wait_for()
        context = page.context
        page.close()
    on_disk = counting(run)
    assert 15 <= len(on_disk) < 22
    assert on_disk.items() <= wanted.items()
    with command(run.url, "--port", port, "--grader", "ann") as vet:
        page = opened(vet.url, context=context)
        wait_until_saved(page)
        assert counting(run) == wanted
        page.keyboard.press("Home")
        for _ in range(22):
            page.keyboard.press("ArrowRight")
        press(8)
        wait_until_saved(page)
        page.reload()
        page.wait_for_selector(DRAWN)
        assert page.locator(".card.graded").count() == 30
        assert "30 of 75 in this list · all my grades: A 8 B 8 C 7 X 7" in page.locator("#counts").text_content()
    assert counting(run) == wanted and len(wanted) == 30
    assert read_grades(run).num_rows == 30


def test_undo_comment_and_lists_by_keyboard_alone(run, opened):
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        page = opened(url)
        first, second = shown_names(page)[:2]
        for key in ("a", "b", "u", "u", "x"):  # both taken back, then X on the first
            page.keyboard.press(key)
        page.keyboard.press("m")
        page.keyboard.type("b is blue")  # letters are no grades here
        page.keyboard.press("Enter")
        page.keyboard.press("m")
        page.keyboard.type(", or not")
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        page.keyboard.press("m")
        page.keyboard.type("thrown away")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        wait_until_saved(page)
        rows = {row["object_id"]: (row["grade"], row["comment"]) for row in latest_grades(read_grades(run)).to_pylist()}
        assert rows == {first: ("X", None), second: ("C", "b is blue")}
        assert page.locator("#mosaic").is_visible()
        page.keyboard.press("Home")
        page.keyboard.press("a")  # another opinion, and back to the one before
        page.keyboard.press("u")
        wait_until_saved(page)
        assert counting(run)["ann", first] == "X"
        assert read_grades(run).num_rows == 9

        page.keyboard.press("/")
        page.keyboard.type("J2-1")
        page.keyboard.press("Enter")
        page.locator("#listed", has_text="10 candidates").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("x")
        wait_until_saved(page)
        assert counting(run)["ann", "SB J2-10"] == "X"
        page.keyboard.press("s")
        page.locator("#summary-body", has_text="Purity of the top").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")
        before = page.locator(".card img").first.get_attribute("src")
        page.keyboard.press("+")
        assert page.locator(".card img").first.get_attribute("src") != before


def test_every_control_is_reached_by_the_tab_key(run, opened):
    with in_thread(open_session(Config(run=run.url), None)) as url:
        page = opened(url, grader="ann")
        controls = page.locator("button:visible, select:visible, input:visible")
        named = "e => e.id || e.name || e.dataset.grade || e.className"
        reached = set()
        for _ in range(controls.count() + 5):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(f"() => ({named})(document.activeElement)"))
        assert set(controls.evaluate_all(f"all => all.map({named})")) - reached == set()
        assert "card" in reached


def test_names_and_comments_that_are_markup_are_text_and_reach_no_other_file(run, opened, tmp_path):
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    with in_thread(open_session(Config(run=run.url), None)) as url:
        page = opened(f"{url}/#text=onerror", grader=f"bo'b <i>{'../' * 5}")
        assert shown_names(page) == [NASTY]
        assert contrast(page.locator(".card img")).min() > 5
        page.keyboard.press("Enter")
        page.keyboard.press("m")
        page.keyboard.type(NASTY)
        page.keyboard.press("Enter")
        page.keyboard.press("a")
        page.keyboard.press("o")
        wait_until_saved(page)
        assert NASTY in page.locator("#single h1").text_content()
        assert page.locator("#comment").input_value() == NASTY
        page.keyboard.press("s")
        page.locator("#summary-body", has_text="../").wait_for()
        assert page.locator("[onerror], main i, dialog i").count() == 0
        assert page.locator("img").count() == page.locator("img[src^='api/picture']").count()
    (row,) = latest_grades(read_grades(run)).to_pylist()
    assert (row["object_id"], row["grade"], row["comment"]) == (NASTY, "A", NASTY)
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before
    assert new and all(file.is_relative_to(tmp_path / "run" / "grades") for file in new)


def test_two_graders_at_once_keep_what_is_theirs(run, opened):
    with in_thread(open_session(Config(run=run.url), None)) as url:
        ann, bob = opened(url, grader="ann"), opened(url, PHONE, grader="bob")
        names = shown_names(ann)
        for k in range(8):
            ann.keyboard.press("abcx"[k % 4])
            bob.keyboard.press("xcba"[k % 4])
        for page in (ann, bob):
            wait_until_saved(page)
            assert page.locator(".card.graded").count() == 8
            assert page.locator(".badge").all_text_contents() == list("ABCXABCX" if page is ann else "XCBAXCBA")
        assert counting(run) == {
            **{("ann", name): "ABCX"[k % 4] for k, name in enumerate(names[:8])},
            **{("bob", name): "XCBA"[k % 4] for k, name in enumerate(names[:8])},
        }
        ann.keyboard.press("a")
        ann.keyboard.press("o")  # now others are shown too, before the server knows of this one
        ann.locator(".badge", has_text="A (X)").first.wait_for()
        assert "9 of 75 in this list · all my grades: A 3 B 2 C 2 X 2" in ann.locator("#counts").text_content()
        wait_until_saved(ann)


def test_a_grade_saved_while_the_list_is_read_is_not_lost_from_sight(run, opened):
    """The server answers with what it knew before the grade came, and the page hears of it after the grade is safe."""
    held: dict[str, Any] = {}

    def hold_list(route: Any) -> None:
        if "reveal" in route.request.url and "list" not in held:
            held["list"] = route, route.fetch()
        else:
            route.continue_()

    with in_thread(open_session(Config(run=run.url), None)) as url:
        page = opened(url, grader="ann")
        page.route("**/api/grades", lambda route: held.setdefault("grade", route))
        page.route("**/api/candidates?*", hold_list)
        page.keyboard.press("b")
        page.keyboard.press("o")
        while not {"grade", "list"} <= held.keys():
            page.wait_for_timeout(20)
        held["grade"].continue_()
        wait_until_saved(page)
        route, response = held["list"]
        assert response.json()["graded"] == 0
        route.fulfill(response=response)
        page.locator(".badge", has_text="B").wait_for()
        assert "1 of 75 in this list · all my grades: A 0 B 1" in page.locator("#counts").text_content()


def test_a_foreign_page_can_neither_grade_nor_look(run, opened, troubles):
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        script = f"""<img src="{url}/api/picture?object=SB+J0-00"><script>
        const body = JSON.stringify({{entry: "{"0" * 32}", object_id: "SB J0-00", grade: "A"}});
        const options = [{{method: "POST", body, mode: "no-cors"}},
          {{method: "POST", body, headers: {{"Content-Type": "application/json"}}}}, {{mode: "no-cors"}}];
        const paths = ["grades", "grades", "candidates?grader=ann"];
        Promise.allSettled(paths.map((path, k) => fetch("{url}/api/" + path, options[k]))).then(found => {{
          document.title = "done " + found.map(one => one.value?.type ?? "refused").join(" "); }});
        </script>"""
        with foreign_server(script) as foreign:
            page = opened(foreign, selector="img")
            page.wait_for_function("() => document.title.startsWith('done')")
            assert page.locator("img").evaluate("image => image.naturalWidth") == 0
            assert "basic" not in page.title() and "cors" not in page.title().split()
    assert not run.folder.names("grades")
    assert troubles
    troubles.clear()


def test_with_a_token_the_page_works_and_its_address_forgets_it(run, opened, monkeypatch):
    monkeypatch.setenv("SURVEYBRIDGE_TOKEN", "a-token-of-some-length")
    with command(run.url, "--host", "0.0.0.0", "--port", "0", "--grader", "ann") as vet:
        address = f"http://127.0.0.1:{vet.port}/"
        assert request(address).status == 401
        assert vet.url.endswith("/?token=a-token-of-some-length")
        page = opened(f"{address}?token=a-token-of-some-length")
        page.keyboard.press("a")
        wait_until_saved(page)
        assert "token" not in page.url
        page.reload()
        page.wait_for_selector(".card.graded")
    assert len(counting(run)) == 1


@contextlib.contextmanager
def foreign_server(document: str) -> Iterator[str]:
    """A site of somebody else's, with one page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(document.encode())

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_the_page_speaks_of_the_endpoints_and_bands_of_the_problem(tmp_path, opened):
    run = other_run(tmp_path, problem(tmp_path, "rubin-euclid"))
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        page = opened(url)
        assert page.locator("select[name=pictures] option").all_text_contents() == [
            "four",
            "rubin and euclid",
            "euclid",
        ]
        assert page.locator("option[value=brightest]").text_content() == "brightest in VIS first"
        assert page.locator("#signal-in").text_content() == "S/N in VIS"
        page.keyboard.press("Enter")
        captions = page.locator("#single figcaption").all_text_contents()
        assert captions[:2] == ["rubin ugrizy", "euclid VIS,Y,J,H"]
        facts = dict(zip(page.locator("dt").all_text_contents(), page.locator("dd").all_text_contents(), strict=True))
        row = query(run.url, top=1).to_pylist()[0]
        wanted = " ".join(f"{23.9 - 2.5 * np.log10(row[f'flux_{band}']):.2f}" for band in (*"ugriz", "rubin_y"))
        assert facts["u g r i z y"] == wanted
        page.keyboard.press("Escape")
        page.select_option("select[name=pictures]", "two")
        assert page.locator(".card").first.locator("img").count() == 2


def test_scale_bands_surroundings_members_and_links_of_a_candidate_by_keyboard(tmp_path, opened):
    run = make_turned(tmp_path, 160.0, True)
    with in_thread(open_session(Config(run=run.url), "ann")) as url:
        page = opened(url)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        assert shown_names(page) == ["lead · 3 objects"]
        assert page.locator(".card .over").get_attribute("aria-label").startswith("6.4″ × 6.4″, bar 2″")
        page.keyboard.press("Enter")
        size = page.locator("#size")
        size.filter(has_text="6.4″ × 6.4″, bar 2″, north 160° left of up, east clockwise (mirrored) of it").wait_for()
        assert page.locator("#single .over").count() == VIEWS
        assert "api/overlay" in page.locator("#single .over").first.evaluate("e => getComputedStyle(e).backgroundImage")
        facts = dict(zip(page.locator("dt").all_text_contents(), page.locator("dd").all_text_contents(), strict=True))
        assert facts["flags"] == "deblended, near the edge"
        assert page.locator(".members li").all_text_contents() == ["lead, score 3", "north, score 2", "east, score 1"]
        assert "system of 3; the grade is for all of it" in page.locator(".system").text_content()
        marks = page.locator("#single .crop").first.locator(".member")
        near, corner = (place.bounding_box() for place in (marks.nth(1), page.locator("#single .crop").first))
        right, up = (NORTH / SCALE / 64 * v for v in directions(Orientation(160.0, True, SCALE))["N"])
        assert (near["x"] + near["width"] / 2 - corner["x"]) / corner["width"] == pytest.approx(
            32.5 / 64 + right, abs=0.02
        )
        assert (near["y"] + near["height"] / 2 - corner["y"]) / corner["height"] == pytest.approx(
            1 - 32.5 / 64 - up, abs=0.02
        )
        for look in ("LSST g", "LSST r", "LSST i", "LSST gri"):
            page.keyboard.press("v")
            page.locator("#single figcaption").first.filter(has_text=re.compile(f"^{look}$")).wait_for()
            assert page.locator("#look").text_content() == (f"{look} | Euclid VIS" if look != "LSST gri" else "Colour")
        for side in ("10″", "20″"):
            page.keyboard.press("w")
            size.filter(has_text=f"{side} × {side}").wait_for()
            page.locator("#single .crop img").evaluate_all("all => Promise.all(all.map(image => image.decode()))")
            assert page.locator("#single figcaption").all_text_contents()[2] == "translated: posterior mean"
            assert page.locator("#wide").text_content() == side
        assert page.locator("#single img").evaluate_all("all => all.map(image => image.naturalWidth)") == [800] * 4
        page.reload()
        size.filter(has_text="20″ × 20″").wait_for()  # the address holds what is shown
        page.keyboard.press("w")
        size.filter(has_text="6.4″").wait_for()
        followed = page.locator("#single .links a")
        assert followed.all_text_contents() == ["Aladin Lite", "Legacy Survey", "ESASky", "SIMBAD", "NED"]
        for link in followed.all():
            assert link.get_attribute("rel") == "noopener noreferrer" and "210.3" in link.get_attribute("href")
        page.keyboard.press("a")
        wait_until_saved(page)
        assert counting(run) == {("ann", "lead"): "A"}
        assert asked and all(one.startswith(url) for one in asked)
