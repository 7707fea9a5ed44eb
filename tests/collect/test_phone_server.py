"""What the server gives the phone app: its files or how to build them, terms, the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import client, enrolled, serving

from haversack.collect._devices import invite
from haversack.collect._phone import PhoneApp


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "policies").mkdir(parents=True)
    return tmp_path / "store"


def built(folder: Path) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>app</title>")
    (folder / "assets" / "index-Ab_c12-9.js").write_text("1;")
    (folder / "sw.js").write_text("2;")
    return folder


def test_without_a_build_it_says_how_to_make_one(store: Path, tmp_path: Path) -> None:
    with serving(store) as server:
        server.app.phone = PhoneApp(tmp_path)
        answer = httpx.get(server.url)
        assert answer.status_code == 404 and "make app" in answer.text
        assert httpx.get(f"{server.url}/index.html").json()["code"] == "not-found"
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}


def test_the_app_s_files_and_no_others(store: Path, tmp_path: Path) -> None:
    folder = built(tmp_path / "app")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with serving(store) as server:
        server.app.phone = PhoneApp(folder)
        page = httpx.get(server.url)
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-cache"
        script = httpx.get(f"{server.url}/assets/index-Ab_c12-9.js")
        assert script.headers["content-type"] == "text/javascript"
        assert "immutable" in script.headers["cache-control"]
        assert (
            httpx.get(f"{server.url}/models/hands.onnx").headers["content-type"] == "application/octet-stream"
        )
        for path in (
            "/link.txt",
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/assets",
            "/assets/",
            "//etc/passwd",
        ):
            assert httpx.get(f"{server.url}{path}").status_code == 404, path


def test_terms_are_read_before_a_code_is_used(store: Path) -> None:
    (store / "policies" / "1.2.txt").write_text("Our words.", encoding="utf-8")
    with serving(store) as server:
        given: dict[str, Any] = {"policy_version": "1.2", "retention_days": 30}
        code = invite(server.store.books, "c-anna", **given)
        for _ in range(2):
            terms = httpx.post(f"{server.url}/v1/terms", json={"code": code}).json()
            assert terms == {"contributor": "c-anna", **given, "text": "Our words.", "faces_blurred": True}
        other = invite(server.store.books, "c-anna", policy_version="1.3", retention_days=30)
        assert httpx.post(f"{server.url}/v1/terms", json={"code": other}).json()["text"] is None
        unknown = httpx.post(f"{server.url}/v1/terms", json={"code": "x" * 16})
        assert unknown.status_code == 403 and unknown.json()["code"] == "code"
        assert httpx.post(f"{server.url}/v1/terms", content=b"[").status_code == 400


def test_the_store_s_policy_reaches_enrolled_devices_alone(store: Path, tmp_path: Path) -> None:
    (store / "policy.toml").write_text("[trigger]\nstop_s = 4\n[privacy]\nblur_hz = 0\n")
    with serving(store) as server:
        assert httpx.get(f"{server.url}/v1/policy").status_code == 401
        identity = enrolled(server, tmp_path / "spool")
        with client(server, identity) as http:
            policy = http.get("/v1/policy").json()
            assert policy["trigger"]["stop_s"] == 4 and policy["rates"]["detect_hz"] == 5
            (store / "policy.toml").write_text("[trigger]\nstopp_s = 4\n")
            wrong = http.get("/v1/policy")
            assert wrong.status_code == 500 and "stop_s" in wrong.json()["error"]
