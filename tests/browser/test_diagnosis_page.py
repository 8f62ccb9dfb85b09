"""The page of tools/diagnose.py in a real browser: what it draws, how it answers, that it needs no network and trusts no name."""
from __future__ import annotations

import json
import struct
from pathlib import Path

import diagnose
import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

HOSTILE_VIDEO = "</script><script>window.hacked = 1</script>"
HOSTILE_CLASS = '<img src=x onerror="window.hacked = 2">'
SECONDS = 20.0


def write_inputs(folder: Path) -> None:
    """Two videos and a hostile one, two classes and a hostile one, and two predictions files, the second worse."""
    rng = np.random.default_rng(4)
    database, results = {}, ({}, {})
    for video in ("walk", "run", HOSTILE_VIDEO):
        truth = [{"segment": [2.0 + 5 * i, 4.5 + 5 * i], "label": ("jump", "turn", HOSTILE_CLASS)[i % 3]} for i in range(4)]
        database[video] = {"subset": "validation", "duration": SECONDS, "fps": 25, "annotations": truth}
        for shift, one in enumerate(results):
            one[video] = [{"segment": [s + 0.7 * shift, e + 0.7 * shift], "label": a["label"],
                           "score": round((0.5 if a["label"] == "turn" else 0.9) - 0.1 * k, 3)}
                          for a in truth for k, (s, e) in enumerate([a["segment"]] * 2)]
            for _ in range(30):
                start = float(rng.uniform(0, 17))
                one[video].append({"segment": [start, start + 2.0], "label": ("jump", "turn")[rng.integers(2)],
                                   "score": round(float(rng.uniform(0.05, 0.7)), 3)})
    (folder / "truth.json").write_text(json.dumps({"database": database}))
    for name, one in zip(("first", "second"), results, strict=True):
        (folder / f"{name}.json").write_text(json.dumps({"results": one}))


def write_sound(path: Path, seconds: int = 20) -> None:
    """Silence as a WAV file: the one kind of media that takes no encoder, and a <video> element plays it."""
    rate = 8000
    size = rate * seconds
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
                     + b"data" + struct.pack("<I", size) + b"\x80" * size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("page")
    write_inputs(path)
    (path / "media").mkdir()
    write_sound(path / "media" / "run.mp4")
    write_sound(path / "sound.wav")
    inputs = [str(path / "first.json"), str(path / "truth.json")]
    diagnose.main([*inputs, "-o", str(path / "one.html")])
    diagnose.main([*inputs, "--compare", str(path / "second.json"), "-o", str(path / "two.html")])
    diagnose.main([*inputs, "--video-folder", str(path / "media"), "-o", str(path / "media.html")])
    return path


class Page:
    """An open page and its parts."""

    def __init__(self, browser, path: Path):
        self.browser = browser
        browser.set_window_size(1280, 900)
        browser.get_log("browser")
        browser.get(path.as_uri())
        WebDriverWait(browser, 30).until(lambda b: b.execute_script(
            "return document.body.dataset.ready === 'true' && document.getElementById('canvas').dataset.drawn !== undefined"))
        self.data = json.loads(self("return document.getElementById('data').textContent"))

    def __call__(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, name: str):
        return self.browser.find_element(By.ID, name)

    @property
    def state(self) -> dict[str, str]:
        """What the canvas says it shows, after the next frame."""
        return self.browser.execute_async_script(
            "const done = arguments[0], frame = requestAnimationFrame;"
            "frame(() => frame(() => done({...document.getElementById('canvas').dataset})))")

    @property
    def view(self) -> tuple[float, float]:
        state = self.state
        return float(state["start"]), float(state["end"])

    def keys(self, *keys: str) -> None:
        ActionChains(self.browser).send_keys(*keys).perform()

    def choose(self, name: str, text: str) -> None:
        Select(self.find(name)).select_by_visible_text(text)

    def expected(self, video: int, start: float = 0.0, end: float = np.inf, least: float = 0.0, group: int | None = None) -> int:
        """Predictions of the page's data that lie in a view, above a score."""
        return sum(score >= least and e >= start and s <= end and group in (None, c)
                   for one in self.data["timeline"]["videos"][video]["predictions"]
                   for s, e, c, score in zip(one["start"], one["end"], one["class"], one["score"], strict=True))

    def messages(self) -> list:
        return self.browser.get_log("browser")


@pytest.fixture
def one(browser, folder):
    return Page(browser, folder / "one.html")


@pytest.fixture
def two(browser, folder):
    return Page(browser, folder / "two.html")


@pytest.mark.parametrize("name", ["one", "two", "media"])
def test_opens_without_messages_and_loads_nothing(browser, folder, name):
    page = Page(browser, folder / f"{name}.html")
    assert page.messages() == []
    assert page("return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('file:')).length") == 0
    assert "http" not in "".join(page("return [...document.querySelectorAll('[src],[href]')].map((e) => e.getAttribute('src') || "
                                      "e.getAttribute('href'))"))


def test_numbers_are_those_of_the_json_file(two, folder):
    content = json.loads((folder / "two.json").read_text())
    cells = [[td.text for td in row.find_elements(By.TAG_NAME, "td")] for row in two.find("overview-table").find_elements(
        By.CSS_SELECTOR, "tbody tr")]
    shown = {row[0]: row[1:] for row in cells}
    first, second = (one["average_mAP"] for one in content["predictions"])
    assert first > second > 0
    assert shown["average mAP (%)"] == [f"{100 * first:.2f}", f"{100 * second:.2f}", f"\u2212{100 * (first - second):.2f}"]
    assert shown["predictions"][:2] == ["114", "114"]


def test_intervals_stand_beside_the_numbers(browser, folder, tmp_path):
    """With videos enough to resample: ten more than on the other pages."""
    for name, key in (("truth", "database"), ("first", "results"), ("second", "results")):
        document = json.loads((folder / f"{name}.json").read_text())
        document[key] |= {f"walk{i}": document[key]["walk"] for i in range(10)}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    files = [str(tmp_path / f"{name}.json") for name in ("first", "truth", "second")]
    diagnose.main([*files[:2], "--compare", files[2], "-o", str(tmp_path / "many.html")])
    page, content = Page(browser, tmp_path / "many.html"), json.loads((tmp_path / "many.json").read_text())
    cells = [td.text for td in page.find("overview-table").find_elements(By.CSS_SELECTOR, "tbody tr:first-child td")]
    for cell, one in zip(cells[1:3], content["predictions"], strict=True):
        low, high = one["confidence"]["average_mAP"]
        assert cell == f"{100 * one['average_mAP']:.2f} ({100 * low:.2f} to {100 * high:.2f})"
    paired = content["paired"]["average"]
    shown = [f"{100 * x:+.2f}".replace("-", "\u2212") for x in (paired["difference"], *paired["interval"])]
    assert cells[3] == f"{shown[0]} ({shown[1]} to {shown[2]})"
    assert content["verdict"].partition("\n")[0] in page.find("cards").text
    assert page.messages() == []


def test_the_slider_hides_predictions_below_it(one):
    assert int(one.state["drawn"]) == one.expected(0) == 38
    slider = one.find("score")
    drawn = [38]
    for _ in range(3):
        slider.send_keys(Keys.PAGE_UP)
        state = one.state
        assert int(state["drawn"]) == one.expected(0, least=float(slider.get_attribute("value")))
        drawn.append(int(state["drawn"]))
    assert drawn == sorted(set(drawn), reverse=True), "every step hides some"
    assert one.find("score-text").text == f"{float(slider.get_attribute('value')):.3f}"
    slider.send_keys(Keys.END)
    assert int(one.state["drawn"]) == one.expected(0, least=0.9) > 0
    slider.send_keys(Keys.HOME)
    assert int(one.state["drawn"]) == 38


def test_buttons_wheel_and_drag_change_the_view(one):
    assert one.view == (0, SECONDS)
    one.find("zoom-in").click()
    one.find("zoom-in").click()
    start, end = one.view
    assert end - start == pytest.approx(SECONDS / 2.25, abs=1e-3)
    assert (start + end) / 2 == pytest.approx(10, abs=1e-3)
    assert int(one.state["drawn"]) == one.expected(0, start, end) < 38

    canvas = one.find("canvas")
    one("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(one.browser).drag_and_drop_by_offset(canvas, 300, 0).perform()
    moved = one.view
    assert moved[0] < start
    assert moved[1] - moved[0] == pytest.approx(end - start, abs=1e-3)
    assert int(one.state["drawn"]) == one.expected(0, *moved)

    ActionChains(one.browser).scroll_from_origin(ScrollOrigin.from_element(canvas, 200, 0), 0, -100).perform()
    closer = one.view
    assert closer[1] - closer[0] == pytest.approx((end - start) / 1.25, abs=1e-3)
    one.find("zoom-out").click()
    assert one.view[1] - one.view[0] > closer[1] - closer[0]
    one.find("zoom-all").click()
    assert one.view == (0, SECONDS)


def test_the_keyboard_does_it_all(one):
    one("arguments[0].focus()", one.find("canvas"))
    one.keys("+", "+")
    start, end = one.view
    assert end - start == pytest.approx(SECONDS / 2.25, abs=1e-3)
    one.keys(Keys.ARROW_RIGHT)
    assert one.view[0] == pytest.approx(start + 0.1 * (end - start), abs=1e-3)
    one.keys(Keys.ARROW_LEFT)
    assert one.view[0] == pytest.approx(start, abs=1e-3)
    one.keys("-")
    assert one.view[1] - one.view[0] > end - start
    one.keys("0", "]", "]")
    assert one.view == (0, SECONDS)
    assert float(one.state["least"]) == pytest.approx(0.09, abs=1e-3)
    assert int(one.state["drawn"]) == one.expected(0, least=0.09) < 38
    assert float(one.find("score").get_attribute("value")) == pytest.approx(0.09, abs=5e-3), "the slider follows"
    one.keys("[", "[", "n")
    names = [v["id"] for v in one.data["timeline"]["videos"]]
    assert one.state["video"] == names[1]
    one.keys("p", "p")
    assert one.state["video"] == names[2]
    assert Select(one.find("video")).first_selected_option.text.startswith(names[2])


def test_choice_of_video_and_class(one):
    one.find("search").send_keys("RU")
    assert one.state["video"] == "run"
    assert [o.text.split(" ")[0] for o in Select(one.find("video")).options] == ["run"]
    index = [v["id"] for v in one.data["timeline"]["videos"]].index("run")
    turn = one.data["classes"].index("turn")
    one.choose("class", "turn")
    state = one.state
    assert (state["rows"], state["truths"]) == ("1", "1")
    assert int(state["drawn"]) == one.expected(index, group=turn)


def test_the_worst_videos_come_first_and_keys_follow_the_list(two):
    def missed(video, tiou):
        return sum(f[tiou] == "0" for found in video["ground_truth"]["found"] for f in found)
    videos = two.data["timeline"]["videos"]
    two.choose("tiou", "0.6")
    two.choose("order", "most missed")
    expected = sorted(range(3), key=lambda i: (-missed(videos[i], 3), i))
    assert missed(videos[expected[0]], 3) > 0
    assert [int(o.get_attribute("value")) for o in Select(two.find("video")).options] == expected
    two("arguments[0].focus()", two.find("canvas"))
    seen = [two.state["video"]]
    for _ in range(3):
        two.keys("n")
        seen.append(two.state["video"])
    assert seen == [videos[i]["id"] for i in [*expected, expected[0]]]
    two.choose("order", "most false positives")

    def wrong(video):
        return sum(s for one in video["predictions"] for s, k in zip(one["score"], one["kinds"], strict=True) if k[3] != "0")
    amounts = [wrong(videos[int(o.get_attribute("value"))]) for o in Select(two.find("video")).options]
    assert amounts == sorted(amounts, reverse=True)
    assert two.state["video"] == max(videos, key=wrong)["id"]


def test_hovering_tells_what_lies_there(one):
    canvas, tip = one.find("canvas"), one.find("tip")
    one("arguments[0].scrollIntoView({block: 'center'})", canvas)
    assert not tip.is_displayed()
    x, y, text = one("const s = timeline.shapes.find((s) => s.rank === 2);"
                     "return [s.x + s.w / 2, s.y + s.h / 2, s.text().join('|')]")
    half = canvas.size["width"] / 2, canvas.size["height"] / 2
    ActionChains(one.browser).move_to_element_with_offset(canvas, x - half[0], y - half[1]).perform()
    assert tip.is_displayed()
    assert tip.text.split("\n") == text.split("|")
    assert tip.text.startswith("ground truth: ")
    assert "found at tIoU 0.5" in tip.text


def test_the_threshold_changes_kinds_and_figures(one):
    table = one.find("error-table")
    one.choose("tiou", "0.5")
    before, counts = one.state, table.text
    one.choose("tiou", "0.7")
    assert (before["tiou"], one.state["tiou"]) == ("0.5", "0.7")
    assert table.text != counts
    row = next(line for line in table.text.splitlines() if line.startswith("true positive"))
    assert int(row.split()[2]) == one.data["predictions"][0]["kind_counts"][4][0]


def test_two_files_side_by_side(two):
    assert int(two.state["drawn"]) == two.expected(0) == 76
    assert len(two.find("profile-charts").find_elements(By.TAG_NAME, "svg")) == 2
    assert len(two.find("curve-charts").find_elements(By.TAG_NAME, "svg")) == 3
    heads = [th.text for th in two.find("class-table").find_elements(By.CSS_SELECTOR, "thead tr:first-child th")]
    assert heads == ["", "first", "second", ""]
    bars = two.find("gain-charts").find_elements(By.TAG_NAME, "rect")
    assert len(bars) == 2 * 5 * 2


def test_a_click_on_a_head_sorts(one):
    def column():
        return [float(row.find_elements(By.TAG_NAME, "td")[2].text) for row in one.find("class-table").find_elements(
            By.CSS_SELECTOR, "tbody tr")]
    button = one.find("class-table").find_elements(By.TAG_NAME, "button")[2]
    one("arguments[0].click()", button)
    falling = column()
    assert falling == sorted(falling, reverse=True)
    one("arguments[0].click()", button)
    assert column() == falling[::-1]
    assert len(set(falling)) > 1


def test_names_from_files_stay_text(two):
    two.find("search").send_keys("script")
    assert two.state["video"] == HOSTILE_VIDEO
    assert HOSTILE_CLASS in [o.text for o in Select(two.find("class")).options]
    assert HOSTILE_CLASS in two.find("class-table").text
    assert two("return window.hacked") is None
    assert two("return [document.images.length, document.scripts.length]") == [0, 2]
    assert two.messages() == []


def seek(page: Page, seconds: float) -> None:
    page.browser.execute_async_script(
        "const [seconds, done] = arguments, media = document.getElementById('media');"
        "media.addEventListener('seeked', () => done(), {once: true}); media.currentTime = seconds;", seconds)


def test_a_local_file_plays_in_step(one, folder):
    one("document.getElementById('player').open = true")
    one.find("file").send_keys(str(folder / "sound.wav"))
    WebDriverWait(one.browser, 30).until(lambda _: one("return document.getElementById('media').readyState") > 0)
    seek(one, 7.5)
    assert float(one.state["cursor"]) == pytest.approx(7.5, abs=0.05)
    one.find("zoom-in").click()
    seek(one, 19)
    assert one.view[0] <= 19 <= one.view[1], "the view follows the cursor"
    one.find("zoom-all").click()
    canvas = one.find("canvas")
    one("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(one.browser).move_to_element(canvas).click().perform()
    WebDriverWait(one.browser, 30).until(lambda _: one("return !document.getElementById('media').seeking"))
    expected = one("return timeline.at(document.getElementById('canvas').clientWidth / 2)")
    assert one("return document.getElementById('media').currentTime") == pytest.approx(expected, abs=0.1)
    one("arguments[0].focus()", canvas)
    one.keys("n")
    assert one("return document.getElementById('media').hasAttribute('src')") is False, "another video: the file is not its own"
    assert one.messages() == []


def test_files_of_a_folder_are_offered(browser, folder):
    page = Page(browser, folder / "media.html")
    page.find("search").send_keys("run")
    WebDriverWait(browser, 30).until(lambda _: page("return document.getElementById('media').readyState") > 0)
    assert page("return document.getElementById('media').duration") == pytest.approx(20, abs=0.1)
    page.find("search").clear()
    page.find("search").send_keys("walk")
    assert page("return document.getElementById('media').hasAttribute('src')") is False
    assert page.messages() == []


@pytest.mark.parametrize("width", [1280, 700])
def test_nothing_sticks_out(two, width):
    two.browser.set_window_size(width, 900)
    two.state  # noqa: B018 - waits for a frame
    assert two("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
