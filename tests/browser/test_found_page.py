"""The page of detections without ground truth in a real browser, with a rendered video that plays in step."""
from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from libs.datasets.video.encoding import write_video
from libs.utils.diagnosis.found import found_content
from libs.utils.diagnosis.html_page import page
from libs.utils.evaluation.predictions import Detections

HOSTILE = '</script><img src=x onerror="window.hacked = 1">'
NAMES = {0: "jump", 1: HOSTILE, 5: "turn"}
SECONDS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """jump from 1 to 3 s (0.9) and from 4 to 5 s (0.1), turn from 2 to 4 s (0.5) in the video `film`; `features` has no video."""
    folder = tmp_path_factory.mktemp("found")
    pictures = ((np.full((96, 128, 3), 40 * (k // 25), np.uint8), Fraction(k, 25)) for k in range(25 * SECONDS))
    write_video(folder / "film #1.mp4", pictures, Fraction(25))
    found = Detections.from_arrays(["film", "film", "film", "features"], [1, 4, 2, 0], [3, 5, 4, 2], [0, 0, 5, 1],
                                   [0.9, 0.1, 0.5, 0.8])
    content = found_content("Actions in 2 videos", "model.pth.tar", found, NAMES, {"film": SECONDS, "features": 3.0},
                            {"film": folder / "film #1.mp4"})
    (folder / "found.html").write_text(page(content, "predictions"), encoding="utf-8")
    return folder / "found.html"


@pytest.fixture
def opened(browser, path):
    browser.set_window_size(1280, 900)
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(
        "return document.body.dataset.ready === 'true' && document.getElementById('media').readyState > 1"))
    return browser


def state(browser) -> dict[str, str]:
    """What the canvas says it shows, after the next frame."""
    return browser.execute_async_script("const done = arguments[0], frame = requestAnimationFrame;"
                                        "frame(() => frame(() => done({...document.getElementById('canvas').dataset})))")


def table(browser) -> list[list[str]]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#found-table tbody tr")
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]


def test_it_says_what_was_found_and_what_could_be(opened):
    text = opened.find_element(By.TAG_NAME, "header").text
    assert "Actions in 2 videos" in text
    assert "model.pth.tar" in text
    assert f"It knows 3 classes, and finds nothing else: jump, {HOSTILE}, turn." in text
    assert table(opened) == [["1.00", "3.00", "jump", "0.900"], ["2.00", "4.00", "turn", "0.500"]]  # from a quarter of 0.9 on
    assert (state(opened)["drawn"], state(opened)["truths"]) == ("2", "0")
    assert opened.execute_script("return window.hacked") is None
    assert opened.get_log("browser") == []


def test_the_video_plays_and_the_cursor_and_the_labels_follow(opened):
    opened.execute_script("const m = document.getElementById('media'); m.muted = true; m.playbackRate = 4; m.play()")
    WebDriverWait(opened, 30).until(lambda b: float(state(b)["cursor"] or 0) > 2.2)
    opened.execute_script("document.getElementById('media').pause()")
    opened.execute_async_script("const [done] = arguments, m = document.getElementById('media');"
                                "m.addEventListener('seeked', () => done(), {once: true}); m.currentTime = 2.5;")
    assert float(state(opened)["cursor"]) == pytest.approx(2.5, abs=0.05)
    assert opened.find_element(By.ID, "now").text == "jump 0.90, turn 0.50"
    assert opened.execute_script("return document.getElementById('media').videoWidth") == 128
    assert opened.get_log("browser") == []


def test_a_click_on_a_start_and_on_the_timeline_seeks(opened):
    def current():
        WebDriverWait(opened, 30).until(lambda b: not b.execute_script("return document.getElementById('media').seeking"))
        return opened.execute_script("return document.getElementById('media').currentTime")
    cell = opened.find_elements(By.CSS_SELECTOR, "#found-table tbody tr td:first-child")[1]
    opened.execute_script("arguments[0].click()", cell)
    assert current() == pytest.approx(2.0, abs=0.05)
    canvas = opened.find_element(By.ID, "canvas")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(opened).move_to_element(canvas).click().perform()
    expected = opened.execute_script("return timeline.at(document.getElementById('canvas').clientWidth / 2)")
    assert current() == pytest.approx(expected, abs=0.1)


def test_the_slider_decides_what_is_listed_and_another_video_has_its_own(opened):
    slider = opened.find_element(By.ID, "score")
    opened.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert [row[3] for row in table(opened)] == ["0.900", "0.500", "0.100"]
    assert state(opened)["drawn"] == "3"
    opened.find_element(By.ID, "next").click()
    assert table(opened) == [["0.00", "2.00", HOSTILE, "0.800"]]
    assert opened.execute_script("return document.getElementById('media').hasAttribute('src')") is False
    assert not opened.find_element(By.ID, "ordering").is_displayed()


@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_sticks_out(opened, width):
    opened.set_window_size(width, 900)
    state(opened)
    assert opened.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_data_hold_what_the_page_needs_and_no_more(path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert set(content) == {"title", "classes", "threshold", "predictions", "timeline"}
    assert content["timeline"]["videos"][0]["media"].endswith("film%20%231.mp4")
