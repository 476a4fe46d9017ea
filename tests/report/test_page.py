"""The page: self-contained, complete, escaped, deterministic, and true to the artifacts."""

import html
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import pandas as pd
import pytest

from salf.errors import UserError
from stages.report.__main__ import main
from tests.report.conftest import GRID

LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects tags, ids, what would be loaded, and the rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.anchors: list[str] = []
        self.tables: dict[str, list[list[tuple[str, float | None]]]] = {}
        self._rows: list[list[tuple[str, float | None]]] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.anchors.append(found["href"])
        self.loads += [(tag, v) for k, v in found.items() if k in LOADING or (k == "href" and tag != "a")]
        if tag == "table":
            self._rows = self.tables.setdefault(found.get("class", ""), [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append(("", None))
        elif tag == "data" and self._rows is not None:
            self._rows[-1][-1] = ("", float(found["value"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if self._rows and self._rows[-1]:
            text, value = self._rows[-1][-1]
            self._rows[-1][-1] = (text + data, value)


OUTCOMES = ("good", "worse", "no-law", "free", "single", "no-runs", "uneven", "grid")


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_page_loads_nothing_and_its_links_lead_somewhere(pages: dict, name: str) -> None:
    text = pages[name][1]
    page = Reader(text)
    assert [(tag, v) for tag, v in page.loads if not v.startswith(("#", "data:"))] == []
    assert "@import" not in text
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []
    inside = {link[1:] for link in page.anchors if link.startswith("#")}
    assert inside <= set(page.ids)
    assert {"answer", "quality", "trace", "law", "gains", "frontier", "examples", "identity"} <= inside


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_figure_is_xml_with_text_alternatives_and_ids_of_its_own(pages: dict, name: str) -> None:
    text = pages[name][1]
    assert [i for i, n in Counter(Reader(text).ids).items() if n > 1] == []
    figures = re.findall(r"<svg\b.*?</svg>", text, flags=re.DOTALL)
    assert figures
    for svg in figures:
        root = ET.fromstring(svg)
        space = {"s": "http://www.w3.org/2000/svg"}
        assert root.get("role") == "img"
        assert (root.findtext("s:title", namespaces=space) or "").strip()
        assert len(root.findtext("s:desc", namespaces=space) or "") > 20
        references = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
        assert references <= set(re.findall(r'\bid="([^"]+)"', svg))
        assert not re.search(r"#fe[0-9a-f]{2}ef", svg), "a stand-in colour was left"
        assert "DejaVu" not in svg


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_figure_is_a_file_too_on_light_ground(pages: dict, name: str) -> None:
    chain, text = pages[name]
    files = {file.stem: file.read_text(encoding="utf-8") for file in (chain.root / "reports/figures").iterdir()}
    assert set(files) == set(re.findall(r'<svg [^>]*id="([^"]+)"', text))
    for svg in files.values():
        assert svg.strip() in text
        root = ET.fromstring(svg)
        size = [root.attrib["width"], root.attrib["height"]]
        assert root.attrib["viewBox"].split() == ["0", "0", *size]
        assert set(re.findall(r"var\((--[a-z-]+)\)", svg)) == set()
        assert "var(--card, #ffffff)" in svg


def test_the_key_table_says_what_the_artifacts_say(pages: dict) -> None:
    chain, text = pages["good"]
    metrics = json.loads((chain.root / "reports/metrics.json").read_text())
    tables = Reader(text).tables
    rows, costs = (
        {row[0][0].strip(): [value for _, value in row] for row in tables[name][1:]} for name in ("methods", "costs")
    )
    assert set(rows) >= {"full", "salf", "lora", "salf+lora"}
    for name, entry in metrics["methods"].items():
        equal = entry["at_equal_compute"]["validation_accuracy"]
        scores = [entry[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "loss")]
        gap = None if name == "full" else entry["accuracy_minus_full"]
        assert rows[name][1:] == [*scores, gap, equal]
        counted = [entry["boundary"], entry["trained_parameters"], entry["flops"], entry["flops_backward"]]
        assert costs[name][1:5] == counted
    assert rows["TF-IDF + logistic regression"][1] == metrics["baselines"]["tfidf"]["accuracy"]
    assert costs["salf"][5] == pytest.approx(48 * 0.48 + 7.0)
    assert costs["salf"][6] == 1500 * 2**20


def test_a_grid_of_boundaries_is_in_order(pages: dict) -> None:
    chain, text = pages["grid"]
    names = [row[0][0].strip() for row in Reader(text).tables["methods"][1:]]
    grid = [f"freeze-{k}" for k in (0, 4, 8, 12, 15, 18, 20, 23, 26, 30)]
    assert names[:13] == ["full", "first-n", *grid, "lisa"]
    figure = ET.parse(chain.root / "reports/figures/fig-quality.svg").getroot()
    assert set(names[:13]) <= {text.text for text in figure.iterfind(".//{http://www.w3.org/2000/svg}text")}


def test_methods_are_in_groups_by_the_slot_of_their_technique(pages: dict) -> None:
    tables = Reader(pages["good"][1]).tables
    groups = {name: [row[0][0].strip() for row in tables[name][1:]] for name in ("methods", "costs")}
    assert groups["costs"] == ["full", "salf", "Technique: form", "lora", "salf+lora"]
    assert groups["methods"][:6] == [*groups["costs"], "Without fine-tuning"]
    assert not {"Technique: form", "Without fine-tuning"} & {
        row[0][0].strip() for row in Reader(pages["grid"][1]).tables["methods"]
    }


@pytest.mark.parametrize(("name", "verdict"), [("good", "fits."), ("no-law", "does not fit: R² is low.")])
def test_the_law_has_its_verdict_and_both_boundaries_of_the_trace_have_their_costs(pages, name, verdict):
    chain, text = pages[name]
    assert f"From the curve’s peak on, at layer 20, the power law {verdict}" in text
    plan = json.loads((chain.root / "data/plan/freeze_plan.json").read_text())
    rows = {row[0][0].strip(): row for row in Reader(text).tables["selectors-table"][1:]}
    for selector, k in (("salf-law", 20), ("salf", plan["boundary"])):
        point = plan["frontier"][k]
        expected = [k, point["flops_share"], point["flops_backward_share"]]
        assert [value for _, value in rows[selector][1:4]] == expected
    _, (boundary, _), *_, (why, _) = rows["salf-law"]
    assert "interval 19–21" in boundary
    assert ("Warning: R² is low" in why) == (name == "no-law")
    assert "of its backward FLOPs" in text


def test_the_frontier_table_has_every_boundary(pages: dict) -> None:
    chain, text = pages["good"]
    plan = json.loads((chain.root / "data/plan/freeze_plan.json").read_text())
    rows = Reader(text).tables["frontier-table"][1:]
    assert [[r[at][1] for at in (0, 2, 3, 4)] for r in rows] == [
        [p["boundary"], p["flops"], p["flops_backward"], p["lora"] and p["lora"]["flops"]] for p in plan["frontier"]
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("good", "Train layers 22–30 of 30: no significant difference (± 4.0 points) from full fine-tuning’s accuracy"),
        (
            "worse",
            "Training only layers 22–30 of 30: significantly worse than full fine-tuning’s accuracy (−25.0 points",
        ),
        ("free", "no significant difference (± 0.040) from full fine-tuning’s loss"),
        ("good", "read from an unfinished learning-rate schedule"),
        ("uneven", "uneven, from 1.2 % to 95.0 % of the examples: accuracy 0.540"),
        ("uneven", "accuracy of the majority class 0.125"),
        ("uneven", "Balanced over the labels: train. The source’s label frequencies remain in validation and test."),
        ("uneven", "Fewer than 10 test examples of scipy (9), torch (3): their share of the intervals"),
        ("uneven", "33.3 %, source 95.0 %"),
        (
            "good",
            "Balanced over the labels: train, validation and test. Test scores are therefore those of equal label",
        ),
        ("single", "accuracy 0.540, full fine-tuning not run"),
        ("no-runs", "a predicted 31 % of full fine-tuning’s compute"),
        ("no-law", "The plan fell back: no law fits, so observed gains decide."),
        ("no-law", "No losses were traced"),
        ("no-runs", "No fine-tuned model has been evaluated yet"),
        ("no-runs", "No predictions have been written yet"),
        ("grid", "Train layers 21–30 of 30: no significant difference (± 4.0 points)"),
        ("grid", "These are the results of boundary 20: no method of this run follows the plan’s own, 21."),
        ("good", "dequantised from 4-bit GGUF weights"),
        ("good", "before the budget: 18"),
        ("good", "17 near-duplicate of another split"),
        ("good", "41 names the library itself"),
    ],
)
def test_each_outcome_is_put_in_words(pages: dict, name: str, words: str) -> None:
    text = html.unescape(pages[name][1]).replace("\u202f", " ").replace("\u2011", "-")
    assert words in text


def test_hostile_text_in_data_stays_text(pages: dict, hostile: str) -> None:
    text = pages["good"][1]
    page = Reader(text)
    assert page.tags["script"] == 0
    assert page.tags["img"] == 0
    assert hostile not in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("&lt;script&gt;") >= 3


CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := which(name))), "")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="measures in headless Chromium, which is not installed")
WIDTHS = """<script>
document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
document.title = JSON.stringify([document.documentElement, ...document.querySelectorAll(".table-box")].map(
  (box) => [box.querySelector("table").className, box.scrollWidth, box.clientWidth]));
</script>"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def shown(text: str, width: int, folder: Path) -> str:
    """The page's document after Chromium has run its scripts in a window of a width in pixels."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout


def test_every_table_lies_in_a_box_that_scrolls(pages: dict) -> None:
    text = pages["grid"][1]
    boxes = re.findall(r'<div class="table-box"[^>]*>\s*<table', text)
    assert len(boxes) == Reader(text).tags["table"]
    assert re.search(r"\.table-box \{ overflow-x: auto;", text)


@needs_chromium
def test_no_table_is_cut_in_a_window_of_1280_pixels(chain_of: Callable, tmp_path: Path) -> None:
    """With the study, a grid of boundaries, and words of 300 letters (matomo-org/matomo#6121)."""
    chain = chain_of(accuracy={"full": 0.55, "salf": 0.54, "lora": 0.57, "salf+lora": 0.525, **GRID}, half_width=20.0)
    meta_file, long = chain.root / "data/prepared/meta.json", "x" * 300
    meta = json.loads(meta_file.read_text())
    meta["labels"][0] |= {"label": long, "word": long}
    meta["source"]["path"] = f"/{long}/{long}"
    meta_file.write_text(json.dumps(meta))
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").assign(label=long, predicted=long, text=long)
    said.to_parquet(chain.root / "reports/predictions.parquet")
    reports = Path(__file__).parents[2] / "reports"
    main(chain.argv("--study", str(reports / "study")))
    text = POLICY.sub("", chain.page.read_text(encoding="utf-8")).replace("</body>", f"{WIDTHS}</body>")
    widths = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown(text, 1280, tmp_path))[1]))
    assert {name for name, _, _ in widths} > {"methods", "labels", "study-selectors", "examples-wrong"}
    assert [(name, wide, room) for name, wide, room in widths if wide > room] == []
    page, *_ = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown(text, 500, tmp_path))[1]))
    assert page[1] <= page[2], "a table scrolls in its box, never the whole page (vamseeachanta/digitalmodel#1625)"


@needs_chromium
def test_the_policy_lets_no_script_run(pages: dict, tmp_path: Path) -> None:
    text = pages["no-runs"][1].replace("</body>", "<script>document.title = 'foreign'</script></body>")
    assert len(POLICY.findall(text)) == 1
    assert "<title>foreign" not in shown(text, 1280, tmp_path)


@pytest.mark.slow
def test_the_same_artifacts_give_the_same_bytes(pages: dict) -> None:
    chain, text = pages["good"]
    main(chain.argv())
    assert chain.page.read_text(encoding="utf-8") == text


def test_the_summary_prints_the_answer_and_writes_nothing(
    chain_of: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_of()
    main(chain.argv("--summary"))
    said = " ".join(capsys.readouterr().out.replace("\u202f", " ").split())
    assert "Boundary 21 of 30: layers 1–21 frozen, layers 22–30 trained." in said
    assert "Layer 21 has the largest observed gain in deviation." in said
    assert "salf 0.540 0.533 0.527" in said
    assert "TF-IDF" in said
    assert "index.html" in said.replace(" ", "")
    assert not chain.page.exists()


def test_a_missing_plan_is_one_clear_line(chain_of: Callable) -> None:
    chain = chain_of(runs=False)
    (chain.root / "data/plan/freeze_plan.json").unlink()
    with pytest.raises(UserError, match="dvc repro plan"):
        main(chain.argv())
    assert not chain.page.exists()


def test_a_damaged_csv_is_one_clear_line(chain_of: Callable) -> None:
    chain = chain_of(runs=False)
    Path(chain.root / "reports/gains.csv").write_bytes(b'a,b\n"\xff\xfe,1\n')
    with pytest.raises(UserError, match=r"gains\.csv: damaged CSV"):
        main(chain.argv())


def test_what_no_other_tool_can_express_is_said(pages: dict) -> None:
    chain, text = pages["good"]
    plan = json.loads((chain.root / "data/plan/freeze_plan.json").read_text())
    assert plan["exports"]["notes"]
    assert all(note in html.unescape(text) for note in plan["exports"]["notes"])
