"""A headless Chromium for the pages that tools/diagnose.py and tools/predict.py write; plain pytest leaves these out."""
from __future__ import annotations

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A window of 1280 x 900 that no profile of the user touches; messages of the pages are in its log."""
    options = webdriver.ChromeOptions()
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(programs.values()), f"not installed: {programs}; run `make test-browser`, which installs them on Debian"
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, "--window-size=1280,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # the driver is named, so that selenium neither looks for one nor fetches one
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()
