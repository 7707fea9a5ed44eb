"""The phone app in a real browser whose camera plays a rendered day: the right clips arrive at the server,
through lost requests, killed pages and hours without a network; without consent nothing happens at all."""

from __future__ import annotations

import base64
import random
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from phones import (
    BUILT,
    CHROMIUM,
    FACE,
    FPS,
    NO_CHROMIUM,
    NOT_BUILT,
    POLICY,
    browser,
    number_of,
    portrait,
    render,
    short_day,
)
from serving import serving

from haversack.bench.aoe._world import Stretch
from haversack.collect._devices import invite
from haversack.collect._findings import check_bundle
from haversack.collect._policy import read_policy
from haversack.collect._tables import read_table
from haversack.collect._video import decoded
from haversack.collect.agent import EdgeAgent
from haversack.collect.bundle import Bundle, Consent, DeviceRecord, bundles_in
from haversack.collect.detector import HANDS, OnnxDetector
from haversack.collect.edge import frames_of, watch

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.skipif(not BUILT, reason=NOT_BUILT),
]
SECOND = 1_000_000_000
LISTENER = """
const Real = globalThis.MediaStreamTrackProcessor;
globalThis.delivered = [];
globalThis.MediaStreamTrackProcessor = class {
  constructor(init) {
    const canvas = new OffscreenCanvas(192, 8), context = canvas.getContext("2d", {willReadFrequently: true});
    const note = (frame, on) => {
      context.drawImage(frame, 0, 0, 192, 8, 0, 0, 192, 8);
      const { data } = context.getImageData(0, 4, 192, 1);
      let number = 0;
      for (let bit = 0; bit < 12; bit++) if (data[4 * (16 * bit + 8)] > 128) number |= 1 << bit;
      globalThis.delivered.push([number, frame.timestamp]);
      on.enqueue(frame);
    };
    this.readable = new Real(init).readable.pipeThrough(new TransformStream({ transform: note }));
  }
};
"""
"""Notes which frames the browser gave to the app, and when: on a busy machine it leaves some out."""


KEPT_PARTS = """() => Promise.all(["models/hands.onnx", "ort/ort-wasm-simd-threaded.wasm"]
  .map((name) => caches.match("./" + name))).then((found) => found.every(Boolean))"""
"""Whether the detector would be there without a network."""
FACES = "[trigger]\nmax_s = 3\nsplit_s = 1\nmin_s = 1\npre_s = 0.5\n[privacy]\nblur_hz = 0.5\n"
"""Clips of three seconds; few looks for faces, since the browser of a test has no graphics card."""
HANDS_IN = """async (address) => {
  if (!globalThis.Hands) {
    const script = document.createElement("script");
    script.src = "./mediapipe/hands/hands.js";
    await new Promise((done) => { script.onload = done; document.head.append(script); });
    const locateFile = (name) => new URL(`./mediapipe/hands/${name}`, document.baseURI).href;
    globalThis.hands = new Hands({ locateFile });
    hands.setOptions({ maxNumHands: 2, modelComplexity: 0 });
    hands.onResults((found) => { globalThis.found = found.multiHandLandmarks.length; });
  }
  const image = new Image();
  image.src = address;
  await image.decode();
  await hands.send({ image });
  return found;
}"""


@pytest.fixture(scope="module")
def day(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("day") / "day.y4m"
    render(short_day(), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    (root / "policies").mkdir(parents=True)
    (root / "policy.toml").write_text(POLICY)
    (root / "policies" / "1.2.txt").write_text("We study <b>hands</b>.")
    return root


def opened(context: Any, address: str) -> Any:
    """A page of which every error fails the test."""
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(address)
    return page


def enrolled(context: Any, server: Any, faces: str = "Faces are not blurred in this study.") -> Any:
    """The app after consent, set to try with rendered hands and to send at once."""
    code = invite(server.store.books, "c-anna", policy_version="1.2", retention_days=90)
    page = opened(context, f"{server.url}/#enrol={code}")
    page.wait_for_selector("#consent:visible")
    assert page.is_disabled("#agree") and code not in page.url
    assert page.inner_text("#consent-name") == "c-anna" and page.inner_text("#consent-days") == "90"
    assert page.text_content("#consent-text .text") == "We study <b>hands</b>."
    assert page.inner_text("#consent-faces").startswith(faces)
    page.check("#consent-read")
    page.click("#agree")
    page.wait_for_selector("#home:visible")
    page.click("#open-more")
    page.select_option("#detector", "hands")
    page.select_option("#hold", "0")
    page.click("#close-more")
    return page


def test_a_day_goes_in_and_the_right_clips_come_out(day: Path, store: Path, tmp_path: Path) -> None:
    """Recorded without a network; sent over a connection that loses a tenth of its requests, by a page that
    is killed in the middle; the clips are those of the agent in Python to two frames."""
    draws = random.Random(5)
    sent: list[int] = []

    def lossy(route: Any) -> None:
        lost = draws.random()
        if lost < 0.05:  # the request is lost
            route.abort()
            return
        if route.request.method == "PATCH":
            sent.append(len(route.request.post_data_buffer or b""))
        if lost < 0.10:  # the answer is lost
            route.fetch()
            route.abort()
        else:
            route.continue_()

    with serving(store, chunk_bytes=64 << 10) as server:
        with browser(tmp_path / "profile", day) as context:
            context.add_init_script(LISTENER)
            page = enrolled(context, server)
            page.wait_for_function(KEPT_PARTS, timeout=60_000)
            context.set_offline(True)
            page.click("#go")
            page.wait_for_function(
                """() => Number(document.querySelector('#kept').textContent) >= 2
                || document.querySelector('#said').textContent""",
                timeout=180_000,
            )
            assert page.inner_text("#said") == ""
            page.click("#go")
            page.wait_for_function("() => document.querySelector('#state').textContent === 'Not watching'")
            delivered = page.evaluate("globalThis.delivered")
            assert page.inner_text("#waiting").startswith(page.inner_text("#kept")) and not page.wrong
            assert not list(bundles_in(store / "clips")) and page.inner_text("#sent") == "0"

            page.reload()  # the app opens without a network
            page.wait_for_selector("#home:visible")
            kept = int(page.inner_text("#kept"))

            context.route("**/v1/**", lossy)
            with page.expect_response(lambda answer: answer.request.method == "PATCH"):
                context.set_offline(False)
            page.wait_for_event("request", lambda asked: asked.method == "PATCH")
            page.close()  # in the middle of a file
            page = opened(context, server.url)
            page.wait_for_function(
                f"() => document.querySelector('#sent').textContent >= '{kept}'", timeout=60_000
            )
            assert page.inner_text("#waiting") == "0" and not page.wrong
        numbers = httpx.get(f"{server.url}/metrics").text
        counted = re.search(r"^haversack_collect_received_bytes_total\S* (\d\S*)", numbers, re.MULTILINE)
        arrived = [Bundle.open(path) for path in bundles_in(store / "clips")]
        assert len(arrived) == kept == len({one.manifest.clip_uuid for one in arrived})
        files = {file.sha256: file.bytes for bundle in arrived for file in bundle.manifest.files}
        payload = sum(files.values())  # equal files, those without motion samples, are sent once
        assert counted is not None and payload <= float(counted[1]) <= 1.10 * payload
        assert sum(sent) <= 1.10 * payload + (64 << 10)  # with what was under way when the page was killed

    arrived.sort(key=lambda bundle: bundle.manifest.t0_wall_ns)
    for bundle in arrived:
        assert check_bundle(bundle.path).findings == []
        assert bundle.manifest.consent.contributor_pseudonym == "c-anna"
        assert not bundle.manifest.privacy.faces_blurred
    spans = [in_camera_time(bundle, delivered) for bundle in arrived]
    expected = replayed(day, delivered, tmp_path / "spool", store)
    assert len(expected) >= 2 and len(spans) == len(expected)
    stopped = delivered[-1][1] * 1000 - SECOND
    for one, other in zip(spans, expected, strict=True):
        assert frames_apart(one[0], other[0], delivered) <= 2, (spans, expected)
        if other[1] < stopped:  # else a third was cut when watching ended, wherever the app then was
            assert frames_apart(one[1], other[1], delivered) <= 2, (spans, expected)

    device = DeviceRecord(id="d", model="m", os="o", lens_id="0")
    consent = Consent(contributor_pseudonym="c", policy_version="1", retention_days=1)
    done = watch(
        *(str(day), tmp_path / "file", device, consent),
        **{"session": "s", "policy": read_policy(store / "policy.toml"), "detector": "hands"},
    )
    assert len(done.clips) == 2  # and played as a file, the day has those two works as well


def test_faces_are_blurred_before_anything_is_stored(store: Path, tmp_path: Path) -> None:
    """A photograph of a face beside hands at work: in every frame that arrives it has lost its detail, and
    what is beside it has not."""
    seen = tmp_path / "face.y4m"
    work = short_day()
    work.stretches = [Stretch("work", -2.0, 7.0, 13)]
    work.seconds = 5.0
    render(work, seen, portrait())
    (store / "policy.toml").write_text(FACES)
    with serving(store) as server, browser(tmp_path / "profile", seen, graphics=True) as context:
        page = enrolled(context, server, "Faces that it finds are blurred before a clip is stored")
        page.click("#go")
        page.wait_for_function(
            """() => Number(document.querySelector('#sent').textContent) >= 1
            || document.querySelector('#said').textContent""",
            timeout=180_000,
        )
        assert page.inner_text("#said") == "" and not page.wrong
    bundle = Bundle.open(bundles_in(store / "clips")[0])
    assert bundle.manifest.privacy.faces_blurred
    face, beside = detail_left(bundle.path / "video.mp4", seen)
    assert face < 0.2 and beside > 0.4


def detail_left(video: Path, day: Path) -> tuple[float, float]:
    """What is left of the fine detail of the photograph's face, at most in any frame of a clip; and of as
    much of the picture beside it, in the median frame."""
    sources = [picture for _, picture in frames_of(str(day))[1]]
    rows, columns = FACE
    height, width = rows.stop - rows.start, columns.stop - columns.start
    middle = (
        slice(rows.start + height // 4, rows.stop - height // 4),
        slice(columns.start + width // 4, columns.stop - width // 4),
    )
    aside = (middle[0], slice(40, 40 + middle[1].stop - middle[1].start))
    shares: list[tuple[float, float]] = []
    for frame in decoded(video):
        picture = frame.to_ndarray(format="rgb24")
        source = sources[number_of(picture)]
        shares.append(
            (detail(picture[middle]) / detail(source[middle]), detail(picture[aside]) / detail(source[aside]))
        )
    return max(face for face, _ in shares), float(np.median([beside for _, beside in shares]))


def detail(part: Any) -> float:
    """The variance of the Laplacian."""
    grey = part.astype(np.float64).mean(axis=2)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def in_camera_time(bundle: Bundle, delivered: list[list[int]]) -> tuple[int, int]:
    """A clip's span on the clock of the camera's frames: the app's clock is ahead by what its frames say."""
    times = read_table(bundle.path / "frames.parquet")["t_ns"]
    numbers = [number_of(frame.to_ndarray(format="rgb24")) for frame in decoded(bundle.path / "video.mp4")]
    stamps = {round(stamp * 1000) for _, stamp in delivered}
    for number, stamp in delivered:
        off = int(times[0]) - stamp * 1000
        if number == numbers[0] and all(
            any(abs(int(t) - off - near) < 2000 for near in (stamp_near(stamps, int(t) - off),))
            for t in times
        ):
            assert bundle.manifest.trigger.span is not None
            begin, end = bundle.manifest.trigger.span
            return begin - off, end - off
    raise AssertionError("the clip has frames that the camera did not give")


def frames_apart(one: int, other: int, delivered: list[list[int]]) -> int:
    """How many frames the camera gave between two times, which may lie a few milliseconds off a frame's."""
    low, high = sorted((one + 5_000_000, other + 5_000_000))
    return sum(low < stamp * 1000 <= high for _, stamp in delivered)


def stamp_near(stamps: set[int], t: int) -> int:
    return min(stamps, key=lambda stamp: abs(stamp - t))


def replayed(day: Path, delivered: list[list[int]], spool: Path, store: Path) -> list[tuple[int, int]]:
    """The spans that the agent in Python finds in the frames that the browser's camera gave, at their
    times."""
    pictures = [picture for _, picture in frames_of(str(day))[1]]
    from bundles import info

    policy = read_policy(store / "policy.toml")
    agent = EdgeAgent(spool, info(fps_nominal=float(FPS)), OnnxDetector(HANDS), policy)
    agent.tick(0, 0)
    made = []
    for number, stamp in delivered:
        made += agent.push_frame(stamp * 1000, pictures[number % len(pictures)])
    made += agent.finish()
    found = [Bundle.open(path).manifest.trigger.span for path in made]
    return sorted(span for span in found if span is not None)


def test_people_s_hands_are_found_in_photographs(data: Any, store: Path, tmp_path: Path) -> None:
    """MediaPipe, from the app's own origin, on photographs of hands whose licence allows it."""
    photographs = sorted(data("photographs/hands").glob("*.jpg"))
    with serving(store) as server, browser(tmp_path / "profile", graphics=True) as context:
        page = opened(context, server.url)
        for path in photographs:
            shown = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
            assert page.evaluate(HANDS_IN, shown) >= 1, path.name


def test_without_consent_nothing_happens(store: Path, tmp_path: Path) -> None:
    """No device, no used code, no camera, nothing stored."""
    with serving(store) as server, browser(tmp_path / "profile") as context:
        books = server.store.books
        code = invite(books, "c-anna", policy_version="1.2", retention_days=90)
        context.add_init_script("navigator.mediaDevices.getUserMedia = () => { throw new Error('asked'); };")
        page = opened(context, f"{server.url}/#enrol={code}")
        page.wait_for_selector("#consent:visible")
        page.click("#refuse")
        page.wait_for_selector("#refused:visible")
        assert "nothing was sent" in page.inner_text("#refused")
        assert books.number("SELECT count(*) FROM devices") == 0
        assert books.number("SELECT count(*) FROM invites WHERE used = 1") == 0
        stored = page.evaluate(
            """async () => { const open = indexedDB.open('haversack');
            const db = await new Promise((done) => { open.onsuccess = () => done(open.result); });
            const counts = [...db.objectStoreNames].map((name) => new Promise((done) => {
              const ask = db.transaction(name).objectStore(name).count();
              ask.onsuccess = () => done(ask.result); }));
            return [await Promise.all(counts), localStorage.length, document.cookie]; }"""
        )
        assert stored == [[0, 0, 0, 0], 0, ""]
        page.click("#again")
        page.wait_for_selector("#consent:visible")
        page.goto(f"{server.url}/#enrol=unknown-code-1234")
        page.reload()
        page.wait_for_selector("#welcome:visible")
        assert "unknown, used or expired" in page.inner_text("#code-said") and not page.wrong


def test_a_camera_that_is_not_allowed(store: Path, tmp_path: Path) -> None:
    with serving(store) as server, browser(tmp_path / "profile", allow=False) as context:
        page = enrolled(context, server)
        page.click("#go")
        page.wait_for_selector("#said:not(:empty)")
        assert page.inner_text("#said").startswith("The camera was not allowed; nothing is recorded.")
        assert page.inner_text("#state") == "Not watching" and not page.wrong


def test_it_fits_a_phone_has_names_and_can_be_installed(store: Path, tmp_path: Path) -> None:
    with serving(store) as server, browser(tmp_path / "profile") as context:
        page = enrolled(context, server)
        outside: list[str] = []
        page.on("request", lambda ask: None if ask.url.startswith(server.url) else outside.append(ask.url))
        colours = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": 340, "height": 620})
            assert page.evaluate("document.documentElement.scrollWidth") <= 340
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours[0] != colours[1]
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select')].filter((each) =>
            !(each.textContent.trim() || each.ariaLabel || each.labels?.length)).map((each) => each.id)"""
        )
        assert nameless == []
        small = page.evaluate(
            """() => [...document.querySelectorAll('#home button')]
            .map((each) => each.getBoundingClientRect())
            .filter((box) => box.height < 44 || box.width < 44).length"""
        )
        assert small == 0
        manifest = page.request.get(f"{server.url}/manifest.webmanifest")
        assert manifest.json()["display"] == "standalone"
        for icon in manifest.json()["icons"]:
            assert page.request.get(f"{server.url}/{icon['src']}").ok
        assert (
            page.request.get(server.url).headers["content-security-policy"].startswith("default-src 'none'")
        )
        page.click("#open-more")
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#leave")
        page.wait_for_selector("#welcome:visible")
        assert not outside and not page.wrong
