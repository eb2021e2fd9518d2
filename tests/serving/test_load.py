"""Twenty viewers watch for a minute over the loopback: nothing is lost or mixed up, and the memory stays flat."""

from concurrent import futures
import http.client
import io
import json
import os
import pathlib
import statistics
import time
from urllib import parse

import numpy as np
from PIL import Image
import pytest

from eqjax.serving.engine import Engine
from eqjax.serving.steering import Steering
from tests.sampling.small_models import local_model
from tests.serving.browser import served

pytestmark = pytest.mark.slow

VIEWERS, SECONDS = 20, 60.0
# A strip of 8 columns lasts as long on a page that scrolls 7.5 columns per second.
PACE = 8 / 7.5
_CLASSES = 3  # Of the small model.


def resident_bytes():
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def steering(viewer, index):
    """Returns what a viewer chooses for a strip; he changes his mind every few strips."""
    return Steering(viewer % _CLASSES, (viewer + 1) % _CLASSES, (index // 4 % 5) / 4, 2.0 + viewer % 3, 0.9)


def photograph(viewer):
    """Returns the photograph of every fifth viewer."""
    if viewer % 5:
        return None
    return np.random.default_rng(viewer).integers(0, 256, (64, 80 + 16 * viewer, 3), np.uint8)


def opened(connection, viewer):
    """Begins a viewer's session; returns its id and sides."""
    photo = photograph(viewer)
    if photo is None:
        connection.request("POST", "/api/sessions", json.dumps({"seed": viewer}), {"content-type": "application/json"})
    else:
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "PNG")
        connection.request("POST", f"/api/sessions?seed={viewer}", file.getvalue(), {"content-type": "image/png"})
    answer = connection.getresponse()
    body = json.loads(answer.read())
    assert answer.status == 201, body
    return body["id"], body["sides"]


def watch(address, viewer, end):
    """Watches until `end`; returns strips as (side, index, pixels), seconds of each, and how often he was refused."""
    connection = http.client.HTTPConnection(parse.urlsplit(address).netloc, timeout=60)
    session, sides = opened(connection, viewer)
    strips, latencies, refused, due = [], [], 0, time.monotonic()
    while time.monotonic() < end:
        side, index = sides[len(strips) % len(sides)], len(strips) // len(sides)
        chosen = parse.urlencode(vars(steering(viewer, index)))
        begin = time.monotonic()
        connection.request("GET", f"/api/sessions/{session}/{side}/{index}?{chosen}")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 503:
            refused += 1
            time.sleep(int(answer.headers["retry-after"]))
            continue
        assert answer.status == 200, body
        latencies.append(time.monotonic() - begin)
        strips.append((side, index, np.asarray(Image.open(io.BytesIO(body)))))
        due = max(due + PACE, time.monotonic() - PACE)
        time.sleep(max(0.0, due - time.monotonic()))
    connection.request("DELETE", f"/api/sessions/{session}")
    assert connection.getresponse().status == 204
    return strips, latencies, refused


def test_twenty_viewers_for_a_minute():
    with Engine(local_model(), max_sessions=VIEWERS) as engine:
        with served(engine) as address, futures.ThreadPoolExecutor(VIEWERS) as pool:
            begin = time.monotonic()
            watching = [pool.submit(watch, address, i, begin + SECONDS) for i in range(VIEWERS)]
            time.sleep(SECONDS / 3)
            early = resident_bytes()
            time.sleep(SECONDS / 2)
            late, status = resident_bytes(), engine.status()
            watched = [future.result() for future in watching]
            elapsed = time.monotonic() - begin
            assert engine.status().sessions == 0
        latencies = sorted(seconds for _, found, _ in watched for seconds in found)
        print(
            f"\n{len(latencies) / elapsed:.1f} strips/s of {VIEWERS / PACE:.1f} wanted, measured alone "
            f"{status.columns_per_second / 8:.1f}; latency median {statistics.median(latencies):.3f} s, "
            f"95 % {latencies[int(0.95 * len(latencies))]:.3f} s, largest {latencies[-1]:.3f} s; "
            f"refused {sum(refused for _, _, refused in watched)}; memory {early / 2**20:.0f} MB after a third, "
            f"{late / 2**20:.0f} MB near the end"
        )
        # What twenty viewers keep (drawings, three strips a side) is a few MB; a leak of one strip each is 27 MB.
        assert late < early + 20 * 2**20
        for viewer, (strips, _, _) in enumerate(watched):
            assert len(strips) >= 5
            session = engine.open(seed=viewer, photo=photograph(viewer))
            for side, index, pixels in strips:
                alone = engine.strip(session.id, side, index, steering(viewer, index))
                np.testing.assert_array_equal(pixels, alone, err_msg=f"viewer {viewer}, {side} {index}")
            engine.drop(session.id)
