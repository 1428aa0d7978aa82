"""The page at / in a real browser: a photo is chosen, a text typed, by keyboard and on a phone's screen."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import tf_finetune
from tests import builders
from tests.integration import test_serving

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("there is no chromium with its chromedriver", allow_module_level=True)

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

WORDS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
WORDS += ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for word in WORDS:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def told(browser, css: str = "#best, #answer .error") -> str:
    """Returns what the page answers."""
    return WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, css))[0].text


def rows(browser) -> list[list[str]]:
    lines = browser.find_elements(By.CSS_SELECTOR, "#answer tr")
    return [[cell.text for cell in line.find_elements(By.CSS_SELECTOR, "th, td")] for line in lines]


def shot(browser, name: str) -> None:
    """Keeps a picture for those who want to look: TF_FINETUNE_SHOTS names the folder."""
    folder = os.environ.get("TF_FINETUNE_SHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder, f"{name}.png")))


def is_narrow(browser) -> bool:
    return browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_a_photo_that_is_chosen_is_answered_and_so_is_what_is_no_photo(browser, tmp_path, mean_backbone):
    photos = builders.write_class_folders(tmp_path / "photos", per_class=4)
    (photos / "yellow").rename(photos / "<b>yellow & a name that is far too long for the line of a phone")
    settings = {"backbone": str(mean_backbone), "cache_dir": "none"}
    tf_finetune.train(photos, tmp_path / "out", "page", **settings)
    archive = tmp_path / "out/page/output/model.tar.gz"
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    with test_serving.serving(archive) as server:
        browser.set_window_size(360, 740)
        browser.get(f"http://{server.host}:{server.port}/")
        assert browser.switch_to.active_element.get_attribute("id") == "file"  # The keyboard is where it is needed.
        browser.find_element(By.ID, "file").send_keys(str(photos / "cyan/0.png"))
        assert told(browser, "#best") == "cyan"
        found = rows(browser)
        model = tf_finetune.load(archive)
        expected = sorted(model.predict(photos / "cyan/0.png")[0]["probabilities"], reverse=True)
        assert [row[2] for row in found] == [f"{100 * value:.1f} %" for value in expected]
        assert {row[0] for row in found} == set(model.class_names)  # As text, not as HTML.
        assert is_narrow(browser)
        shot(browser, "photo")
        browser.find_element(By.ID, "file").send_keys(str(tmp_path / "bad.jpg"))
        assert "it is no photo and looks like" in told(browser, "#answer .error")
        assert not [line for line in browser.get_log("browser") if "Security Policy" in line["message"]]


def test_a_text_that_is_typed_is_answered_by_the_keyboard_alone(browser, tmp_path):
    builders.write_csv(tmp_path / "data", builders.texts_by_length(24))
    backbone = builders.save_length_backbone(tmp_path / "backbone")
    tf_finetune.train(tmp_path / "data", tmp_path / "out", "page", backbone=str(backbone), cache_dir="none")
    with test_serving.serving(tmp_path / "out/page/output/model.tar.gz") as server:
        browser.get(f"http://{server.host}:{server.port}/")
        browser.switch_to.active_element.send_keys("tiny", Keys.CONTROL + Keys.ENTER)
        assert told(browser, "#best") == "short"
        assert is_narrow(browser)
        shot(browser, "text")
        about = json.loads(browser.find_element(By.ID, "about").get_attribute("textContent"))
        assert about == {"task": "text", "classes": ["long", "short"]}
        browser.find_element(By.ID, "text").clear()
        browser.find_element(By.ID, "text").send_keys(Keys.TAB, Keys.ENTER)  # The button.
        assert told(browser, "#answer .error") == "Type a text first."
        server.process.kill()
        server.process.wait()
        browser.find_element(By.ID, "text").send_keys("tiny", Keys.TAB, Keys.ENTER)
        WebDriverWait(browser, 30).until(lambda page: "The server does not answer." in told(page, "#answer .error"))
