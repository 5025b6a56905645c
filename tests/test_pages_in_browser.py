"""Report and listening test in a real browser: they play, sort, fit a phone and save ratings."""

import csv
import json
import re

import pytest

from recipes.report import main
from tests.browser import Visit, chromium
from tests.evaluation_runs import ITEMS, write_evaluation, write_plain
from tests.pages import read_page, rows_of

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
CODECS = ("FocalCodec@50", "FocalCodec@12.5")
SAVED = "JSON.parse(localStorage.getItem(storageName))"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Report of two codecs on two test sets, with a listening test."""
    folder = tmp_path_factory.mktemp("pages")
    for place, codec in enumerate(CODECS):
        quality = 0.9 - 0.3 * place
        write_evaluation(folder / f"runs/a{place}", codec=codec, quality=quality, seconds=4)
        write_plain(
            folder / f"runs/b{place}",
            codec=codec,
            dataset="voicebank",
            not_computed={"utmos": "no weights"},
        )
    words = ["--mushra", "--mushra-set", "librispeech_test_clean", "--mushra-items", "2"]
    assert main([str(folder / "runs"), "-o", str(folder / "report"), *words]) == 0
    return folder / "report"


@pytest.fixture
def visit(browser):
    """Open pages, each checked and closed in the end."""
    visits = []

    def open_page(path, **options):
        visits.append(Visit(browser, path, **options))
        return visits[-1].page

    yield open_page
    for one in visits:
        one.check()
        one.close()


@pytest.fixture
def report(visit, output):
    return visit(output / "index.html")


# The report


def test_every_player_has_sound_and_every_picture_shows(report):
    report.evaluate("for (const image of document.images) image.loading = 'eager'")
    report.wait_for_function("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    report.wait_for_function("[...document.querySelectorAll('audio')].every((a) => a.duration > 0)")
    durations = report.evaluate("[...document.querySelectorAll('audio')].map((a) => a.duration)")
    assert len(durations) == 3 * len(ITEMS) + 3 * 2
    assert durations[: 3 * len(ITEMS)] == pytest.approx([4] * 3 * len(ITEMS))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_follows_its_colours(scheme, visit, output):
    for path in (output / "index.html", output / "listening_test/index.html"):
        page = visit(path, **PHONE, color_scheme=scheme)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["viewport"]["width"]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        level = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert level < 64 if scheme == "dark" else level > 192


def test_tables_of_a_phone_scroll_in_their_own_box(visit, output):
    page = visit(output / "index.html", **PHONE)
    boxes = page.locator(".scroll:visible")
    sizes = boxes.evaluate_all("(all) => all.map((box) => [box.clientWidth, box.scrollWidth])")
    assert any(inner > outer for outer, inner in sizes)
    assert all(outer <= PHONE["viewport"]["width"] for outer, _ in sizes)


def column(page, title):
    """Texts of a column of the first table, and its header."""
    table = page.locator("#set-1-table")
    titles = [text.strip(" \xa0↑↓") for text in table.locator("thead th").all_inner_texts()]
    place = titles.index(title)
    cells = table.locator(f"tbody tr > :nth-child({place + 1})")
    return cells, table.locator("thead th").nth(place)


def numbers(cells):
    return [
        float(found[0])
        for text in cells.all_inner_texts()
        if (found := re.findall(r"[\d.]+", text))
    ]


def test_tables_sort_as_numbers_by_mouse_and_keyboard(report):
    cells, header = column(report, "dWER (%)")
    before = numbers(cells)
    assert before != sorted(before) and header.get_attribute("aria-sort") is None
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending", "less is better"
    assert numbers(cells) == sorted(before)
    header.locator("button").focus()
    report.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert numbers(cells) == sorted(before, reverse=True)
    cells, other = column(report, "UTMOS")
    other.locator("button").click()
    assert other.get_attribute("aria-sort") == "descending", "more is better"
    assert header.get_attribute("aria-sort") is None
    assert numbers(cells) == sorted(numbers(cells), reverse=True)


def test_what_has_no_number_stays_below_in_both_directions(report):
    cells, header = column(report, "STOI")
    for _ in range(2):
        header.locator("button").click()
        texts = cells.all_inner_texts()
        assert [text == "–" for text in texts] == sorted(text == "–" for text in texts)
        assert texts[0] != "–"


def test_names_sort_as_text(report):
    cells, header = column(report, "Codec")
    header.locator("button").click()
    names = [
        text.partition("\n")[0].replace("ours", "").lower() for text in cells.all_inner_texts()
    ]
    assert names[0].startswith("bigcodec") and names[-1].startswith("wavtokenizer")


def slow_down(page):
    """Let clips last so long that no machine is too slow to look while they play."""
    page.evaluate(
        "for (const sound of document.querySelectorAll('audio')) sound.playbackRate = 0.1"
    )


def test_one_player_at_a_time_and_a_click_in_the_picture_seeks(report):
    slow_down(report)
    report.wait_for_function("document.querySelectorAll('audio')[1].duration > 0")
    pictures = report.locator("table.samples").first.locator("button.mel")
    box = pictures.nth(1).bounding_box()
    pictures.nth(1).click(position={"x": box["width"] / 2, "y": 10})
    report.wait_for_function("!document.querySelectorAll('audio')[1].paused")
    at = report.evaluate("document.querySelectorAll('audio')[1].currentTime")
    assert 1.9 <= at < 4, "from the middle of 4 s"
    report.evaluate("document.querySelectorAll('audio')[2].play().then(() => null)")
    report.wait_for_function("document.querySelectorAll('audio')[1].paused")
    playing = report.locator(".playing audio")
    report.wait_for_function("document.querySelectorAll('.playing').length === 1")
    sounds = [player.get_attribute("src") for player in report.locator("audio").all()[:3]]
    assert playing.get_attribute("src") == sounds[2]


def test_position_is_kept_on_request_within_a_row(report):
    slow_down(report)
    report.evaluate("window.sounds = [...document.querySelectorAll('audio')]")
    start = "(i) => sounds[i].play().then(() => sounds[i].currentTime)"
    report.wait_for_function("sounds.every((sound) => sound.duration > 0)")
    report.evaluate("sounds[0].currentTime = 0.9")
    report.evaluate(start, 0)
    assert report.evaluate(start, 1) < 0.5, "not asked for"
    report.check("#keep-position")
    report.evaluate("sounds[1].pause(); sounds[1].currentTime = 0.9")
    assert report.evaluate(start, 2) >= 0.9
    assert report.evaluate(start, 3) < 0.5, "another row"


def test_picture_plays_and_pauses_by_keyboard(report):
    slow_down(report)
    picture = report.locator("button.mel").first
    picture.focus()
    report.keyboard.press("Enter")
    report.wait_for_function("!document.querySelector('audio').paused")
    report.keyboard.press("Enter")
    report.wait_for_function("document.querySelector('audio').paused")


# The listening test


@pytest.fixture
def listening(visit, output):
    return visit(output / "listening_test/index.html", accept_downloads=True)


def begin(page, participant="Anna, 1"):
    page.fill("#participant", participant)
    page.click("#start button")
    ready(page)


def rate_all(page, values):
    """Play and rate all versions of the item on the page, and go on."""
    lines = page.locator("#conditions li:not(.reference)")
    for place, value in enumerate(values):
        lines.nth(place).locator("button").click()
        lines.nth(place).locator("input").fill(str(value))
    step = page.inner_text("#step")
    page.click("#next")
    page.wait_for_function(
        "(step) => byId('step').textContent !== step || !byId('end').hidden", arg=step
    )


def ready(page):
    """Wait for the versions of a recording; a failure tells what the page shows instead."""
    from playwright.sync_api import TimeoutError as TooLate

    try:
        page.wait_for_selector("#conditions output")
    except TooLate:
        pytest.fail(f"no versions, but: {page.inner_text('body')}")


def test_whole_test_is_taken_saved_and_analysed(listening, output, tmp_path):
    page = listening
    begin(page)
    assert page.inner_text("#step") == "Practice"
    rate_all(page, [1, 2, 3])
    ready(page)
    assert page.inner_text("#step") == "Recording 1 of 2"
    rate_all(page, [100, 60, 20])
    ready(page)
    rate_all(page, [0, 50, 97])
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "ratings-Anna_1.csv"
    path = tmp_path / "ratings.csv"
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["participant"] for row in rows} == {"Anna, 1"}
    assert {row["condition"] for row in rows} == {"reference", *CODECS}
    for order, values in (("1", [100, 60, 20]), ("2", [0, 50, 97])):
        of_item = sorted((r for r in rows if r["order"] == order), key=lambda r: int(r["position"]))
        assert [int(row["rating"]) for row in of_item] == values
        assert len({row["item"] for row in of_item}) == 1 and of_item[0]["item"] in ITEMS
        assert float(of_item[0]["seconds"]) > 0 and of_item[0]["time"].endswith("Z")
    bitrates = {row["condition"]: row["bitrate"] for row in rows}
    assert bitrates == {"reference": "", "FocalCodec@50": "650", "FocalCodec@12.5": "162.5"}
    for row in rows:
        row["participant"] = "bo"
        if row["kind"] == "reference":
            row["rating"] = "100"
    second = tmp_path / "bo.csv"
    with second.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert main(["--ratings", str(path), str(second), "-o", str(tmp_path / "out")]) == 0
    table = rows_of(read_page(tmp_path / "out/index.html"), "mos-table")
    assert {row["Condition"].text for row in table} == {"reference", *CODECS}


def test_nobody_goes_on_before_every_version_was_heard_and_rated(listening):
    page = listening
    begin(page)
    lines = page.locator("#conditions li:not(.reference)")
    assert page.inner_text("#open") == "Still to be heard: A, B, C; still to be rated: A, B, C"
    for place in range(3):
        assert page.is_disabled("#next")
        lines.nth(place).locator("input").fill("70")
    assert page.inner_text("#open") == "Still to be heard: A, B, C"
    for place in range(3):
        assert page.is_disabled("#next")
        lines.nth(place).locator("button").click()
    assert page.is_enabled("#next") and page.inner_text("#open") == ""


def test_slider_left_in_the_middle_on_purpose_counts(listening):
    begin(listening)
    line = listening.locator("#conditions li:not(.reference)").first
    assert line.locator("output").inner_text() == "–"
    line.locator("input").click()
    assert abs(int(line.locator("output").inner_text()) - 50) <= 1


def test_reload_loses_nothing(listening):
    page = listening
    begin(page)
    rate_all(page, [1, 2, 3])
    ready(page)
    line = page.locator("#conditions li:not(.reference)").nth(1)
    line.locator("button").click()
    line.locator("input").fill("33")
    before = page.locator("#conditions li").evaluate_all("(all) => all.map((l) => l.dataset.name)")
    page.reload()
    ready(page)
    assert page.inner_text("#step") == "Recording 1 of 2"
    after = page.locator("#conditions li").evaluate_all("(all) => all.map((l) => l.dataset.name)")
    assert after == before
    assert page.locator("#conditions output").all_inner_texts() == ["–", "33", "–"]
    assert page.inner_text("#open") == "Still to be heard: A, C; still to be rated: A, C"


def test_switching_goes_on_at_the_same_position_with_one_version_heard(listening):
    page = listening
    begin(page)
    page.click("#conditions li:nth-child(2) button")
    page.wait_for_function("deck.position > 0.4")
    one, same, two = page.evaluate(
        """() => {
            const [at, voices] = [deck.position, deck.voices];
            listen(trial.reference);
            return [at, deck.voices === voices, deck.position];
        }"""
    )
    assert 0 <= two - one < 0.05 and same, "nothing was started again"
    page.wait_for_function(
        "Object.entries(deck.voices).every(([name, voice]) =>"
        " (voice.gain.gain.value > 0.5) === (name === trial.reference))"
    )
    assert page.evaluate("deck.heard === trial.reference && deck.playing")


def test_loop_pause_and_keys(listening):
    page = listening
    begin(page)
    page.evaluate("deck.change({ region: [0.5, 0.8] })")
    page.locator("h1:visible").click()
    page.keyboard.press("2")
    second = page.locator("#conditions li").nth(2)
    assert "active" in second.get_attribute("class")
    page.evaluate(
        "window.seen = []; window.watch = setInterval(() => seen.push(deck.position), 20); null"
    )
    page.wait_for_function("seen.some((at, place) => at < seen[place - 1])")  # it came round
    assert all(0.5 <= at <= 0.8 for at in page.evaluate("clearInterval(watch), seen"))
    page.keyboard.press(" ")
    assert not page.evaluate("deck.playing")
    page.click("#whole")
    page.uncheck("#loop")
    page.evaluate("deck.play(deck.duration - 0.2)")
    page.wait_for_function("!deck.playing")
    assert page.evaluate("deck.position") == 0, "it ended"


def test_region_stays_within_short_audio(listening):
    begin(listening)
    for button in ("#from", "#to", "#from"):
        for length in (0.1, 0.3):
            region = listening.evaluate(
                """([length, button]) => {
                    Object.assign(deck, { duration: length, region: [0, length], offset: 0.05 });
                    document.querySelector(button).click();
                    return deck.region;
                }""",
                [length, button],
            )
            assert 0 <= region[0] < region[1] <= length


def second_tab(page):
    """Open the same test in another tab of the same browser.

    The page opens it itself, so that both are in one process: Chromium now and then keeps what one
    process has stored from another one.
    """
    with page.context.expect_page() as opened:
        page.evaluate("void window.open(location.href)")
    opened.value.wait_for_load_state("load")
    return opened.value


def test_closing_a_tab_that_was_left_behind_loses_nothing(listening):
    stale = listening
    begin(stale)
    current = second_tab(stale)
    ready(current)
    rate_all(current, [1, 2, 3])
    ready(current)
    stale.goto("about:blank")
    assert current.evaluate(f"{SAVED}.step") == 1
    current.reload()
    ready(current)
    assert current.inner_text("#step") == "Recording 1 of 2"


def test_tab_that_was_left_behind_goes_on_from_what_was_saved(listening):
    stale = listening
    begin(stale)
    current = second_tab(stale)
    ready(current)
    rate_all(current, [1, 2, 3])
    ready(current)
    current.locator("#conditions input").first.fill("33")
    stale.locator("#conditions input").first.fill("99")  # of the practice, which is over
    stale.wait_for_function("byId('step').textContent === 'Recording 1 of 2'")
    ready(stale)
    assert "33" in stale.locator("#conditions output").all_inner_texts()
    assert stale.evaluate(f"{SAVED}.step") == 1


def test_tab_that_has_not_begun_follows_the_one_that_has(listening):
    other = second_tab(listening)
    assert other.is_visible("#intro")
    begin(listening)
    ready(other)


def test_time_is_saved_when_the_only_tab_is_closed(listening):
    begin(listening)
    listening.locator("#conditions button").nth(1).click()
    before = listening.evaluate(f"{SAVED}.answers[trial.id].seconds")
    listening.wait_for_function("(before) => answersOf(trial).seconds > before", arg=before)
    listening.reload()
    ready(listening)
    assert listening.evaluate(f"{SAVED}.answers[trial.id].seconds") > before


def test_nothing_that_is_shown_or_stored_names_a_codec(listening, output):
    page = listening
    begin(page)
    rate_all(page, [1, 2, 3])
    ready(page)
    key = json.loads(page.inner_text("#content", timeout=1000) or page.text_content("#content"))[
        "key"
    ]
    everything = page.content().replace(key, "") + page.evaluate("JSON.stringify(localStorage)")
    assert "FocalCodec" not in everything and "hyp" not in everything


def test_order_is_another_for_other_participants(listening):
    begin(listening)
    states = listening.evaluate("Array.from({ length: 9 }, () => newState('x'))")
    for drawn in ("trials", "slots"):
        assert len({json.dumps(state[drawn]) for state in states}) > 1


def test_another_participant_starts_over_after_a_second_press(listening):
    page = listening
    begin(page)
    for values in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        ready(page)
        rate_all(page, values)
    page.click("#again")
    assert page.is_visible("#end")
    page.click("#again")
    page.wait_for_selector("#participant:visible")
    assert page.evaluate("localStorage.length") == 0
