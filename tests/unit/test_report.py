"""The report: whole in one file, true to parity.json, and deaf to what hostile names would have it say."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser

import numpy as np
import pytest

from fabricated import RAN_ON, mask, predictions, write_samples

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from targets.parity import Candidate, compare
from targets.report import write_report
from targets.report.cases import CORRECTED, NEW_FALSE_ALARM, NEW_MISS, Case, cases, worst
from targets.report.pictures import Outline, display_size, outline, photograph
from targets.tried import Tried

WRITTEN = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7*7 }}$x_1$‮.npy"
FULL, HALF, NONE = np.ones((40, 30), bool), np.arange(1200).reshape(40, 30) < 600, np.zeros((40, 30), bool)


@pytest.fixture
def case(tmp_path):
    """Six samples, one of a hostile name; one artifact that passes, one stand-in that does not."""
    truths = {HOSTILE: FULL, "d2.npy": FULL, "d3.npy": NONE, "g1.npy": None, "g2.npy": None, "g3.npy": None}
    samples = write_samples(tmp_path / "data", truths)
    full = predictions(samples, [2, 1, -1, -2, -1, 1], [FULL, FULL, NONE, NONE, NONE, HALF])
    moved = predictions(
        samples, [-2, 1.5, 1, 2, -1.25, 0.75], [NONE, HALF, HALF, NONE, NONE, NONE],
        ran_on={**RAN_ON, "sdk": "ai_edge_litert", "stand_in": True},
    )  # fmt: skip
    candidates = [
        Candidate("openvino", "openvino", "int8", full),
        Candidate("<b>edge</b>tpu", "edgetpu", "int8", moved),
    ]
    return samples, full, candidates


def render(case, path, **options):
    samples, full, candidates = case
    result = {**compare(full, candidates, samples), "split": "test"}
    write_report(path, result, full, candidates, samples, data="surfaces", written=WRITTEN, **options)
    return path.read_text(encoding="utf-8"), result


class Page(HTMLParser):
    """Tags, attributes and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text += data


def test_the_page_loads_nothing_but_itself(case, tmp_path):
    html, _ = render(case, tmp_path / "report.html")
    page = Page(html)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), (tag, name, value)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base", "form", "b:edge"}
    assert "@import" not in html and "url(" not in html
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_pictures_load_nothing_either(case, tmp_path):
    html, _ = render(case, tmp_path / "report.html")
    charts = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    assert len(charts) == 6
    for chart in charts:
        svg = base64.b64decode(chart).decode()
        assert svg.rstrip().endswith("</svg>")
        links = re.findall(r"(?:href|src)=\"([^\"]*)\"", svg)
        assert all(link.startswith(("#", "data:image/png")) for link in links)
        assert "<script" not in svg and "<metadata" not in svg


def test_hostile_names_are_only_text(case, tmp_path):
    html, _ = render(case, tmp_path / "report.html")
    page = Page(html)
    assert HOSTILE in page.text
    assert "<b>edge</b>tpu" in page.text
    assert "<img src=x" not in html and "<b>edge" not in html
    assert {a.get("src", "data:")[:5] for tag, a in page.tags if tag == "img"} == {"data:"}


def test_the_verdict_and_the_numbers_are_those_of_parity_json(case, tmp_path):
    html, result = render(case, tmp_path / "report.html")
    text = " ".join(Page(html).text.split())
    assert "1 of 2 artifacts fails" in text
    failed = result["artifacts"][1]
    assert failed["reasons"][0] in text
    assert "3 of 6 verdicts differ from full precision: 1 new miss, 1 new false alarm, 1 corrected." in text
    assert f"{failed['mask_agreement_iou']:.3f}" in text and "No verdict differs from full precision." in text
    assert text.count("stand-in, not verified on device") >= 2
    assert "openvino 1.0 CPU" in text and "ai_edge_litert 1.0 CPU" in text
    assert "surfaces, split test" in text and "6 samples, 3 defective" in text


def test_all_pass_is_said_plainly(case, tmp_path):
    samples, full, candidates = case
    html, _ = render((samples, full, candidates[:1]), tmp_path / "report.html")
    text = " ".join(Page(html).text.split())
    assert "The artifact passes" in text
    assert "not verified on device" not in text and "fails" not in text
    assert "each other" not in text  # nothing to compare it with


def test_the_same_input_gives_the_same_bytes(case, tmp_path):
    assert render(case, tmp_path / "a.html")[0] == render(case, tmp_path / "b.html")[0]


def test_the_order_of_the_prediction_files_does_not_show(case, tmp_path):
    samples, full, candidates = case
    order = [5, 3, 1, 0, 2, 4]
    turned = replace(
        full,
        sample_ids=tuple(full.sample_ids[i] for i in order),
        image_sha256=tuple(full.image_sha256[i] for i in order),
        defect_logits=full.defect_logits[order],
        masks=tuple(full.masks[i] for i in order),
    )
    assert (
        render((samples, turned, candidates), tmp_path / "a.html")[0] == render(case, tmp_path / "b.html")[0]
    )


def test_a_photograph_is_on_the_page_once(case, tmp_path):
    samples, full, candidates = case
    twice = [replace(candidates[1], name="one"), replace(candidates[1], name="two")]
    html, _ = render((samples, full, twice), tmp_path / "report.html")
    ids = re.findall(r'<image id="photo-(\d+)"', html)
    assert len(ids) == len(set(ids)) <= len(samples)
    assert html.count('href="#photo-0"') == 8  # four panels for each artifact


@pytest.mark.parametrize("label", [None, FULL])
def test_one_sample_of_one_kind_is_enough(tmp_path, label):
    samples = write_samples(tmp_path / "data", {"only.npy": label})
    one = predictions(samples, [1.0], [np.zeros(np.load(samples[0].image).shape, bool)], ran_on=None)
    html, _ = render((samples, one, [Candidate("a", None, None, one)]), tmp_path / "report.html")
    assert "n/a" in html and "unknown" in html and "nan" not in Page(html).text


# What is found, before and after


def test_defects_are_counted_by_area_and_without_a_type_column(case, tmp_path):
    html, _ = render(case, tmp_path / "report.html")
    text = " ".join(Page(html).text.split())
    # Of two defects that fill the frame full precision finds both; the second artifact loses one and half of the other.
    assert "100 % 2 2 1 1.000 0.250" in text
    assert "<td class=warn>1</td>" in html
    assert "1 defective sample has no ground-truth mask: left out" in text
    assert "share of the frame" in text and "defect type" not in text


def test_defect_types_are_shown_and_only_text(case, tmp_path):
    samples, full, candidates = case
    typed = [replace(sample, defect_type=HOSTILE if sample.defective else "") for sample in samples]
    html, _ = render((typed, full, candidates), tmp_path / "report.html")
    text = " ".join(Page(html).text.split())
    assert f"{HOSTILE} 3 2 2 1.000 0.250" in text and "<img src=x" not in html


def test_without_a_defect_there_is_no_table_and_no_mask_to_agree_on(tmp_path):
    samples = write_samples(tmp_path / "data", {"good.npy": None})
    one = predictions(samples, [-1.0], [np.zeros((4, 4), bool)])
    html, result = render((samples, one, [Candidate("a", None, None, one)]), tmp_path / "report.html")
    text = " ".join(Page(html).text.split())
    assert "Seg_Recall before" not in text and "How well the masks match" not in text
    quiet = re.findall(r'<p class="quiet small">(Not judged: .*?)</p>', html)
    assert quiet == ["Not judged: " + "; ".join(result["artifacts"][0]["not_judged"])]


# What export tried


def test_a_fallback_is_said_in_red_and_its_candidates_are_listed(case, tmp_path):
    samples, full, candidates = case
    tried = (
        Tried("int8", 133, 3, 2, 0.72, ("3 of 133 verdicts flipped, allowed 1", "<b>2</b> new misses")),
        Tried("fp16", 133, 0, 0, 0.954),
    )
    html, _ = render((samples, full, [replace(candidates[0], tried=tried)]), tmp_path / "report.html")
    said = (
        "int8 missed: 3 of 133 verdicts flipped, allowed 1; &lt;b&gt;2&lt;/b&gt; new misses; shipped as fp16"
    )
    assert f'<p class="warn">{said}</p>' in html
    text = " ".join(Page(html).text.split())
    assert "int8 3 of 133 2 0.720 ✕ failed" in text and "fp16 0 of 133 0 0.954 ✓ passed" in text


def test_prediction_files_say_nothing_of_candidates(case, tmp_path):
    html, _ = render(case, tmp_path / "report.html")
    assert "Candidates that export tried" not in html and "shipped as" not in html


# Which samples are shown


def test_ten_samples_are_shown(tmp_path):
    samples = write_samples(tmp_path / "data", {f"{number}.npy": FULL for number in range(12)})
    full = predictions(samples, [1.0] * 12, [FULL] * 12)
    ours = predictions(samples, np.linspace(1.1, 2.2, 12), [FULL] * 12)
    html, _ = render((samples, full, [Candidate("a", None, None, ours)]), tmp_path / "report.html")
    assert html.count('<article class="card">') == 10 and "The 10 worst samples" in html


def test_flips_are_named_by_what_they_cost(case):
    samples, full, candidates = case
    kinds = [one.kind for one in cases(full, candidates[1].predictions, samples)]
    assert kinds == [NEW_MISS, "", CORRECTED, NEW_FALSE_ALARM, "", ""]


def _steady(index, change=0.0, agreement=1.0, kind=""):
    return Case(index, kind, change, agreement, called=True)


def test_flips_come_first_then_scores_and_masks_by_turns():
    every = [
        _steady(0, 0.5), _steady(1, -0.9), _steady(2, 0.1, 0.2), _steady(3, 0.0, 0.1),
        _steady(4, 0.2, kind=NEW_MISS), _steady(5, -3.0, kind=CORRECTED), _steady(6),
    ]  # fmt: skip
    assert [one.index for one in worst(every, 8)] == [5, 4, 1, 3, 0, 2]  # 6 has nothing to show
    assert [one.index for one in worst(every, 3)] == [5, 4, 1]
    assert [one.index for one in worst(every, 1)] == [5]
    assert worst([_steady(6)], 8) == [] and worst([], 8) == []


def test_masks_that_full_precision_does_not_call_are_no_reason():
    passed = Case(0, "", 0.0, 0.0, called=False)
    assert worst([passed], 8) == []


# Pictures


def test_a_photograph_is_made_small_but_never_larger():
    assert display_size(1024, 1280) == (176, 220)
    assert display_size(40, 30) == (40, 30)
    assert display_size(1, 100_000) == (1, 220)
    data = base64.b64decode(photograph(np.zeros((500, 300), np.uint8)).split(",")[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")] == [132, 220]


def test_an_outline_runs_around_the_pixels():
    assert outline(NONE) == Outline("", ())
    path = outline(mask("...../.##../.##../.....")).path
    numbers = np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)
    # Columns 1 and 2, rows 1 and 2: half a pixel around their centres, corners cut.
    assert numbers.min(axis=0).tolist() == [1, 1] and numbers.max(axis=0).tolist() == [3, 3]
    assert path.startswith("M") and path.endswith("Z") and path.count("M") == 1
    assert outline(mask("#..#/..../#..#")).path.count("M") == 4


def test_a_ring_points_at_what_is_small_and_rare():
    assert outline(mask("...../.##../.##../.....")).rings == ((2.0, 2.0),)
    assert outline(FULL).rings == ()
    assert outline(np.kron(np.eye(8, dtype=bool), mask("#./.."))).rings == ()


def test_one_pixel_of_a_large_mask_is_still_outlined():
    huge = np.zeros((2000, 3000), bool)
    huge[1234, 777] = True
    assert len(outline(huge).rings) == 1


# In a browser


def _chromium():
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine")


def _open_in_browser(path, folder):
    """Open a page headless; returns the DOM, the console's lines and what the page asked for."""
    netlog = folder / "netlog.json"
    command = [
        _chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-extensions", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", f"--log-net-log={netlog}", "--enable-logging=stderr",
        "--v=0", "--virtual-time-budget=2000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        dom, log = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    started = [event.get("params", {}) for event in json.loads(netlog.read_text())["events"]]
    # The browser itself asks for the time and the like; what a page asks for has the page as its initiator.
    requests = {
        params["url"]
        for params in started
        if params.get("initiator", "not an origin") != "not an origin"
        and params.get("url", "").startswith(("http", "ws", "ftp"))
    }
    return dom, [line for line in log.splitlines() if "CONSOLE" in line], requests


@pytest.mark.slow
def test_a_browser_has_nothing_to_complain_about(case, tmp_path):
    render(case, tmp_path / "report.html")
    dom, console, requests = _open_in_browser(tmp_path / "report.html", tmp_path)
    assert "1 of 2 artifacts fails" in dom
    assert console == [] and requests == set()


@pytest.mark.slow
def test_the_browser_test_can_fail(tmp_path):
    """The page's own policy, an image that it forbids, and a script that complains: all three are seen."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    (tmp_path / "a").mkdir()
    _, console, _ = _open_in_browser(page, tmp_path / "a")
    assert any("Content Security Policy" in line for line in console)
    page.write_text("<!DOCTYPE html><img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>")
    (tmp_path / "b").mkdir()
    _, console, requests = _open_in_browser(page, tmp_path / "b")
    assert any("oh" in line for line in console)
    assert "http://127.0.0.1:9/x.png" in requests
