"""The page as people use it, in a headless Chromium."""

import re

import pytest
from PIL import Image

from .conftest import EXAMPLES, WAIT


def upload(page, name, *files):
    for place, file in zip("ab", files, strict=False):
        page.set_input_files(f"#{name}-{place} input[type=file]", str(file))
        page.wait_for_selector(f"#{name}-{place} img")


def match(page, *files):
    upload(page, "match", *files)
    page.click("#match-run")
    page.wait_for_selector("#match-picture img")
    return count(page)


def count(page):
    return int(re.search(r"([\d,]+) match", page.inner_text("#match-said"))[1].replace(",", ""))


@pytest.fixture
def photos(tmp_path):
    """The example pair, small: the page is what is tested."""
    out = []
    for name in ("leuven_a.jpg", "leuven_b.jpg"):
        with Image.open(EXAMPLES / name) as image:
            image.resize((320, 240)).save(tmp_path / name)
        out.append(tmp_path / name)
    return out


def test_two_photographs_are_matched_and_the_slider_redraws(page, photos):
    before = match(page, *photos)
    assert before > 50
    image = page.get_attribute("#match-picture img", "src")
    page.fill("#match-threshold input[type=number]", "0.98")
    page.press("#match-threshold input[type=number]", "Enter")
    page.dispatch_event("#match-threshold input[type=range]", "pointerup")
    page.wait_for_function("old => document.querySelector('#match-picture img').src != old", arg=image)
    assert count(page) < before


def test_a_click_shows_where_the_point_looks(page, photos):
    page.get_by_role("tab", name="Attention").click()
    upload(page, "attention", *photos)
    page.click("#attention-a img", position={"x": 100, "y": 90})
    page.wait_for_selector("#attention-picture img")
    assert "cross-attention" in page.inner_text("#attention-said")
    assert "with dense attention" in page.inner_text("#attention-said")


def saved(page, name):
    """Bytes of the download of that name."""
    link = page.wait_for_selector(f"a[href$='/{name}']", state="attached")
    answer = page.request.get(link.evaluate("a => a.href"))
    assert answer.ok
    return answer.body()


def test_b_is_laid_over_a_and_matches_are_downloaded(page, photos):
    found = match(page, *photos)
    page.get_by_label("homography").check()
    page.wait_for_selector("#match-overlay img")
    page.get_by_role("button", name="Prepare downloads").first.click()
    assert len(saved(page, "matches.csv").splitlines()) == found + 1
    assert saved(page, "blend.gif").startswith(b"GIF8")


def test_a_broken_file_gets_its_sentence(page, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:3000])
    page.set_input_files("#match-a input[type=file]", str(tmp_path / "broken.jpg"))
    page.set_input_files("#match-b input[type=file]", str(photos[1]))
    page.wait_for_selector("#match-b img")
    page.click("#match-run")
    toast = page.wait_for_selector(".toast-body.error")
    text = toast.inner_text()
    assert "broken.jpg" in text
    assert "damaged" in text
    assert "/tmp" not in text


def test_two_visitors_do_not_see_each_others_photographs(page, browser, address, photos, tmp_path):
    other = browser.new_context().new_page()
    other.set_default_timeout(WAIT)
    other.goto(address)
    Image.new("RGB", (200, 200), "white").save(tmp_path / "white.png")
    mine = match(page, *photos)
    theirs = match(other, tmp_path / "white.png", tmp_path / "white.png")
    assert theirs != mine
    assert count(page) == mine
    other.context.close()


def test_a_narrow_phone_has_no_sideways_scrolling(browser, address):
    phone = browser.new_page(viewport={"width": 360, "height": 740})
    phone.set_default_timeout(WAIT)
    phone.goto(address)
    phone.wait_for_selector("#match-run")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    phone.close()
