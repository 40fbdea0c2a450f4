"""The operator's page in a real browser, against the real service: what a person does, by clicks and keys."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from azaion_devkit.browser import Browser, BrowserError
from azaion_devkit.device import EMAIL, PASSWORD, Device, image_ids
from azaion_devkit.loader_process import LoaderProcess
from azaion_devkit.object_store import ObjectStore

pytestmark = [pytest.mark.browser, pytest.mark.engine]

PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
TAB = "\ue004"


@pytest.fixture
def device(docker_host: str, tmp_path: Path) -> Iterator[Device]:
    with Device(tmp_path / "device") as made:
        yield made


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


def assert_at_home(browser: Browser, loader: LoaderProcess) -> None:
    asked = browser.requested()
    assert asked
    assert [url for url in asked if not url.startswith(f"{loader.url}/")] == []
    # Answers that are no success are said there, too; what must not be is a broken policy or script.
    said = [words for words in browser.complaints() if "Failed to load resource" not in words]
    assert said == []


def enter(browser: Browser, password: str = PASSWORD) -> None:
    browser.type("#email", EMAIL)
    browser.type("#password", password)


@pytest.fixture
def store(device: Device, tmp_path: Path) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path / "store") as made:
        made.make_bucket("models")
        (device.folder / "api" / "cdn.yaml").write_bytes(made.cdn_yaml())
        yield made


def test_a_whole_unlock_by_clicks(device: Device, store: ObjectStore, browser: Browser) -> None:
    device.place(device.images(shared_bytes=3_000_000, unique_bytes=2_000_000))
    loader = device.loader()
    browser.open(loader.url)
    browser.wait_for_text("#state", "Not unlocked")
    browser.screenshot(PICTURES / "idle.png")
    enter(browser)
    browser.click("button[name=unlock]")
    browser.wait_for_text("#state", "Ready", 90)
    assert browser.text("#percent") == "100 %"
    assert browser.text("#images") == "7 of 7"
    assert browser.run("return document.querySelectorAll('#dots .done').length") == 7
    assert browser.run("return document.getElementById('password').value") == ""
    browser.wait_for_text("#session", "Logged in")
    assert browser.text("#live") == "Ready"
    browser.click("#diagnose")
    browser.wait_for_text("#diagnosis-message", "Nothing keeps")
    browser.screenshot(PICTURES / "ready.png")
    browser.emulate(1000, 700)
    browser.run("window.scrollTo(0, 0)")
    browser.screenshot(PICTURES / "readme.png", whole=False)
    browser.emulate(1100, 1000, dark=True)
    browser.screenshot(PICTURES / "ready-dark.png")
    browser.emulate(390, 844)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.screenshot(PICTURES / "ready-phone.png")
    assert all(image_ids(device.tags))
    assert_at_home(browser, loader)


def test_a_run_is_watched_while_it_goes_on(device: Device, browser: Browser) -> None:
    device.place(device.images())
    loader = device.loader()
    device.api.fail_next("/binary-split/key-fragment", delay_s=4.0)
    browser.open(loader.url)
    enter(browser)
    browser.click("button[name=unlock]")
    browser.wait_for_text("#state", "Fetching the key")
    assert browser.text("#stages li[aria-current=step]") == "Fetch key"
    browser.screenshot(PICTURES / "running.png")
    browser.wait_for_text("#state", "Ready", 90)


def test_a_wrong_password(device: Device, browser: Browser) -> None:
    loader = device.loader()
    browser.open(loader.url)
    enter(browser, "not-the-password")
    browser.click("#login")
    browser.wait(lambda: browser.run("return document.getElementById('account-message').dataset.tone") == "bad", "a no")
    assert "password" in browser.text("#account-message").lower()
    # The next try begins in the field that was wrong.
    assert browser.run("return document.activeElement.id") == "password"
    assert browser.text("#session") == "Not logged in"
    browser.screenshot(PICTURES / "wrong-password.png")
    assert_at_home(browser, loader)


def test_an_engine_that_is_down(device: Device, browser: Browser) -> None:
    device.place(device.images())
    loader = device.loader({"DOCKER_HOST": f"unix://{device.folder}/no-engine.sock"})
    browser.open(loader.url)
    enter(browser)
    browser.click("button[name=unlock]")
    browser.wait_for_text("#state", "Failed", 60)
    assert "docker_unavailable" in browser.text("#run-error")
    browser.click("#diagnose")
    browser.wait_for_text("#diagnosis-message", "found a fault")
    assert "There is no socket" in browser.text("#findings")
    assert "systemctl start docker" in browser.text("#findings")
    browser.screenshot(PICTURES / "engine-down.png")
    assert_at_home(browser, loader)


def test_models(device: Device, store: ObjectStore, browser: Browser, tmp_path: Path) -> None:
    model = tmp_path / "demo.onnx"
    model.write_bytes(secrets.token_bytes(700_001))
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    loader = device.loader()
    browser.devtools("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    browser.open(loader.url)
    enter(browser)
    browser.click("#login")
    browser.wait_for_text("#session", "Logged in")
    browser.choose_file("#file", model)
    browser.click("#upload")
    browser.wait_for_text("#models-message", "Published demo.onnx", 60)
    browser.click("#list")
    browser.wait_for_text("#listing", "demo.onnx")
    assert "published" in browser.text("#listing")
    browser.click("#load")
    browser.wait_for_text("#models-message", "Loaded demo.onnx", 60)
    loaded = downloads / "demo.onnx"
    browser.wait(loaded.exists, "the download")
    assert loaded.read_bytes() == model.read_bytes()
    browser.type("#name", "absent.onnx")
    browser.click("#load")
    browser.wait_for_text("#models-message", "There is no resource")
    assert_at_home(browser, loader)


def test_a_service_with_a_token(device: Device, browser: Browser, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-token\n")
    loader = device.loader({"LOADER_API_TOKEN_FILE": str(token), "ALLOWED_HOSTS": "127.0.0.1"})
    browser.open(loader.url)
    browser.wait(lambda: not browser.run("return document.getElementById('token-card').hidden"), "the token's card")
    browser.type("#token", "another-token")
    browser.click("#token-form button")
    browser.wait_for_text("#token-message", "refused")
    browser.type("#token", "a-long-token")
    browser.click("#token-form button")
    browser.wait_for_text("#state", "Not unlocked")
    browser.wait_for_text("#session", "Not logged in")
    enter(browser)
    browser.click("#login")
    browser.wait_for_text("#session", "Logged in")
    assert_at_home(browser, loader)


def test_a_service_that_goes_away_and_comes_back(device: Device, browser: Browser) -> None:
    loader = device.loader()
    browser.open(loader.url)
    browser.wait_for_text("#state", "Not unlocked")
    loader.kill()
    browser.wait(lambda: not browser.run("return document.getElementById('offline').hidden"), "a word about it")
    loader.start()
    browser.wait(lambda: browser.run("return document.getElementById('offline').hidden"), "that it is gone")


def test_every_control_by_keyboard_and_by_name(device: Device, browser: Browser) -> None:
    loader = device.loader()
    browser.open(loader.url)
    browser.wait_for_text("#state", "Not unlocked")
    wanted = browser.run(
        "return [...document.querySelectorAll('main input, main button')].filter(e => e.checkVisibility()).length"
    )
    reached = set()
    for _ in range(wanted + 3):
        browser.press(TAB)
        reached.add(
            browser.run(
                "const e = document.activeElement; return e.closest('main') && (e.id || e.name || e.textContent)"
            )
        )
    assert len(reached - {None, False}) >= wanted
    # What a screen reader says of each: from the browser's own tree of accessible things.
    tree = browser.devtools("Accessibility.getFullAXTree", {})["nodes"]
    controls = [
        node
        for node in tree
        if node.get("role", {}).get("value") in {"textbox", "button", "checkbox", "combobox", "progressbar"}
    ]
    assert controls
    assert [node for node in controls if not node.get("name", {}).get("value")] == []


CONTRAST = """
const shade = (words) => {
  const [r, g, b] = words.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return 'rgb(255,255,255)';
};
const worst = [];
for (const element of document.querySelectorAll('body *')) {
  const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!words || !element.checkVisibility()) continue;
  const [a, b] = [shade(getComputedStyle(element).color), shade(ground(element))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) worst.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
}
return worst;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(device: Device, dark: bool) -> None:
    loader = device.loader({"DOCKER_HOST": f"unix://{device.folder}/no-engine.sock"})
    with Browser(dark=dark) as browser:
        browser.open(loader.url)
        browser.click("#diagnose")
        browser.wait_for_text("#diagnosis-message", "found a fault")
        assert browser.run(CONTRAST) == []


def test_the_description_works_offline(device: Device, browser: Browser) -> None:
    loader = device.loader()
    browser.open(f"{loader.url}/docs")
    browser.wait(lambda: browser.run("return document.querySelectorAll('.opblock').length") > 10, "the operations")
    browser.screenshot(PICTURES / "docs.png")
    assert_at_home(browser, loader)


def test_the_page_is_small(device: Device, browser: Browser) -> None:
    loader = device.loader()
    browser.open(loader.url)
    browser.wait_for_text("#state", "Not unlocked")
    sizes = browser.run(
        "return performance.getEntriesByType('resource')"
        ".filter(e => e.name.includes('/static/')).map(e => e.decodedBodySize)"
    )
    page = browser.run("return performance.getEntriesByType('navigation')[0].decodedBodySize")
    assert len(sizes) >= 3
    assert page + sum(sizes) < 60_000


def test_the_browser_tells_of_foreign_requests(device: Device, browser: Browser) -> None:
    """Proves the check above: a page that strays is seen, and one that breaks its policy as well."""
    loader = device.loader()
    browser.open(f"data:text/html,<img src={json.dumps('http://127.0.0.1:9/foreign.png')}>")
    browser.wait(lambda: any("foreign.png" in url for url in browser.requested()), "the foreign request")
    browser.open(loader.url)
    browser.run(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/foreign.png'}))"
    )
    browser.wait(lambda: any("Content Security Policy" in words for words in browser.complaints()), "the policy")


def test_no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BrowserError, match="chromium-driver"):
        Browser().__enter__()
