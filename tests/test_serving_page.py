"""The page of the server, and what the people's door tells it, at a server that runs."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnx
import pytest
from serving import CLIENT, Server, serving
from test_report import ENDS, LABELS, wait_until, write_classifier
from test_runtimes import RUNTIMES, browser, need  # noqa: F401 - a fixture
from test_serving_life import classifier as wide_classifier

import ortcam

KEY = "a key of the tests"
BUSY = "!document.querySelector('#busy').hidden"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "toy.onnx")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with serving(f"toy={model}", f"twin={model}", "--max-targets", "3") as one:
        yield one


@pytest.fixture(scope="module")
def engine(model: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(model)


def pixels_of(png: bytes) -> np.ndarray[Any, Any]:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_one_request_gives_numbers_and_overlays(
    server: Server, engine: ortcam.ScoreCAM, photos: dict[str, Path]
) -> None:
    photo, explanation = photos["chelsea"], engine.explain(photos["chelsea"], top_k=2, budget=8)
    options = {"top_k": "2", "budget": "8", "overlay": "true", "caption": "false"}
    found = httpx.post(f"{server.rest}/models/toy/explain", params=options, content=photo.read_bytes()).json()
    assert [one["label"] for one in found["targets"]] == [one.label for one in explanation.targets]
    for place, one in enumerate(found["targets"]):
        assert np.array_equal(pixels_of(base64.b64decode(one["overlay"]["b64"])), explanation.overlay_at(place))
    without = httpx.post(f"{server.rest}/models/toy/explain?budget=8", content=photo.read_bytes()).json()
    assert "overlay" not in without["targets"][0]
    refused = httpx.post(f"{server.rest}/models/toy/explain?overlay=2", content=photo.read_bytes())
    assert (refused.status_code, refused.json()["error"]) == (400, "overlay is '2'; expected true or false")


def test_what_the_page_asks_for_first(server: Server) -> None:
    said = httpx.get(f"{server.rest}/models").json()
    assert said["models"][0] == {
        "name": "toy", "task": "classify", "takes": ["photos", "tensors"], "budgets": True
    }  # fmt: skip
    assert said["limits"] == {
        "budget": None, "timeout": 30.0, "body": 20_000_000, "pixels": 25_000_000, "targets": 3
    }  # fmt: skip


def test_only_the_script_of_the_page_runs(server: Server) -> None:
    policy = httpx.get(f"{server.rest}/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[^']+';", policy)


# --- In a browser ---


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:  # noqa: F811
    """The page; it must not fail, and ask only its server. Playwright's own scripts need bypass_csp."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    faults: list[str] = []
    opened.on("pageerror", lambda fault: faults.append(str(fault)))
    opened.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    known = (server.rest, "data:", "blob:")
    opened.on("request", lambda request: request.url.startswith(known) or faults.append(request.url))
    opened.goto(server.rest)
    wait_until(opened, "document.querySelectorAll('#model option').length === 2")
    yield opened
    opened.close()
    assert faults == []


def buttons(page: Any) -> list[str]:
    found: list[str] = page.locator("#targets button span:first-child").all_text_contents()
    return found


def wait_for_targets(page: Any, number: int) -> None:
    wait_until(page, f"document.querySelectorAll('#targets button').length === {number}")
    wait_until(page, "document.querySelector('#overlay').naturalWidth > 1")


def drawn(page: Any) -> np.ndarray[Any, Any]:
    """Return the overlay that the page shows."""
    source = page.get_attribute("#overlay", "src")
    return pixels_of(base64.b64decode(source.partition(",")[2]))


@pytest.mark.slow
def test_a_photo_is_explained(page: Any, engine: ortcam.ScoreCAM, photos: dict[str, Path]) -> None:
    """A photo is chosen; its classes are listed, a click draws another; budget and class can be changed."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.set_input_files("#file", photos["chelsea"])
    wait_for_targets(page, 3)  # --max-targets
    near = engine.explain(photos["chelsea"], top_k=3, budget=32)
    assert buttons(page) == [one.label for one in near.targets]
    shares = page.locator("#targets button span:last-child").all_text_contents()
    assert shares == [f"{100 * one.probability:.1f} %" for one in near.targets]
    assert np.array_equal(drawn(page), near.overlay_at(0))
    page.click("#targets li:nth-child(2) button")
    assert np.array_equal(drawn(page), near.overlay_at(1))
    assert page.inner_text("#status") == f"Where the model sees {near.targets[1].label}."
    assert len(asked) == 1, "one request gives the maps of all classes that are listed"
    missing = next(label for label in LABELS if label not in buttons(page))
    page.fill("#wanted", missing)
    page.press("#wanted", "Enter")
    wait_for_targets(page, 4)
    one = engine.explain(photos["chelsea"], targets=[missing], budget=32)
    assert np.array_equal(drawn(page), one.overlay_at(0))
    page.focus("#budget")
    page.keyboard.press("Home")
    wait_until(page, "document.querySelector('#error').textContent.startsWith('Estimated correlation')")
    rough = engine.explain(photos["chelsea"], top_k=3, budget=8)
    assert np.array_equal(drawn(page), rough.overlay_at(0))
    page.keyboard.press("End")
    wait_until(page, "document.querySelector('#error').textContent === 'This is the exact map.'")
    assert np.array_equal(drawn(page), engine.explain(photos["chelsea"], top_k=3).overlay_at(0))
    assert page.inner_text("#passes") == "all: exact"


@pytest.mark.slow
def test_the_page_without_a_mouse(page: Any, photos: dict[str, Path]) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    page.keyboard.press("ArrowDown")
    assert page.input_value("#model") == "twin"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    chooser.value.set_files(photos["chelsea"])
    wait_for_targets(page, 3)
    page.focus("#targets button")
    page.keyboard.press("ArrowDown")
    pressed = page.locator("#targets button[aria-pressed=true]")
    assert pressed.count() == 1
    assert pressed.inner_text().split("\n")[0] == buttons(page)[1]
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.focus("#colour")
    page.keyboard.press("Home")
    assert page.evaluate("getComputedStyle(document.querySelector('#overlay')).opacity") == "0"


GIVE = """([kind, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), given = new DataTransfer();
  given.items.add(new File([bytes], "given.png", { type: "image/png" }));
  const how = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "drop" ? new DragEvent("drop", { ...how, dataTransfer: given })
    : new ClipboardEvent("paste", { ...how, clipboardData: given }));
}"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page: Any, kind: str, photos: dict[str, Path]) -> None:
    page.evaluate(GIVE, [kind, base64.b64encode(photos["chelsea"].read_bytes()).decode()])
    wait_for_targets(page, 3)
    assert page.get_attribute("#overlay", "alt").startswith("given.png, with colours where toy sees ")


@pytest.mark.slow
def test_a_large_photo_is_made_smaller(page: Any, photos: dict[str, Path], tmp_path: Path) -> None:
    large = cv2.resize(cv2.imread(str(photos["chelsea"])), (3000, 2000))
    cv2.imwrite(str(tmp_path / "large.jpg"), large)
    page.set_input_files("#file", tmp_path / "large.jpg")
    wait_for_targets(page, 3)
    assert drawn(page).shape == (683, 1024, 3)
    said = "The browser made the photo smaller: from 3000 x 2000 to 1024 x 683 pixels."
    assert page.inner_text("#smaller").replace("\u00d7", "x") == said


@pytest.mark.slow
def test_what_the_server_refuses(page: Any, server: Server, photos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    said = httpx.post(f"{server.rest}/models/toy/explain", content=b"no photo").json()["error"]
    page.set_input_files("#file", tmp_path / "notes.jpg")
    wait_until(page, "!document.querySelector('#fault').hidden")
    assert page.inner_text("#fault") == f"This photo cannot be explained: {said}."
    page.set_input_files("#file", photos["chelsea"])
    wait_for_targets(page, 3)
    assert page.is_hidden("#fault")
    page.fill("#wanted", "purple")
    page.click("#other button")
    wait_until(page, "!document.querySelector('#fault').hidden")
    assert "purple" in page.inner_text("#fault")
    assert len(buttons(page)) == 3, "what was shown stays"
    page.set_viewport_size({"width": 390, "height": 600})
    page.locator("#wanted").scroll_into_view_if_needed()
    page.fill("#wanted", "green")
    page.press("#wanted", "Enter")
    wait_until(page, "document.querySelector('#fault').textContent.includes('green')")
    assert page.evaluate("document.querySelector('#fault').getBoundingClientRect().top >= 0"), "on the screen"


@pytest.mark.slow
def test_labels_are_harmless(page: Any, photos: dict[str, Path]) -> None:
    page.set_input_files("#file", photos["chelsea"])
    wait_for_targets(page, 3)
    page.fill("#wanted", ENDS)
    page.press("#wanted", "Enter")
    wait_until(page, "document.querySelector('#status').textContent.includes('script')")
    assert ENDS in buttons(page)


@pytest.mark.slow
def test_a_key_is_asked_for(
    model: Path,
    browser: Any,  # noqa: F811
    photos: dict[str, Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").write_text(KEY + "\n")
    with serving(f"toy={model}", "--api-key-file", tmp_path / "keys") as server:
        page = browser.new_page(bypass_csp=True)
        page.goto(server.rest)
        wait_until(page, "!document.querySelector('#locked').hidden")
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.is_hidden("#drop")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        wait_until(page, "document.querySelector('#why').textContent.includes('no valid API key')")
        page.fill("#key", KEY)
        page.click("#unlock button")
        wait_until(page, "document.querySelectorAll('#model option').length === 1")
        assert page.is_hidden("#locked")
        assert page.is_visible("#drop")
        page.set_input_files("#file", photos["chelsea"])
        wait_for_targets(page, 4)
        page.close()


@pytest.mark.slow
def test_a_server_that_refuses_for_now(
    model: Path,
    browser: Any,  # noqa: F811
    photos: dict[str, Path],
    tmp_path: Path,
) -> None:
    """A full server answers 503: the page waits, asks again, and shows the map. It says that a server is gone."""
    onnx.save(wide_classifier(0), tmp_path / "wide.onnx")
    body, over = photos["chelsea"].read_bytes(), threading.Event()
    with serving(f"wide={tmp_path / 'wide.onnx'}", "--queue", "1") as server, ThreadPoolExecutor(6) as crowd:

        def ask() -> None:
            while not over.is_set():
                CLIENT.post(f"{server.rest}/models/wide/explain", content=body)

        page = browser.new_page(bypass_csp=True)
        page.goto(server.rest)
        wait_until(page, "document.querySelectorAll('#model option').length === 1")
        for _ in range(6):
            crowd.submit(ask)
        try:
            for _ in range(20):  # a question can slip into the queue
                page.set_input_files("#file", photos["chelsea"])
                wait_until(page, f"{BUSY} || document.querySelectorAll('#targets button').length === 2")
                if page.is_visible("#busy"):
                    break
                page.set_input_files("#file", [])
                page.reload()
                wait_until(page, "document.querySelectorAll('#model option').length === 1")
            said = page.inner_text("#busy p")
        finally:
            over.set()
        assert re.match(r"The server is busy: model wide is busy: \d photos? waits?.* The page asks again", said), said
        page.click("#again")
        wait_for_targets(page, 2)
        server.process.terminate()
        assert server.process.wait(30) == 0
        page.set_input_files("#file", photos["coffee"])
        wait_until(page, "!document.querySelector('#fault').hidden")
        assert "the server cannot be reached" in page.inner_text("#fault")
        assert page.is_visible("#fault button")
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_accessible(
    server: Server,
    browser: Any,  # noqa: F811
    photos: dict[str, Path],
    width: int,
    scheme: str,
) -> None:
    axe = RUNTIMES / "node_modules" / "axe-core" / "axe.min.js"
    need(axe.is_file(), "axe-core")
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=True)
    page.goto(server.rest)
    page.set_input_files("#file", photos["chelsea"])
    wait_for_targets(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no need to scroll sideways"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
    page.evaluate("for (const id of ['locked', 'busy', 'fault']) document.getElementById(id).hidden = false")
    page.evaluate("document.getElementById('fault').textContent = 'This photo cannot be explained.'")
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes[0].html]))")
    assert found == []
    page.close()


@pytest.mark.slow
def test_the_page_runs_under_its_policy(server: Server, browser: Any, photos: dict[str, Path]) -> None:  # noqa: F811
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(server.rest)
    page.set_input_files("#file", photos["chelsea"])
    page.wait_for_selector("#targets button")
    assert told == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data: onerror=\"window.ran = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in told)
    page.close()
