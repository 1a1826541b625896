"""The console in a real browser: it shows what the mesh did, and nothing that a model says is more than text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_gateway.access.keyring import Keyring
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from support.browser import SLOW_S, browsing, complaints
from support.console_doubles import HOSTILE, Moving, Tasks, served
from support.keys import write_keys
from support.mesh import prompts

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
READ_CELLS = """
const canvas = document.querySelector(arguments[0]);
const [layers, experts] = [arguments[1], arguments[2]];
const copy = new OffscreenCanvas(canvas.width, canvas.height);
const probe = copy.getContext("2d", { willReadFrequently: true });
probe.drawImage(canvas, 0, 0);
const pixels = probe.getImageData(0, 0, canvas.width, canvas.height).data;
const colour = (name) => {
  probe.fillStyle = getComputedStyle(canvas).getPropertyValue(name);
  return probe.fillStyle.match(/\\w\\w/g).map((each) => parseInt(each, 16)).join();
};
const names = {};
for (const name of ["empty", "resident", "in", "out"]) names[colour(`--${name}`)] = name;
const found = [];
for (let layer = 0; layer < layers; layer += 1) {
  const row = [];
  for (let expert = 0; expert < experts; expert += 1) {
    const x = Math.floor((expert + 0.4) * canvas.width / experts);
    const y = Math.floor((layer + 0.4) * canvas.height / layers);
    const at = 4 * (y * canvas.width + x);
    row.push(names[pixels.slice(at, at + 3).join()] ?? "?");
  }
  found.push(row);
}
return found;
"""
_T = TypeVar("_T")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with browsing(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def wait(condition: Callable[[], _T]) -> _T:
    """The first true value of ``condition()``."""
    until = time.monotonic() + SLOW_S
    while not (value := condition()):
        assert time.monotonic() < until, "the page did not come to it"
        time.sleep(0.05)
    return value


@contextmanager
def visit(chromium: Chrome, url: str, *, ready: bool = True, refused: str = "nothing") -> Iterator[Chrome]:
    """The page, once it knows its model and patterns (``ready``). Nothing goes wrong in the browser until the end.

    It notes every status of 400 or more by itself; ``refused`` is the one that belongs to the test.
    """
    chromium.get(f"{url}/")
    if ready:
        wait(lambda: chromium.find_element(By.ID, "model").get_attribute("value"))
        wait(lambda: chromium.find_elements(By.CSS_SELECTOR, "#patterns figure"))
    yield chromium
    chromium.execute_script("sessionStorage.clear()")
    assert [each for each in complaints(chromium) if f"status of {refused}" not in each] == []
    chromium.get("about:blank")


def say(page: Chrome, prompt: str) -> WebElement:
    """Send a prompt; the whole answer, with what it says of itself or why there is none."""
    ended = ".turn.assistant:has(.record, .failed)"
    before = len(page.find_elements(By.CSS_SELECTOR, ended))
    page.find_element(By.ID, "prompt").send_keys(prompt, Keys.ENTER)
    wait(lambda: len(page.find_elements(By.CSS_SELECTOR, ended)) > before)
    return page.find_elements(By.CSS_SELECTOR, ended)[-1]


def shorten(page: Chrome) -> None:
    """Ask for few tokens."""
    page.find_element(By.ID, "tokens").clear()
    page.find_element(By.ID, "tokens").send_keys("6")


def told(turn: WebElement) -> dict[str, str]:
    """The record of an answer: its entries by name."""
    entries = turn.find_elements(By.CSS_SELECTOR, ".record > div")
    return {entry.find_element(By.TAG_NAME, "dt").text: entry.find_element(By.TAG_NAME, "dd").text for entry in entries}


def text(turn: WebElement) -> str:
    return str(turn.find_element(By.CLASS_NAME, "text").get_property("textContent"))


def cells(page: Chrome, layers: int, experts: int, canvas: str = ".worker canvas") -> list[list[str]]:
    """What a picture shows, by the colours of its pixels."""
    found: list[list[str]] = page.execute_script(READ_CELLS, canvas, layers, experts)
    return found


def places(row: Sequence[str], *kinds: str) -> set[int]:
    return {index for index, cell in enumerate(row) if cell in kinds}


def here(picture: list[list[str]]) -> list[set[int]]:
    """Every layer's experts that are resident."""
    return [places(row, "resident", "in") for row in picture]


def residents(mesh: Mesh) -> list[set[int]]:
    with blocking_channel(mesh.worker_addresses[0]) as channel:
        said = worker_pb2_grpc.WorkerServiceStub(channel).GetResidency(worker_pb2.GetResidencyRequest())
    return [set(layer.slots) - {-1} for layer in said.layers]


def test_an_answer_streams_in_and_says_what_was_done_for_it(chromium: Chrome, mesh: Mesh) -> None:
    prompt = prompts("digits", 1, seed=7)[0]
    body = {"model": mesh.model_name, "messages": [{"role": "user", "content": prompt}]}
    asked = httpx.post(
        f"{mesh.url}/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 6}, timeout=SLOW_S
    ).json()
    with visit(chromium, mesh.url) as page:
        shorten(page)
        page.find_element(By.ID, "temperature").send_keys("0")
        turn = say(page, prompt)
        said, record = told(turn), asked["premoe"]
        assert text(turn) == asked["choices"][0]["message"]["content"]
        assert (said["decision"], said["task"]) == (record["decision"], record["task"])
        assert said["score"] == f"{record['score']:.3f}"
        assert said["retained mass"] == f"{100 * record['retained_mass']:.1f} %"
        assert said["swap"].startswith("nothing moved, ")
        assert said["first token"].endswith(" ms")
        assert turn.find_element(By.CLASS_NAME, "reason").text == record["reason"]


def test_an_answer_is_shown_while_it_comes_and_the_next_prompt_carries_it(chromium: Chrome) -> None:
    hold = threading.Event()
    worker = Moving(layers=4, experts=32, words=("Forty", "-two."), hold=hold)
    with served(worker, Tasks(layers=4, experts=32)) as url, visit(chromium, url) as page:
        page.find_element(By.ID, "prompt").send_keys("six times seven?", Keys.ENTER)
        turn = wait(lambda: page.find_elements(By.CSS_SELECTOR, ".turn.assistant"))[0]
        wait(lambda: text(turn) == "Forty")
        assert told(turn) == {}
        assert page.find_element(By.ID, "stop").is_enabled()
        hold.set()
        wait(lambda: told(turn))
        assert text(turn) == "Forty-two."
        say(page, "and one more?")
        assert worker.asked[-1] == ["six times seven?", "Forty-two.", "and one more?"]


def test_a_stop_ends_the_answer_on_the_worker(chromium: Chrome) -> None:
    worker = Moving(layers=4, experts=32, hold=threading.Event())
    with served(worker, Tasks(layers=4, experts=32)) as url, visit(chromium, url) as page:
        page.find_element(By.ID, "prompt").send_keys("hi", Keys.ENTER)
        wait(lambda: page.find_elements(By.CSS_SELECTOR, ".turn.assistant .text:not(:empty)"))
        page.find_element(By.ID, "stop").click()
        wait(lambda: page.find_element(By.CLASS_NAME, "failed").text == "stopped")
        wait(lambda: worker.cancelled)


def test_the_picture_is_what_the_worker_says_and_moves_with_a_swap(chromium: Chrome, mesh: Mesh) -> None:
    layers, experts = mesh.manifest.num_layers, mesh.manifest.num_experts
    with visit(chromium, mesh.url) as page:
        shorten(page)  # two turns must fit into the context
        pictures = []
        for task in ("vowels", "capitals"):
            page.find_element(By.XPATH, f"//select[@id='pattern']/option[.='{task}']").click()
            said = told(say(page, "hello"))
            assert (said["decision"], said["task"], said["score"]) == ("specialist", task, "you named it")
            wait(lambda: here(cells(page, layers, experts)) == residents(mesh))
            pictures.append(cells(page, layers, experts))
        before, now = map(here, pictures)
        for row, old, new in zip(pictures[1], before, now, strict=True):
            assert places(row, "in") == new - old
            assert places(row, "out") == old - new
        came = sum(len(new - old) for old, new in zip(before, now, strict=True))
        assert came
        assert said["swap"].startswith(f"{came} expert")
        assert f"{came} expert" in page.find_element(By.CSS_SELECTOR, ".worker .swap").text


def test_the_patterns_are_pictures_and_their_overlaps_a_table(chromium: Chrome, mesh: Mesh) -> None:
    said = httpx.get(f"{mesh.url}/premoe/v1/patterns", params={"model": mesh.model_name}, timeout=SLOW_S).json()
    tasks = [each["task"] for each in said["patterns"]]
    layers, experts = mesh.manifest.num_layers, mesh.manifest.num_experts
    with visit(chromium, mesh.url) as page:
        captions = [each.text for each in page.find_elements(By.CSS_SELECTOR, "#patterns figcaption b")]
        assert captions == ["all of them", *tasks]
        for number, pattern in enumerate(said["patterns"], start=2):
            kept = [places(f"{int(mask, 16):0{experts}b}"[::-1], "1") for mask in pattern["kept"]]
            canvas = f"figure:nth-child({number}) canvas"
            wait(lambda canvas=canvas, kept=kept: here(cells(page, layers, experts, canvas)) == kept)  # type: ignore[misc]
        rows = page.find_elements(By.CSS_SELECTOR, ".overlaps tbody tr")
        assert [row.find_element(By.TAG_NAME, "th").text for row in rows] == tasks
        numbers = [[int(cell.text) for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]
        assert numbers == [[int(100 * share + 0.5) for share in row] for row in said["overlaps"]]


def test_what_a_model_or_a_task_is_called_is_text(chromium: Chrome) -> None:
    worker = Moving(model=HOSTILE, address=f"{HOSTILE}:1", layers=4, experts=32, words=(HOSTILE, HOSTILE))
    with served(worker, Tasks(tasks=[HOSTILE], layers=4, experts=32)) as url, visit(chromium, url) as page:
        turn = say(page, HOSTILE)
        assert text(turn) == 2 * HOSTILE
        assert told(turn)["task"] == HOSTILE
        assert HOSTILE in turn.find_element(By.CLASS_NAME, "reason").text
        assert page.find_element(By.CSS_SELECTOR, ".worker h3").text.startswith(HOSTILE)
        assert HOSTILE in [each.text for each in page.find_elements(By.CSS_SELECTOR, ".overlaps tbody th")]
        assert page.title == "PreMoE console"
        images = page.find_elements(By.TAG_NAME, "img")
        assert [image.get_attribute("src") for image in images] == [f"{url}/console/icon.svg"]
        assert len(page.find_elements(By.TAG_NAME, "script")) == 1


def test_a_refusal_is_said_in_the_conversation(chromium: Chrome) -> None:
    tasks = Tasks(layers=4, experts=32)
    with served(Moving(layers=4, experts=32), tasks) as url, visit(chromium, url, refused="400") as page:
        page.find_element(By.ID, "temperature").send_keys("9")
        turn = say(page, "hi")
        assert "temperature" in turn.find_element(By.CLASS_NAME, "failed").text


@pytest.mark.parametrize(("layers", "experts"), [(48, 128), (61, 256)])
def test_a_large_model_fits_a_phone_and_a_keyboard(chromium: Chrome, layers: int, experts: int) -> None:
    worker = Moving(layers=layers, experts=experts)
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    with served(worker, Tasks(layers=layers, experts=experts)) as url, visit(chromium, url) as page:
        say(page, "hi")
        wait(lambda: here(cells(page, layers, experts)) == [set(row) for row in worker.residents])
        width, room = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room == PHONE["width"]
        canvas = page.find_element(By.CSS_SELECTOR, ".worker canvas")
        assert f"{layers} layers of {experts} experts" in (canvas.get_attribute("aria-label") or "")
        canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
        note = page.find_element(By.CSS_SELECTOR, ".worker output").text
        assert note.startswith("layer 1, expert 1: ")
        assert note.endswith("not resident") == (1 not in worker.residents[1])
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_that_can_be_operated_has_a_name(chromium: Chrome) -> None:
    with served(Moving(layers=4, experts=32), Tasks(layers=4, experts=32)) as url, visit(chromium, url) as page:
        say(page, "hi")
        page.find_element(By.CSS_SELECTOR, "#key summary").click()
        found = page.find_elements(By.CSS_SELECTOR, "input, select, textarea, button, canvas, summary, [tabindex]")
        assert len(found) > 15
        for element in found:
            assert element.accessible_name, element.get_attribute("outerHTML")


def test_a_key_is_asked_for_and_kept_in_the_tab(chromium: Chrome, tmp_path: Path) -> None:
    stored = "return [Object.entries(sessionStorage), Object.keys(localStorage), document.cookie]"
    key = write_keys(tmp_path / "keys.json", {"alice": {}})["alice"]
    tasks = Tasks(layers=4, experts=32)
    with (
        served(Moving(layers=4, experts=32), tasks, Keyring(tmp_path / "keys.json")) as url,
        visit(chromium, url, ready=False, refused="401") as page,
    ):
        field = page.find_element(By.ID, "key-text")
        wait(field.is_displayed)
        wait(lambda: "key" in page.find_element(By.ID, "status").text)
        field.send_keys(key, Keys.ENTER)
        wait(lambda: page.find_element(By.ID, "model").get_attribute("value") == "wide")
        assert told(say(page, "hi"))["decision"] == "specialist"
        assert page.execute_script(stored) == [[["premoe-key", key]], [], ""]
        page.refresh()
        wait(lambda: page.find_element(By.ID, "model").get_attribute("value") == "wide")
        assert not page.find_element(By.ID, "key-text").is_displayed()
