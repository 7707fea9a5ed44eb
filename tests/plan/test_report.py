"""The report: one well-formed page without network or scripts, every point inside the drawing."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.budget import Budget
from haversack.core.device import device
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._report import HEIGHT, WIDTH, Axis, picture, report_html, tick_step


def candidates():
    rows = [
        ("keep:kind=f32", 32.0, 0.0, 88, 40, "measured"),
        ("keep", 16.0, 0.0, 62, 20, "measured"),
        ("gptq:bits=8", 8.1, 0.001, 55, 10, "predicted"),
        ("gptq", 4.6, 0.021, 49, 6, "measured"),
        ("round-to-nearest", 4.6, 0.045, 49, 6, "measured"),
    ]
    return [
        Candidate(Plan(name), bits, loss, storage, ram, 80 / bits, 300.0, 9.0, 1.2 * (1 + loss), 50.0, source)
        for name, bits, loss, ram, storage, source in rows
    ]


class Checker(HTMLParser):
    """Collects open elements and whatever could reach a network."""

    EMPTY = ("meta", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.reaching = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.reaching += [tag for key, _ in attributes if key in ("src", "href", "onload", "onclick")]
        if tag in ("script", "iframe", "link", "img", "object"):
            self.reaching.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(title="code for a board"):
    found = candidates()
    return report_html(
        title=title,
        model="code",
        device=device("raspberry-pi-zero-2w"),
        budget=Budget(ram_mib=80),
        objective="quality",
        candidates=found,
        chosen=found[3],
        facts=[("evaluation", "default, 4,096 tokens")],
    )


def test_the_page_is_well_formed_and_reaches_nothing():
    checker = Checker()
    text = page()
    checker.feed(text)
    checker.close()
    assert checker.open == [] and checker.reaching == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(text.encode()) < 40_000


def test_the_drawing_is_svg_that_an_xml_parser_takes_and_shows_every_plan():
    text = page()
    drawing = re.search(r"<svg viewBox.*?</svg>", text, re.DOTALL).group()
    root = ElementTree.fromstring(drawing)
    titles = [element.text for element in root.iter("title")]
    assert len(titles) == len(candidates())
    for one in candidates():
        assert any(title.startswith(one.plan.label) for title in titles)
    assert "budget 80 MiB" in drawing


def test_text_from_outside_is_escaped():
    assert "<script>" not in page("<script>alert(1)</script>")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.01, 1e5), st.floats(-0.1, 5), st.floats(0.01, 1e4)), min_size=1, max_size=9
    ),
    st.one_of(st.none(), st.floats(0.5, 1e5)),
)
def test_every_point_lies_inside_the_drawing(rows, limit):
    found = [
        Candidate(Plan(f"p{at}"), 4.0, loss, 1.0, ram, speed, 1.0, 1.0)
        for at, (ram, loss, speed) in enumerate(rows)
    ]
    drawn = picture(found, Budget(ram_mib=limit), found[0])
    for point in drawn["points"]:
        assert drawn["left"] <= point["x"] <= drawn["right"] <= WIDTH
        assert drawn["top"] <= point["y"] <= drawn["bottom"] <= HEIGHT
    assert sum(point["chosen"] for point in drawn["points"]) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_an_axis_holds_its_values_between_its_ticks(values):
    axis = Axis.over(values, 0.0, 100.0)
    assert axis.low <= min(values) and axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 12
    assert axis.at(axis.low) == 0 and axis.at(axis.high) == 100


def test_ticks_are_round():
    assert [tick_step(rough) for rough in (0.9, 1.1, 2.2, 5.1, 0.03)] == [1, 2, 5, 10, 0.05]
