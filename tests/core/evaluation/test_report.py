"""A report is one file that opens offline, holds every figure and trusts no text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from core.evaluation import report
from core.evaluation.bootstrap import compare, measure
from core.evaluation.calibration import Calibration
from core.evaluation.metrics import auc_roc, average_precision, detection
from core.evaluation.plots import POINTS, detection_plots, reliability_curves, roc, training_curves
from core.evaluation.report import (
    Plot,
    Record,
    Table,
    Text,
    comparisons_table,
    figures_table,
    html,
    record,
    write_report,
)
from core.evaluation.scored import Scored
from core.evaluation.thresholds import by_budget

VOID = {"meta", "br", "wbr", "path", "use"}


class Page(HTMLParser):
    """Collects text, attributes and whether every element that opens also closes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def scored():
    random = np.random.default_rng(0)
    label = (random.random(20_000) < 0.01).astype(int)
    logit = random.normal(size=20_000) - 2 + 3 * label
    keys = {"group": random.integers(0, 900, 20_000), "day": np.arange(20_000) // 2900}
    fitted = Calibration.platt(logit, label)
    return Scored(Calibration().apply(logit), label, **keys), Scored(fitted.apply(logit), label, **keys)


@pytest.fixture(scope="module")
def sections(scored):
    before, after = scored
    history = {"training": (range(500), list(np.linspace(1, 0.1, 500))), "validation": ([0, 499], [0.9, 0.2])}
    ranking = {"auc_roc": auc_roc, "average_precision": average_precision}
    return [
        Text("Summary", "First paragraph.\n\nSecond <b>paragraph</b> & more."),
        figures_table(measure(after, detection(), draws=20)),
        comparisons_table(compare(after, before, ranking, draws=20), title="Against uncalibrated"),
        Table(
            "Thresholds", ("rule", "threshold"), [("100 alerts a day", 0.123456), ("<script>alert(1)</script>", None)]
        ),
        *detection_plots(after, uncalibrated=before, history=history, chosen=by_budget(after, 100.0)),
        Record(
            "Configuration", {"model": {"hidden": 64, "heads": [1, 2]}, "name": "<i>x</i>", "none": None, "empty": {}}
        ),
        Record("Data", {"sources": [{"name": "a.parquet", "rows": 7}], "nan": float("nan"), "rows": np.int64(3)}),
    ]


def test_the_page_is_whole_and_asks_for_nothing_outside(sections, tmp_path):
    write_report(tmp_path / "report.html", sections, title="fraud & <friends>", subtitle="recipe debug")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert "://" not in text
    assert "@import" not in text
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert name != "src"
        assert name not in ("href", "xlink:href") or value.startswith("#")
        assert "url(" not in (value or "") or "url(#" in value
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert len(text) < 400_000


def test_every_figure_stands_in_the_page(sections, scored):
    text = "".join(Page(html(sections, title="t")).text)
    for name, figure in measure(scored[1], detection(), draws=20).items():
        assert name in text
        assert f"{figure.value:.4f}" in text
        assert f"{figure.low:.4f} to {figure.high:.4f}" in text
    assert "20,000" in text
    for expected in ("0.1235", "model.hidden", "1, 2", "sources.0.rows", "First paragraph.", "Against uncalibrated"):
        assert expected in text


def test_text_is_escaped(sections):
    page = html([*sections, Text("<u>", "x"), training_curves({"<s>": ([0, 1], [1, 0])}, title="$a<b$")], title="<h6>&")
    assert not {"b", "i", "u", "s", "h6", "script"} & set(Page(page).tags)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_plots_take_the_colours_of_the_page_and_clash_in_no_name(sections):
    plots = [section for section in sections if isinstance(section, Plot)]
    titles = ["ROC", "Precision and recall", "Threshold", "Scores", "Reliability", "Training"]
    assert [plot.title for plot in plots] == titles
    page = html(sections, title="t")
    assert page.count("<svg") == len(titles)
    assert page.count('class="plots"') == 1
    drawn = " ".join(plot.svg for plot in plots)
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}, "a colour that dark mode would not change"
    assert "var(--series-1)" in drawn
    identities = re.findall(r'\bid="([^"]+)"', drawn)
    assert len(identities) == len(set(identities))
    assert {name for name in re.findall(r"url\(#([^)]+)\)", drawn)} <= set(identities)
    assert set(re.findall(r'href="#([^"]+)"', drawn)) <= set(identities)


def test_a_plot_of_many_rows_stays_small_and_keeps_its_ends(scored):
    plot = roc({"test": scored[1]})
    for values in plot.series[f"test (AUC {auc_roc(scored[1]):.3f})"].values():
        assert len(values) <= POINTS
    recall = next(iter(plot.series.values()))["recall"]
    assert recall[-1] == 1.0
    assert recall[0] <= 2 / scored[1].positives


def test_the_same_report_is_the_same_bytes(scored):
    first, second = (reliability_curves({"before": scored[0], "after": scored[1]}) for _ in range(2))
    assert first.svg == second.svg


def test_one_class_and_few_rows_still_make_a_page():
    rows = Scored([0.1, 0.2, 0.2], [0, 0, 0], group=[1, 2, 3], day=[0, 0, 1])
    plots = detection_plots(rows, chosen=by_budget(rows, 1.0))
    assert html(plots, title="t").count("<svg") == 5


def test_the_record_is_json_without_drawings(sections):
    content = json.loads(json.dumps(record(sections, title="t", subtitle="s"), allow_nan=False))
    assert [section["kind"] for section in content["sections"][:4]] == ["text", "table", "table", "table"]
    assert "svg" not in json.dumps(content)
    assert content["sections"][-1]["values"] == {"sources": [{"name": "a.parquet", "rows": 7}], "nan": None, "rows": 3}
    curve = next(section for section in content["sections"] if section["title"] == "Precision and recall")
    assert all(len(line["recall"]) == len(line["precision"]) for line in curve["series"].values())


def test_a_write_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, [Text("a", "old")], title="t")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, [Text("a", "new")], title="t")
    assert "old" in path.read_text()
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
