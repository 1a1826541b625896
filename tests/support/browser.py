"""A real browser without a window, for tests of the console: Debian's Chromium and its driver, through Selenium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SLOW_S = 120


def require_browser() -> tuple[str, str]:
    """Chromium and its driver. Skips where they are not installed; fails where REQUIRE_BROWSER=1 says they must be."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if found[0] and found[1]:
        return found[0], found[1]
    message = "Chromium and its driver are not installed; run: make browser"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@contextmanager
def browsing(profile: Path, *, width: int = 1360, height: int = 900) -> Iterator[Chrome]:
    """A browser with an empty profile in ``profile``; it ends with the block."""
    program, driver = require_browser()
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Selenium asks the proxy of the environment for the driver beside it, unless it is told not to.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        started = Chrome(options=options, service=ChromeService(driver))
    try:
        started.set_page_load_timeout(SLOW_S)
        started.set_script_timeout(SLOW_S)
        yield started
    finally:
        started.quit()


def complaints(driver: Chrome) -> list[str]:
    """What the browser's console got since the last call: errors, warnings, violations of the policy."""
    entries: list[dict[str, str]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
