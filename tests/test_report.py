"""Reports: what they must say, that no name becomes markup, and that equal input gives equal bytes."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from junitparser import JUnitXml
from parity_reports import HOSTILE, a_report
from report_readers import Page, iter_cases

from lfm2_export import extras, recipes
from lfm2_export.bench.report import BenchReport
from lfm2_export.cli.main import run
from lfm2_export.errors import MissingDependencyError, UsageError
from lfm2_export.parity.report import ParityReport
from lfm2_export.parity.reproduce import commands
from lfm2_export.report import junit, outputs, page, reading
from lfm2_export.report.compare import compare


@pytest.fixture(scope="module")
def html() -> str:
    return page.parity_html(a_report())


def test_the_verdict_comes_first_and_names_the_gate_that_failed(html):
    text = " ".join(Page(html).text.partition("Gates")[0].split())
    assert "NOT proven" in text
    assert "1 of 3 gates failed; the first: my-lfm2, quality: mean KLD is 0.5, the limit is 0.02" in text


def test_everything_measured_is_on_the_page(html):
    text = " ".join(Page(html).text.split())
    for expected in (
        "because my-lfm2",  # why a gate was skipped
        "my-lfm2 is not installed",  # why a runtime was
        "512 decode steps, of 2,000 asked: the window holds 512 tokens",
        "400 teacher-forced tokens",
        "aten.arange × 1",
        "1.23 MB",
        "echo my-lfm2",
        "Speed was not measured",
    ):
        assert expected in text
    assert html.count('class="chart" role="img"') == html.count("<svg ") == 4


def test_the_page_asks_for_nothing_and_runs_nothing(html):
    seen = Page(html)
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & set(seen.tags)
    for name, value in seen.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert str(value).startswith(("#", "data:"))
    assert not re.search(r"url\((?!['\"]?#)|@import", html)


@pytest.mark.parametrize("suffix", [".html", ".md", ".xml"])
def test_hostile_names_stay_text(suffix, tmp_path):
    path = tmp_path / f"report{suffix}"
    outputs.write(a_report(HOSTILE), [path])
    text = path.read_text()
    if suffix == ".html":
        assert "script" not in Page(text).tags
        assert "alert('x')" in Page(text).text
    elif suffix == ".md":
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + 3 + 1
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6}
        assert "<script" not in text.partition("```")[0]
        assert "[a](" not in text.partition("```")[0]
    else:
        assert "alert('x')" in ET.fromstring(text).find("testsuite").get("name")


def test_equal_input_gives_equal_bytes(html):
    assert page.parity_html(a_report()) == html
    assert junit.parity_junit(a_report()) == junit.parity_junit(a_report())


def test_junit_counts_failed_and_skipped_gates_with_their_reasons():
    document = JUnitXml.fromstring(junit.parity_junit(a_report()))
    assert (document.tests, document.failures, document.skipped) == (4, 1, 2)
    results = {
        case.name: [(type(result).__name__, result.message) for result in case.result] for case in iter_cases(document)
    }
    assert results["quality: mean KLD"] == [("Failure", "measured 0.5, the limit is 0.02")]
    assert results["law: my-lfm2"] == [("Skipped", "because my-lfm2")]
    assert results["runtime"] == [("Skipped", "my-lfm2 is not installed")]


def test_a_report_survives_json(tmp_path):
    outputs.write(a_report(), [tmp_path / "report.json"])
    again = ParityReport.model_validate_json((tmp_path / "report.json").read_bytes())
    assert again == a_report()


def test_measured_speed_is_shown(tmp_path):
    spread = {"median": 100.0, "min": 90.0, "max": 110.0, "n": 3}
    speed = {"tokens": 128, "status": "measured", "tokens_per_second": spread}
    contender = {
        "name": HOSTILE,
        "kind": "artifact",
        "runtime": "executorch",
        "random_weights": False,
        "window": 512,
        "size_bytes": 1,
        "decode": [speed],
        "prefill": [{"tokens": 4096, "status": "window"}],
        **dict.fromkeys(("load_seconds", "baseline_rss_bytes", "peak_rss_bytes"), spread),
    }
    document = {
        "machine": {"processor": "a processor"},
        "versions": {},
        "threads": 2,
        "rounds": 3,
        "steps": 8,
        "bandwidth_bytes_per_second": spread,
        "contenders": [contender],
    }
    (tmp_path / "bench.json").write_text(json.dumps(document))
    bench = reading.read_bench(tmp_path / "bench.json")
    assert isinstance(bench, BenchReport)
    quick = a_report()
    quick.runtimes[0].details = None  # no charts to draw
    text = " ".join(Page(page.parity_html(quick, bench)).text.split())
    assert "decode 128 100 90 to 110" in text
    assert "past the window" in text
    assert "a processor, 2 threads" in text
    assert 'class="chart" role="img" aria-label="Decode speed by context"' in page.parity_html(quick, bench)
    assert "Prefill speed by prompt" not in page.parity_html(quick, bench)  # nothing of it was measured
    assert "decode 100 tok/s at 128" in page.parity_markdown(a_report(), bench)
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(UsageError, match=r"not a report of `lfm2-export bench"):
        reading.read_bench(tmp_path / "bench.json")


def test_a_bad_name_or_a_missing_library_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"ends in \.json, \.md, \.html, \.xml"):
        outputs.check([tmp_path / "report.pdf"], force=False)
    (tmp_path / "report.md").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        outputs.check([tmp_path / "report.md"], force=False)
    with pytest.raises(UsageError, match="will not replace it"):
        outputs.check([tmp_path / "report.md"], force=True)
    assert (tmp_path / "report.md").read_text() == "precious"
    (tmp_path / "report.md").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for name, library in (("report.html", "matplotlib"), ("report.xml", "junitparser")):
        with pytest.raises(MissingDependencyError, match=rf"needs {library}, .* pip install 'lfm2-export\[report\]'"):
            outputs.check([tmp_path / name], force=False)


def test_the_commands_to_reproduce_spell_out_every_changed_setting():
    import shlex

    from checkpoints import tiny_config
    from eager_artifacts import artifact_of

    made = recipes.load("onnx-int4", ["window=96", "gates.quality.mean_kld=0.25"]).model_dump(mode="json")
    manifest = artifact_of(tiny_config(), recipe=made, versions={"torch": "2.13.0+cpu"}).manifest
    lines = commands(manifest)
    assert lines[0] == "pip install torch==2.13.0"
    given = shlex.split(lines[1])
    overrides = [given[at + 1] for at, word in enumerate(given) if word == "--set"]
    assert recipes.load("onnx-int4", overrides).model_dump(mode="json") == made
    assert "--checkpoint ./tiny" in lines[2]
    own = manifest.model_copy(update={"recipe": {**made, "name": "mine"}})
    assert shlex.split(commands(own)[1])[2] == json.dumps(own.recipe)


def test_two_reports_side_by_side(tmp_path, capsys):
    left, right = tmp_path / "left.json", tmp_path / "right.json"
    other = a_report()
    other.runtimes[0].gates[1].value = 0.75
    other.settings = {**other.settings, "window": 99}
    other.versions = {"torch": "2.12.0"}
    outputs.write(a_report(), [left])
    outputs.write(other, [right])
    found = compare(left, right)
    assert (found.left, found.right) == ("left.json", "right.json")
    rows = {(row.section, row.name): (row.left, row.right) for row in found.rows if row.differs}
    assert rows == {
        ("gates", "my-lfm2: quality: mean KLD"): ("0.5 (fail, limit 0.02)", "0.75 (fail, limit 0.02)"),
        ("versions", "torch"): ("2.13.0", "2.12.0"),
        ("versions", "my-lfm2"): ("my-lfm2", None),
        ("recipe", "window"): (None, "99"),
    }
    written = [tmp_path / f"both{suffix}" for suffix in page.COMPARISONS]
    options = [part for path in written for part in ("--report", str(path))]
    with pytest.raises(SystemExit) as left_with:
        run(["compare", str(left), str(right), *options])
    assert not left_with.value.code
    assert "2.12.0" in capsys.readouterr().out
    for path in written:
        assert "0.75 (fail, limit 0.02)" in path.read_text()
    assert "| **versions** | | |" in written[1].read_text()


def test_comparing_what_is_no_report_is_misuse(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1}')
    with pytest.raises(UsageError, match="neither an artifact folder nor a JSON report"):
        compare(tmp_path / "a.json", tmp_path / "a.json")
    with pytest.raises(UsageError, match="no such file"):
        compare(tmp_path / "b.json", tmp_path / "a.json")
