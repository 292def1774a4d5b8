"""The page of a run's samples: what is in it, whatever the texts are."""

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from charter.evaluation.report.report import write_report
from charter.evaluation.report.samples_page import render_samples_page
from charter.runs.samples import Sample

HOSTILE = '</script><script>window.broken = 1</script> & <b>"é'


def sample(id_: str, **values: Any) -> Sample:
    prompt = [{"role": "user", "content": HOSTILE}]
    return replace(Sample(id_, prompt, "kind", HOSTILE, 3, True, 0.5, 1, 1, ""), **values)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/octet-stream" id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


def test_answers_to_one_prompt_stand_together_and_no_text_is_markup() -> None:
    answers = [
        sample(
            "1.0", group=0, pieces=["</", "script>", "</s>"], log_ratios=[0.1, -0.2, 0.0], advantages=[1.0, 1.0, 1.0]
        ),
        sample("1.1", group=0, score=None, failure="too_long: it is", pieces=["a", "b", "c"]),
        sample("1.2", group=1, random=True, extreme=False, ended=False),
        sample("2.0", group=1),
    ]
    page = render_samples_page(answers, "<b>run", 2)
    assert page.count("<script") == 2
    assert "window.broken" not in page
    assert "&lt;b&gt;run" in page
    listed = data_of(page)
    assert [[one["id"] for one in group["answers"]] for group in listed["groups"]] == [["1.0", "1.1"], ["1.2"], ["2.0"]]
    first, failed = listed["groups"][0]["answers"]
    assert first["text"] == HOSTILE
    assert first["figures"] == {"log_ratios": [0.1, -0.2, 0.0], "advantages": [1.0, 1.0, 1.0]}
    assert (failed["end"], failed["score"], failed["figures"]) == ("failed", None, {})
    assert [one["end"] for group in listed["groups"] for one in group["answers"]] == ["eos", "failed", "cut", "eos"]
    # No critic, no colouring by value.
    assert [one["name"] for one in listed["colourings"]] == ["log_ratios", "advantages"]


def test_scales_hold_nearly_all_figures_and_values_are_around_their_median() -> None:
    ratios = [0.01 * place for place in range(100)]
    page = render_samples_page(
        [sample("1.0", pieces=["a"] * 101, log_ratios=[*ratios, 50.0], values=[3.0] * 100 + [4.0])], "run", 1
    )
    scales = {one["name"]: one["scale"] for one in data_of(page)["colourings"]}
    assert scales["log_ratios"] == [-0.98, 0.0, 0.98]
    assert scales["values"] == [2.0, 3.0, 4.0]


def test_answers_of_earlier_versions_are_shown_without_colours() -> None:
    page = render_samples_page([sample("1.0"), sample("1.1")], "run", 4)
    listed = data_of(page)
    assert listed["colourings"] == []
    assert len(listed["groups"]) == 2
    assert "2 were kept without tokens" in page


def test_the_report_links_the_page_or_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"id": "tea-1"}')
    assert "token by token" not in write_report(tmp_path).read_text()
    (tmp_path / "samples.jsonl").write_text("")
    assert "<code>charter samples tea-1 --html</code>" in write_report(tmp_path).read_text()
    (tmp_path / "samples.html").write_text("")
    assert '<a href="samples.html">' in write_report(tmp_path).read_text()
