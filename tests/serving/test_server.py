"""The page's server: codes, headers and bodies of its answers, with an engine that paints stripes."""

import io
import logging
import types

import numpy as np
from PIL import Image
import pytest
from starlette.testclient import TestClient

from eqjax.serving import errors, requests, server
from eqjax.serving.description import describe, draw_thumbnails
from eqjax.serving.security import security_headers
from tests.serving.fake_engine import CLASS_NAMES, HEIGHT, FakeEngine

STEERING = dict(first_class=0, second_class=1, mix=0.5, guidance_scale=2, temperature=1)


@pytest.fixture(name="engine")
def _engine():
    return FakeEngine(max_sessions=2)


@pytest.fixture(name="client")
def _client(engine):
    return make_client(engine)


def make_client(engine, thumbnails=(), **options):
    app = server.create_app(engine, describe(engine, "stripes", {}), thumbnails, server.ServerOptions(**options))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def begin(client, seed=0):
    answer = client.post("/api/sessions", json={"seed": seed})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def strip(client, session, index, side="right", **changes):
    return client.get(f"/api/sessions/{session}/{side}/{index}", params={**STEERING, **changes})


def png(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def is_sentence(answer):
    """Returns whether an answer is an error in one sentence, and has every header."""
    text = answer.json()["error"]
    return text.endswith(".") and 10 < len(text) < 300 and security_headers().items() <= dict(answer.headers).items()


# ── The page ──────────────────────────────────────────────────────────────────────────────────


def test_the_page_and_its_files(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    again = client.get("/page.css", headers={"if-none-match": client.get("/page.css").headers["etag"]})
    assert again.status_code == 304 and again.content == b""


def test_every_answer_has_the_security_headers(client):
    for path in ("/", "/page.js", "/api/model", "/nothing", "/health"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy and "unsafe" not in policy
        assert "frame-ancestors 'self' https://colab.research.google.com" in policy
    framed = make_client(FakeEngine(), frame_ancestors=()).get("/").headers["content-security-policy"]
    assert framed.endswith("frame-ancestors 'none'")


def test_the_page_has_no_script_or_style_inside(client):
    text = client.get("/").text
    assert "<style" not in text and " style=" not in text and " onclick=" not in text
    assert text.count("<script") == 1 and '<script type="module" src="page.js"></script>' in text
    assert "http://" not in text and "https://" not in text  # No other hosts.


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/%2e%2e/setup.py", "/..%2fsetup.py", "//etc/passwd", "/page"])
def test_no_path_leads_to_a_file_beside_the_page(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and is_sentence(answer)


def test_the_model_is_described(client, engine):
    found = client.get("/api/model").json()
    assert found["classes"] == list(CLASS_NAMES) and found["height"] == HEIGHT and not found["has_thumbnails"]
    assert found["guidance_scale"]["default"] == 2.0 and len(found["id"]) == 12
    # Other weights or other options: other pixels for the same link.
    assert describe(engine, "stripes", {"num_flow_steps": 3})["id"] != found["id"]
    engine.model.generator_params["b"] = np.zeros(1)
    assert describe(engine, "stripes", {})["id"] != found["id"]


def test_the_image_of_a_class_is_its_strip_of_most_contrast_but_the_first():
    columns = np.arange(24)[:, None]
    amplitudes = [100, 0, 10, 20, 5, 15]

    class Engine:
        class_names, max_sessions = ("waves",), 1

        def open(self, **_):
            return types.SimpleNamespace(id="one")

        def strip(self, _session, _side, index, _steering):
            wave = 128 + amplitudes[index] * (columns % 2)
            return np.broadcast_to(wave, (8, 24, 3)).astype(np.uint8)

        def drop(self, session):
            assert session == "one"

    (image,) = draw_thumbnails(Engine())
    found = np.asarray(Image.open(io.BytesIO(image)))
    assert found.shape == (8, 16, 3) and np.ptp(found) == 20


def test_images_of_classes(engine):
    client = make_client(engine, [b"first", b"second"])
    assert client.get("/api/model").json()["has_thumbnails"]
    assert client.get("/api/classes/1").content == b"second"
    assert client.get("/api/classes/2").status_code == 404


# ── Sessions ──────────────────────────────────────────────────────────────────────────────────


def test_a_session_from_its_beginning_to_its_end(client, engine):
    session = begin(client, seed=7)
    answer = strip(client, session, 0)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert pixels.shape == (HEIGHT, engine.strip_width, 3)
    assert strip(client, session, 0, mix=0).content == answer.content  # Drawn once.
    assert client.delete(f"/api/sessions/{session}").status_code == 204
    assert client.delete(f"/api/sessions/{session}").status_code == 204
    gone = strip(client, session, 1)
    assert gone.status_code == 410 and is_sentence(gone)


def test_browsers_that_leave_end_their_session_by_post(client, engine):
    session = begin(client)
    assert client.post(f"/api/sessions/{session}/close").status_code == 204 and not engine.sessions


def test_strips_out_of_order_are_conflicts(client):
    session = begin(client)
    for index in range(5):
        assert strip(client, session, index).status_code == 200
    assert strip(client, session, 2).status_code == 200
    for index in (1, 6):
        answer = strip(client, session, index)
        assert answer.status_code == 409 and answer.json()["expected"] == 5 and is_sentence(answer)


def test_a_full_server_says_when_to_ask_again(client):
    begin(client)
    begin(client)
    answer = client.post("/api/sessions", json={"seed": 0})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "3" and is_sentence(answer)
    status = client.get("/api/status").json()
    assert (status["sessions"], status["max_sessions"]) == (2, 2)
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.StripTimeout("The strip took too long."), 503),
        (errors.EngineClosed("The engine is closed now."), 503),
        (errors.EngineFailed("The strip could not be drawn."), 500),
        (ZeroDivisionError("secret"), 500),
    ],
)
def test_failures_of_the_engine(client, engine, failure, status, caplog):
    session = begin(client)
    engine.failure = failure
    with caplog.at_level(logging.CRITICAL):
        answer = strip(client, session, 0)
    assert answer.status_code == status and is_sentence(answer) and "secret" not in answer.text
    assert (status == 503) == (answer.headers.get("retry-after") == "1")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"seed": -1}', b'{"seed": 1.5}', b'{"seed": true}', b'{"seed": 2147483648}',
             b'{"seed": NaN}', b'{"seed": 0, "photo": "/etc/passwd"}', b"\xff", b"[" * 3000]
)  # fmt: skip
def test_other_bodies_are_refused(client, body):
    answer = client.post("/api/sessions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and is_sentence(answer)


@pytest.mark.parametrize(
    "changes",
    [dict(first_class="x"), dict(mix=2), dict(mix="nan"), dict(temperature=""), dict(other=1), dict(first_class=-1)],
)
def test_other_steerings_are_refused(client, changes):
    answer = strip(client, begin(client), 0, **changes)
    assert answer.status_code == 400 and is_sentence(answer)


def test_a_steering_has_all_values_and_a_class_of_the_model(client):
    session = begin(client)
    answer = client.get(f"/api/sessions/{session}/right/0", params={"mix": 0})
    assert (
        answer.status_code == 400 and "first_class, guidance_scale, second_class, temperature" in answer.json()["error"]
    )
    assert strip(client, session, 0, second_class=8).status_code == 400
    assert strip(client, session, 0, side="left").status_code == 400  # Without a photograph.
    assert strip(client, session, 0, side="up").status_code == 404
    assert strip(client, session, "0x1").status_code == 404


def test_other_methods_are_refused(client):
    for method, path in (("POST", "/"), ("GET", "/api/sessions"), ("PUT", "/api/sessions/a"), ("POST", "/health")):
        answer = client.request(method, path)
        assert answer.status_code == 405 and is_sentence(answer) and answer.headers["allow"]


# ── Photographs ───────────────────────────────────────────────────────────────────────────────


def upload(client, body, kind="image/png", seed="3"):
    return client.post("/api/sessions", params={"seed": seed}, content=body, headers={"content-type": kind})


def test_a_photograph_is_continued_to_both_sides(client):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    answer = upload(client, png(pixels))
    assert answer.status_code == 201
    found = answer.json()
    assert found["seed"] == 3 and found["sides"] == ["left", "right"] and found["photo"].startswith("iVBORw0KGgo")
    sides = [strip(client, found["id"], 0, side).content for side in ("left", "right")]
    assert sides[0] != sides[1]


def test_bytes_decide_what_a_photograph_is(client):
    pixels = np.zeros((20, 20, 3), np.uint8)
    assert upload(client, png(pixels, "JPEG"), "application/octet-stream").status_code == 201
    answer = upload(client, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")
    assert answer.status_code == 415 and is_sentence(answer)
    for kind in ("text/plain", "multipart/form-data", ""):
        answer = upload(client, png(pixels), kind)
        assert answer.status_code == 415 and is_sentence(answer)


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (png(np.zeros((9, 9, 3), np.uint8))[:-30], 400)])
def test_damaged_photographs_are_refused(client, body, status):
    answer = upload(client, body)
    assert answer.status_code == status and is_sentence(answer)


def test_photographs_that_the_engine_refuses(client):
    answer = upload(client, png(np.zeros((4, 40, 3), np.uint8)))
    assert answer.status_code == 400 and "too small" in answer.json()["error"]
    assert upload(client, png(np.zeros((9, 9, 3), np.uint8)), seed="x").status_code == 400


def test_photographs_are_bounded_in_pixels_and_bytes(engine):
    client = make_client(engine, max_upload_pixels=1000, max_upload_bytes=5000)
    answer = upload(client, png(np.zeros((40, 40, 3), np.uint8)))
    assert answer.status_code == 413 and is_sentence(answer)
    answer = upload(client, b"0" * 5001)
    assert answer.status_code == 413 and is_sentence(answer)


def test_a_body_is_read_no_further_than_its_bound(engine):
    """Its length is not always announced."""
    sent = []

    def parts():
        for number in range(100):
            sent.append(number)
            yield b"0" * 1000

    answer = upload(make_client(engine, max_upload_bytes=5000), parts())
    assert answer.status_code == 413 and is_sentence(answer)
    answer = make_client(engine).post(
        "/api/sessions", content=b" " * (requests.MAX_JSON_BYTES + 1), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


def test_only_so_many_photographs_arrive_at_a_time(client, monkeypatch):
    monkeypatch.setattr(server, "_MAX_UPLOADS", 0)
    answer = upload(client, png(np.zeros((9, 9, 3), np.uint8)))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    # Who is done, or was refused, makes room.
    monkeypatch.setattr(server, "_MAX_UPLOADS", 1)
    assert upload(client, b"damaged").status_code == 415
    assert upload(client, png(np.zeros((9, 9, 3), np.uint8))).status_code == 201
    assert upload(client, png(np.zeros((9, 9, 3), np.uint8))).status_code == 201


# ── Other hosts and origins ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:7860", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("LOCALHOST", True),
        ("attacker.example:7860", False),
        ("localhost.attacker.example", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_only_known_names_are_answered(client, host, allowed):
    """Else a page of another site could reach this machine under a name of its own."""
    answer = client.get("/api/status", headers={"host": host})
    assert answer.status_code == (200 if allowed else 403)
    assert allowed or is_sentence(answer)


def test_names_may_be_listed(engine):
    client = make_client(engine, allowed_hosts=("*.example.org",))
    assert client.get("/health", headers={"host": "a.example.org"}).status_code == 200
    assert client.get("/health", headers={"host": "example.com"}).status_code == 403
    assert make_client(engine, allowed_hosts=("*",)).get("/health", headers={"host": "any"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://colab.example"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "http://localhost"}, True),
        ({"origin": "http://attacker.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_pages_of_other_origins_begin_no_session(client, headers, allowed):
    answer = client.post("/api/sessions", json={"seed": 0}, headers=headers)
    assert answer.status_code == (201 if allowed else 403)
    assert client.get("/health", headers=headers).status_code == 200
