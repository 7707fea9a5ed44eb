"""The page in a real browser: it completes and chats, stops, shows gauges, loads nothing from outside."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

from haversack.models._bundled import bundled_names

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "a-token-for-tests-only"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; on Debian: apt install chromium"
)
NOTE = "#sheet-note:not(:empty)"


@pytest.fixture(scope="module")
def browser() -> Any:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Any) -> Any:
    """The page of the shared server; whatever it logs as an error or asks of others fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 760})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda ask: None if ask.url.startswith((server.url, "data:")) else wrong.append(ask.url)
    )
    page.goto(server.url)
    yield page
    context.close()
    assert not wrong


def test_it_completes_what_was_written(page: Any, client: Any) -> None:
    page.wait_for_selector("#sheet:visible")
    page.click("#details summary")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "12")
    page.click("#sheet")
    page.keyboard.insert_text("the other\nend of the")
    page.click("#go")
    page.wait_for_selector(NOTE)
    expected = client.completions.create(
        model="tiny", prompt="the other\nend of the", max_tokens=12, temperature=0, top_p=0.95
    )
    assert page.locator("#under .fresh").text_content() == expected.choices[0].text
    assert page.locator("#sheet").input_value() == "the other\nend of the" + expected.choices[0].text
    note = page.locator("#sheet-note").text_content()
    assert re.match(r"\d+ tokens.*first after \d+ ms", note)
    page.wait_for_function("() => document.querySelector('#model').textContent.startsWith('tiny')")
    assert page.locator("#memory").text_content().endswith("MiB")
    assert page.locator("#running").text_content().endswith("of 4")
    page.click("#clear")
    assert page.locator("#sheet").input_value() == ""


def test_it_chats(browser: Any, serving: Any, tiny: Any, tmp_path: Any) -> None:
    """What was said goes along, code is shown as code, and nothing is read as HTML."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    with serving.serving(tiny, chat_template=template) as server:
        asked: list[Any] = []
        page = browser.new_page()
        page.on("request", lambda ask: asked.append(ask.post_data_json) if ask.method == "POST" else None)
        page.goto(server.url)
        page.wait_for_selector("#ask:visible")
        page.click("#details summary")
        page.fill("#max_tokens", "5")
        page.fill("#system", "Be brief.")
        for number, said in enumerate(("in <b>a</b> road", "the other")):
            page.fill("#ask", said)
            page.press("#ask", "Enter")
            page.wait_for_selector(f".message.assistant >> nth={number} >> .note:not(:empty)")
        assert page.locator(".message.user .text").all_text_contents() == ["in <b>a</b> road", "the other"]
        first = page.locator(".message.assistant .text").first.text_content()
        assert [message["role"] for message in asked[1]["messages"]] == [
            "system",
            "user",
            "assistant",
            "user",
        ]
        assert asked[1]["messages"][2]["content"].lstrip("\n") == first
        shown = page.evaluate(
            """() => { const e = document.createElement("div"); render(e, "a ```py\\nx = 1\\n``` <i>b</i>");
            return [e.querySelector("pre").textContent, e.querySelectorAll("i").length]; }"""
        )
        assert shown == ["x = 1", 0]
        page.close()


def test_stop_stops(browser: Any, serving: Any) -> None:
    """A bundled model, whose answers take long enough to be stopped."""
    if "code" not in bundled_names():
        pytest.skip("the weights of code are not in this checkout")
    with serving.serving("code") as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#sheet:visible")
        page.click("#details summary")
        page.set_default_timeout(90_000)  # on a busy machine
        page.fill("#max_tokens", "1900")
        page.fill("#temperature", "0")  # goes round in a circle, and never ends by itself
        page.fill("#sheet", "class Reader:\n")
        page.click("#go")
        page.wait_for_selector("#under .fresh:not(:empty)")
        page.click("#stop")
        page.wait_for_selector(NOTE)
        assert page.locator("#sheet-note").text_content() == "stopped"
        assert page.locator("#sheet").input_value().startswith("class Reader:\n")
        serving.until(lambda: server.app.batch.state().running == 0)
        page.close()


def test_it_fits_a_phone_and_both_schemes(browser: Any, server: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#sheet:visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert colours[0] != colours[1]


def test_it_asks_for_the_token(browser: Any, serving: Any, tiny: Any) -> None:
    with serving.serving(tiny, token=TOKEN) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#token:visible")
        assert "token" in page.locator("#model").text_content()
        page.fill("#token", TOKEN)
        page.keyboard.press("Tab")
        page.wait_for_selector("#sheet:visible")
        context.close()
