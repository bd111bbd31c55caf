"""The page in a browser: headless Chromium, started once. Nothing may leave the page."""

import gzip
import json
import shutil
import threading

import pytest

from dft_mm.report.page import write_report
from dft_mm.report.watch import LivePage, address_of, serve

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver on the PATH; Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(arms, tmp_path_factory):
    """The page of sft and dft."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_report(arms[1:], file)
    return file


@pytest.fixture
def opened(browser, file):
    browser.get_log("performance")
    browser.get(file.as_uri())
    return browser


def find(browser, selector):
    return browser.find_element("css selector", selector)


def shown(browser, selector):
    return [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]


def ids(browser):
    return [each.find_element("css selector", "h3").text for each in shown(browser, ".example")]


def press(browser, key):
    find(browser, ":focus").send_keys(key)


def wait_for(browser, selector, text):
    """Until a part of the page says something."""
    browser.execute_async_script(
        """
        const [selector, text, done] = arguments;
        const look = () =>
            document.querySelector(selector).textContent.includes(text) ? done() : setTimeout(look, 50);
        look();
        """,
        selector, text,
    )  # fmt: skip


def requests_of(browser):
    """Addresses that were asked for since the last call; those inside the page begin with `data:`."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def test_the_page_is_used_and_no_request_leaves_it(opened):
    # The legend, by mouse.
    button = find(opened, "[data-switch='0']")
    lines = shown(opened, "#training [data-run='0']")
    assert len(lines) >= 10
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert shown(opened, "[data-run='0']") == []
    assert shown(opened, "#training [data-run='1']")
    # And by keyboard, from one button to the next.
    opened.execute_script("arguments[0].focus()", button)
    press(opened, " ")
    assert button.get_attribute("aria-pressed") == "true"
    assert len(shown(opened, "#training [data-run='0']")) == len(lines)
    press(opened, "\ue004")
    assert find(opened, ":focus").text == "dft"
    press(opened, "\ue007")
    assert shown(opened, "[data-run='1']") == []

    # The examples: DFT right, SFT wrong.
    assert len(ids(opened)) == 24
    assert find(opened, ".count").text == "40 of 40 match; the first 24 are shown"
    (choice,) = [each for each in opened.find_elements("css selector", "#filter-outcome option") if "(8)" in each.text]
    assert choice.text == "dft right, sft wrong (8)"
    choice.click()
    assert ids(opened) == [f"writers, q{number}" for number in range(24, 32)]
    assert find(opened, ".count").text == "8 of 40 match"
    # Text beside it, and nothing left.
    find(opened, "#filter-text").send_keys("Q27")
    assert ids(opened) == ["writers, q27"]
    find(opened, "#filter-text").send_keys("no such text")
    assert ids(opened) == []
    # More of them, by keyboard; the first new one has the focus.
    opened.execute_script("document.querySelector('#filter-text').value = ''")
    find(opened, "#filter-text").send_keys(" ")
    find(opened, "#filter-outcome option").click()
    opened.execute_script("document.querySelector('.more').focus()")
    press(opened, "\ue007")
    assert len(ids(opened)) == 40
    assert find(opened, ":focus h3").text == "writers, q24"

    assert requests_of(opened) == [opened.current_url]
    assert opened.get_log("browser") == []


def test_a_request_would_be_refused(opened):
    blocked = opened.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "const picture = new Image(); picture.src = 'http://127.0.0.1:9/x.png';"
    )
    assert blocked == "img-src"
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    failed = [each["params"] for each in messages if each["method"] == "Network.loadingFailed"]
    assert [each.get("blockedReason") for each in failed] == ["csp"]
    opened.get_log("browser")


def test_values_are_read_off_under_the_pointer(opened):
    plot = find(opened, "figure[data-curve] svg")
    script = """
        const box = arguments[0].getBoundingClientRect();
        const event = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true};
        arguments[0].dispatchEvent(new PointerEvent('pointermove', event));
        return [...document.querySelectorAll('figure[data-curve] .readout')].map((each) => each.textContent);
    """
    first, *others = opened.execute_script(script, plot)
    assert first.count(": ") == 2
    assert 15 < int(first.split(":")[0]) < 27
    assert all(others)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_its_window_and_can_be_read(opened, width, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
        faint = opened.execute_script(CONTRAST)
        assert faint == []
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
    function behind(element) {
        for (let each = element; each; each = each.parentElement) {
            const colour = numbers(getComputedStyle(each).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
    }
    const faint = new Set();
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.closest('script, option')) continue;
        const style = getComputedStyle(element);
        const front = element.closest('svg') && style.fill !== 'none' ? style.fill : style.color;
        const [a, b] = [light(numbers(front)), light(behind(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.add(`${element.tagName} ${element.className}: ${front}`);
    }
    return [...faint];
"""


def test_without_a_script_everything_can_be_read(opened):
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        assert len(shown(opened, ".example")) == 40
        assert len(shown(opened, "#training figure")) == 8
        assert shown(opened, ".filters") == []
        assert not find(opened, "[data-switch='0']").is_enabled()
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_live_page_follows_its_runs_and_keeps_what_the_reader_chose(browser, arms, tmp_path):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in arms[1:]]
    page = LivePage(runs)
    with serve(page, port=0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        browser.get_log("performance")
        browser.get(address_of(server))
        find(browser, "[data-switch='1']").click()
        find(browser, "#filter-text").send_keys("q2")
        details = find(browser, "#values-ce")
        browser.execute_script("arguments[0].open = true; window.scrollTo(0, 700)", details)
        assert len(ids(browser)) == 11
        with (runs[0] / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 41, "ce": 0.875}) + "\n")
        page.refresh()
        assert "0.875" in gzip.decompress(page.version().body).decode()
        wait_for(browser, "#values-ce", "0.875")
        assert find(browser, "#values-ce").get_attribute("open")
        assert find(browser, "[data-switch='1']").get_attribute("aria-pressed") == "false"
        assert shown(browser, "#training [data-run='1']") == []
        assert len(ids(browser)) == 11
        assert find(browser, ":focus").get_attribute("id") == "filter-text"
        assert browser.execute_script("return Math.round(window.scrollY)") == 700
        assert find(browser, ".live").text == "Live: this page follows the runs."
        assert set(requests_of(browser)) == {address_of(server)}
        # A server that refuses is no server that follows; when it gives the page again, the page does so again.
        names, server.names = server.names, set()
        wait_for(browser, ".live", "No news from the server")
        server.names = names
        wait_for(browser, ".live", "Live")
        # What goes wrong in the page itself is not said of the server.
        browser.get_log("browser")
        browser.execute_script(
            "document.importNode = () => { document.title = 'a bug of the page'; throw new Error('a bug'); }"
        )
        with (runs[0] / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 42, "ce": 0.75}) + "\n")
        page.refresh()
        wait_for(browser, "title", "a bug of the page")
        assert find(browser, ".live").text == "Live: this page follows the runs."
        server.shutdown()
    wait_for(browser, ".live", "No news from the server")
    browser.get_log("browser")
