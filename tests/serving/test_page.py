"""The page in a real browser, with an engine that paints stripes: what a visitor sees and does."""

import numpy as np
import pytest

from eqjax.serving.engine import Engine
from eqjax.serving.steering import Steering
from tests.sampling.small_models import local_model
from tests.serving import browser as browsers
from tests.serving.fake_engine import CLASS_NAMES, COLORS, FakeEngine

pytestmark = pytest.mark.slow
FLOWER, CAT = CLASS_NAMES.index("flower"), CLASS_NAMES.index("cat")
PLAIN = Steering(first_class=FLOWER, second_class=FLOWER)


@pytest.fixture(name="browser", scope="module")
def _browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(name="engine")
def _engine():
    return FakeEngine(max_sessions=4)


@pytest.fixture(name="address")
def _address(engine):
    with browsers.served(engine) as address:
        yield address


@pytest.fixture(name="visit")
def _visit(browser, address):
    """A function that opens the page, with a part of its address behind #; nothing may go wrong in any of them."""
    visits = []

    def visit(hash_="", **options):
        visits.append(browsers.Visit(browser, address + hash_, **options))
        return visits[-1]

    yield visit
    for found in visits:
        found.close()
    assert not [error for found in visits for error in found.errors]


def link(seed=5, steps="0:7,7,0,2,1"):
    return f"#seed={seed}&right={steps}"


def colors(pixels):
    """The mean color of every strip."""
    whole = pixels[:, : pixels.shape[1] // FakeEngine.strip_width * FakeEngine.strip_width]
    return whole.reshape(whole.shape[0], -1, FakeEngine.strip_width, 3).mean((0, 2))


def nearest_class(color):
    return int(np.argmin(np.abs(COLORS - color).sum(-1)))


def test_the_image_grows_and_is_saved_exactly(visit, engine):
    page = visit(link())
    page.wait_for_length(700)
    first = page.page.evaluate("document.getElementById('view').toDataURL()")
    page.wait_for_length(page.length + 60)
    assert page.page.evaluate("document.getElementById('view').toDataURL()") != first
    found = page.saved()
    expected = np.concatenate([engine._paint(5, "right", i, PLAIN) for i in range(20)], axis=1)
    assert found.shape[1] >= 700
    np.testing.assert_array_equal(found, expected[:, : found.shape[1]])


def test_the_screen_shows_the_image(visit):
    page = visit(link())
    page.wait_for_length(700)
    middle = page.page.evaluate(
        "(() => { const c = document.getElementById('view');"
        " return [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data]; })()"
    )
    assert middle[3] == 255 and nearest_class(middle[:3]) == FLOWER


def test_a_class_shows_from_the_next_strips_on(visit):
    page = visit(link())
    page.wait_for_length(400)
    before = page.length
    page.page.click(f"#classes button:nth-child({CAT + 1})")
    page.wait_for_length(before + 1100)
    found = [nearest_class(color) for color in colors(page.saved())]
    assert found[0] == FLOWER and found[-1] == CAT
    words = page.page.inner_text("#marks")
    assert "cat" in words and page.page.get_attribute(f"#classes button:nth-child({CAT + 1})", "aria-pressed") == "true"


def test_without_steering_nothing_changes(visit):
    page = visit(link())
    page.wait_for_length(1200)
    assert {nearest_class(color) for color in colors(page.saved())} == {FLOWER}


def test_the_slider_stays_between_two_classes(visit, engine):
    page = visit(link(steps="0:7,5,0.5,2,1"))
    page.wait_for_length(300)
    page.page.fill("#mix", "0.25")
    page.page.fill("#guidance", "3")
    before = page.length
    page.wait_for_length(before + 500)
    steering = Steering(first_class=FLOWER, second_class=CAT, mix=0.25, guidance_scale=3)
    found = page.saved()
    index = found.shape[1] // engine.strip_width - 1
    place = slice(index * engine.strip_width, (index + 1) * engine.strip_width)
    np.testing.assert_array_equal(found[:, place], engine._paint(5, "right", index, steering))


def test_a_link_gives_the_same_pixels(visit):
    first = visit(link())
    first.wait_for_length(300)
    first.page.click(f"#classes button:nth-child({CAT + 1})")
    first.wait_for_length(first.length + 900)
    address, expected = first.link(), first.saved()
    assert f"seed=5&model={first.page.inner_text('#model-name').split()[-1]}" in address or "seed=5" in address
    assert first.page.url == address  # Reloading shows the same image, too.
    second = visit("#" + address.split("#")[1])
    second.wait_for_length(expected.shape[1] - 100)
    found = second.saved()
    width = min(found.shape[1], expected.shape[1])
    np.testing.assert_array_equal(found[:, :width], expected[:, :width])
    assert nearest_class(colors(found)[0]) == FLOWER and nearest_class(colors(found)[-1]) == CAT


def test_a_visitor_who_steers_leaves_the_link(visit):
    page = visit(link(steps="0:7,7,0,2,1;40:5,5,0,2,1"))
    page.wait_for_length(300)
    page.page.keyboard.press("1")
    page.wait_for_length(page.length + 1000)
    assert nearest_class(colors(page.saved())[-1]) == 0


def test_a_damaged_link_is_said_and_another_image_begins(visit):
    page = visit("#seed=5&right=0:99,7,0,2,1")
    page.wait_for_length(100)
    assert "The link is damaged: it names an unknown class" in page.page.inner_text("#toast")


def test_a_dropped_photograph_is_continued_to_both_sides(visit, engine):
    page = visit(link())
    page.wait_for_length(200)
    photo = np.zeros((64, 96, 3), np.uint8)
    photo[..., 0] = 255
    page.drop(photo)
    page.wait_for_length(700)
    found = page.saved()
    red = np.flatnonzero((found == [255, 0, 0]).all((0, 2)))
    assert len(red) == 96 and red[0] > 80 and red[-1] < found.shape[1] - 100
    right = np.concatenate([engine._paint(5, "right", i, PLAIN) for i in range(8)], axis=1)
    left = np.concatenate([engine._paint(5, "left", i, PLAIN) for i in reversed(range(8))], axis=1)
    np.testing.assert_array_equal(found[:, red[-1] + 1 :], right[:, : found.shape[1] - red[-1] - 1])
    np.testing.assert_array_equal(found[:, : red[0]], left[:, left.shape[1] - red[0] :])
    assert "does not hold the photograph" in (page.link() and page.page.inner_text("#toast"))
    assert "photo=1" in page.page.url


def test_the_left_side_grows_when_it_is_scrolled_to(visit):
    page = visit(link())
    page.wait_for_length(100)
    page.drop(np.full((64, 96, 3), 255, np.uint8))
    page.wait_for_length(500)
    page.page.keyboard.press("Home")
    page.wait_for(lambda: "left=0" in page.page.url)
    page.page.keyboard.press("6")
    page.wait_for(lambda: "cat" in page.page.inner_text("#now"))
    page.wait_for_length(page.length + 900)
    assert nearest_class(colors(page.saved())[0]) == CAT


def test_a_link_of_a_photograph_asks_for_it(visit):
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    first = visit(link())
    first.wait_for_length(100)
    first.drop(photo)
    first.wait_for_length(600)
    second = visit("#" + first.link().split("#")[1])
    second.page.wait_for_selector("#notice:not([hidden])")
    assert second.page.inner_text("#notice-title") == "This image began with a photograph"
    second.drop(photo)
    second.wait_for_length(600)
    sides = []
    for page in (first, second):
        found = page.saved()
        begin = next(x for x in range(found.shape[1]) if (found[:, x : x + 90] == photo[:, :90]).all())
        sides.append(found[:, begin - 50 : begin + 300])
    np.testing.assert_array_equal(*sides)


def test_a_file_that_is_no_photograph_is_refused_in_words(visit):
    page = visit(link())
    page.wait_for_length(100)
    page.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.page.wait_for_selector("#notice:not([hidden])")
    assert page.page.inner_text("#notice-title") == "This photograph cannot be continued"
    assert "no image of a format" in page.page.inner_text("#notice-text")
    page.errors = [error for error in page.errors if "415" not in error]  # Browsers log every failed request.
    page.page.click("#notice button")
    page.wait_for_length(100)


def test_nothing_is_drawn_while_the_image_pauses_or_is_scrolled_back(visit, engine):
    page = visit(link())
    page.wait_for_length(900)
    page.page.keyboard.press("Space")
    page.page.wait_for_timeout(1500)
    count = engine.strips
    page.page.wait_for_timeout(1500)
    assert engine.strips == count and page.page.inner_text("#now") == "Paused"
    page.page.keyboard.press("Space")
    page.wait_for(lambda: engine.strips > count)
    # Dragged back to the beginning.
    for _ in range(3):
        page.page.mouse.move(100, 250)
        page.page.mouse.down()
        page.page.mouse.move(1100, 250, steps=4)
        page.page.wait_for_timeout(200)
        page.page.mouse.up()
    page.page.wait_for_selector("#to-right:not([hidden])")
    page.page.wait_for_timeout(1500)
    count = engine.strips
    page.page.wait_for_timeout(1500)
    assert engine.strips == count
    page.page.click("#to-right")
    page.wait_for(lambda: engine.strips > count)


def test_a_full_server_lets_a_visitor_in_when_there_is_a_place(visit, engine):
    engine.max_sessions = 1
    first = visit(link())
    first.wait_for_length(100)
    second = visit(link())
    second.page.wait_for_selector("#notice:not([hidden])")
    assert second.page.inner_text("#notice-title") == "All places are taken"
    second.wait_for(lambda: "1 of 1 places are painting" in second.page.inner_text("#notice-text"))
    assert second.page.inner_text("#notice-count").startswith(("Next try in", "Trying"))
    first.page.goto("about:blank")  # Leaving gives the place back at once.
    second.wait_for_length(100)
    assert second.page.is_hidden("#notice")
    second.errors = [error for error in second.errors if "503" not in error]


def test_an_expired_session_goes_on_from_its_end(visit, engine):
    page = visit(link())
    page.wait_for_length(700)
    before = page.saved()
    engine.sessions.clear()
    page.page.wait_for_selector("#notice:not([hidden])")
    assert page.page.inner_text("#notice-title") == "The pause was too long"
    page.page.click("#notice button")
    page.wait_for_length(before.shape[1] + 500)
    np.testing.assert_array_equal(page.saved()[:, : before.shape[1] - 32], before[:, :-32])
    assert "up to the interruption" in (page.link() and page.page.inner_text("#toast"))
    page.errors = [error for error in page.errors if "410" not in error]


def test_a_lost_connection_is_said_and_taken_up_again(visit):
    page = visit(link())
    page.wait_for_length(300)
    page.context.set_offline(True)
    page.page.wait_for_selector("#notice:not([hidden])")
    assert page.page.inner_text("#notice-title") == "No connection"
    page.context.set_offline(False)
    page.wait_for_length(page.length + 400)
    assert page.page.is_hidden("#notice")
    page.errors = [error for error in page.errors if "ERR_INTERNET_DISCONNECTED" not in error]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone(visit, scheme):
    page = visit(link(), size=(360, 740), color_scheme=scheme, is_mobile=True, has_touch=True)
    page.wait_for_length(100)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    dock = page.page.evaluate(
        "[...document.querySelectorAll('.dock, .bar, .seed, #dice, #pace, .tools')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(dock) <= 360
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 244, 239)", "dark": "rgb(13, 14, 18)"}[scheme]
    page.page.click("#help-button")
    assert page.page.evaluate("document.getElementById('help').getBoundingClientRect().right") <= 360


def test_the_theme_is_chosen_and_kept(visit):
    page = visit(link(), color_scheme="dark")
    page.page.click("#theme")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.page.evaluate(background) == "rgb(246, 244, 239)"
    page.page.reload()
    assert page.page.evaluate(background) == "rgb(246, 244, 239)"


def test_who_prefers_no_motion_starts_it(visit):
    page = visit(link(), reduced_motion="reduce")
    page.wait_for(lambda: page.page.get_attribute("#pause", "aria-pressed") == "true")
    before = page.length
    page.page.wait_for_timeout(1000)
    assert page.length == before >= 128
    page.page.click("#pause")
    page.wait_for_length(before + 200)


def test_keys_steer(visit):
    page = visit(link())
    page.wait_for_length(100)
    page.page.keyboard.press("6")
    assert page.page.inner_text("#second") == "cat"
    for _ in range(9):
        page.page.keyboard.press("[")
    page.page.keyboard.press("]")
    assert 0 < float(page.page.input_value("#mix")) <= 0.2
    page.page.keyboard.press("r")
    page.wait_for(lambda: page.page.input_value("#seed") != "5")
    page.page.keyboard.press("?")
    assert page.page.is_visible("#help")


def test_every_control_has_a_name(visit):
    page = visit(link())
    page.wait_for_length(100)
    nameless = page.page.evaluate(
        """[...document.querySelectorAll("button, input, canvas[tabindex]")].filter((e) => !e.hidden &&
          !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert not nameless


def test_a_model_paints_the_same_for_a_link(browser):
    """The engine itself, with a tiny model: steered, it paints for a second visitor what it painted for the first."""
    photo = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    with (
        Engine(local_model(), num_slots=2, num_flow_steps=2, max_sessions=4) as engine,
        browsers.served(engine) as home,
    ):
        images = []
        for steps in ("0:0,0,0,2,1", "0:0,0,0,2,1;3:0,1,0.5,2,1", "0:0,0,0,2,1;3:0,1,0.5,2,1"):
            page = browsers.Visit(browser, home + link(steps=steps))
            page.wait_for_length(150)
            images.append(page.saved()[:, :140])
            if len(images) == 3:
                page.drop(photo)
                page.wait_for(lambda page=page: "left=0" in page.page.url and "photo=1" in page.page.url)
                page.wait_for_length(60)
                assert page.saved().shape[0] == 16
            assert not page.errors
            page.close()
    np.testing.assert_array_equal(images[1], images[2])
    assert (images[0] != images[1]).any() and (images[0][:, :48] == images[1][:, :48]).all()


def test_memory_of_the_image_is_bounded(visit):
    page = visit(link())
    page.wait_for_length(300)
    kept, gone, first, last = page.page.evaluate(
        """async () => {
          const { MAX_BYTES, Tape } = await import("./tape.js");
          const tape = new Tape(64, () => {});
          const blob = await new Promise((done) => Object.assign(document.createElement("canvas"),
            { width: 128, height: 64 }).toBlob(done));
          for (let i = 0; i < 1200; i++) await tape.add("right", blob);
          for (const part of tape.parts) part.blob = { size: MAX_BYTES / 600 };
          tape.trim(tape.right);
          const kept = tape.parts.filter((part) => part.blob).length;
          const decoded = tape.parts.filter((part) => part.bitmap).length;
          return [kept, decoded, ...tape.wholeRange(tape.right - 1)];
        }"""
    )
    assert 590 <= kept <= 600 and gone <= 8e6 / (128 * 64) + 1
    assert (first, last) == ((1200 - kept) * 128, 1200 * 128)
