"""A headless Chromium that opens one page and takes down what it asked for and complained about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync"]


class Page:
    """An open page.

    Attributes:
        driver: the browser.
    """

    def __init__(self, driver: webdriver.Chrome, path: Path) -> None:
        self.driver = driver
        self._address = path.as_uri()
        driver.get(self._address)

    def all(self, selector: str) -> list[WebElement]:
        """Elements that can be seen."""
        return [found for found in self.driver.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()]

    def click(self, element: WebElement) -> None:
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def select(self, selector: str) -> Select:
        return Select(self.driver.find_element(By.CSS_SELECTOR, selector))

    def width(self, pixels: int, scheme: str = "light") -> int:
        """Give the window a width and the page a colour scheme; the width that the page then takes."""
        sizes: dict[str, Any] = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 800}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return int(self.driver.execute_script("return document.documentElement.scrollWidth"))

    def requests(self) -> set[str]:
        """Addresses asked for since the last call: not the page's own, what it holds, or the browser's first tab."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = {
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        }
        assert self._address in asked, "the log is empty, so it says nothing"
        return {url for url in asked if url != self._address and not url.startswith(("data:", "chrome:"))}

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def opened(path: Path, profile: Path) -> Iterator[Page]:
    """Open a file; `profile` is a folder that does not exist yet."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*FLAGS, f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield Page(driver, path)
    finally:
        driver.quit()
