"""The report: figures as they were given, parts that are missing, text that wants to be code."""

import json
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from charter.evaluation.report.report import duration, write_report
from charter.runs.folder import RunFolderError, read_run_folder
from charter.runs.results import write_result
from charter.spec.defaults import fill_defaults
from charter.spec.load import SpecFile
from charter.v1 import run_pb2
from google.protobuf import json_format

from tests.support.report_fixture import STEPS, made_up_evaluation, write_run_folder

SECTIONS = ["figures", "training", "preferences", "judge", "answers", "constitution", "time", "left-out", "spec"]
VOID = {"meta", "input", "br", "hr", "img", "link", "source", "use"}
ALL_FILES = [
    "spec.json",
    "run.json",
    "constitution.yaml",
    "events.jsonl",
    "judge_check.json",
    "preference_fit.json",
    "evaluation.json",
]


class Page(HTMLParser):
    """Tags, attributes and texts of a page; ``cells`` are the texts of the answers table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, str] = {}
        self.answers: list[str] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append((tag, attributes))
        if tag == "div" and attributes.get("class") == "text":
            self.answers.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop()[0]
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        for tag, attributes in self._open:
            if name := attributes.get("data-figure"):
                self.figures[name] = self.figures.get(name, "") + data
            if tag == "div" and attributes.get("class") == "text":
                self.answers[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its report; tests only read it."""
    folder = write_run_folder(tmp_path_factory.mktemp("complete") / "run")
    write_report(folder)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run_folder(tmp_path / "run")


def test_figures_are_those_of_the_run(complete: Path) -> None:
    page = Page((complete / "report.html").read_text())
    evaluation = json.loads((complete / "evaluation.json").read_text())
    judge = json.loads((complete / "judge_check.json").read_text())["calibration"]
    fit = json.loads((complete / "preference_fit.json").read_text())["held_out"]

    def shown(name: str) -> list[float]:
        return [float(number) / 100 for number in re.findall(r"([\d.]+)%", page.figures[name])]

    assert shown("win-rate") == [pytest.approx(evaluation["win_rate"], abs=6e-4)]
    bounds = [evaluation["win_rate_low"], evaluation["win_rate_high"]]
    assert shown("win-rate-interval") == pytest.approx(bounds, abs=6e-4)
    assert shown("mean-probability") == [pytest.approx(evaluation["mean_probability"], abs=6e-4)]
    assert [int(page.figures[name]) for name in ("wins", "ties", "losses")] == [
        evaluation["wins"],
        evaluation["ties"],
        evaluation["losses"],
    ]
    assert shown("judge-accuracy") == [pytest.approx(judge["accuracy"], abs=6e-4)]
    assert shown("fit-accuracy") == [pytest.approx(fit["accuracy"], abs=6e-4)]


def test_sections_come_in_order_and_every_row_is_there(complete: Path) -> None:
    page = Page((complete / "report.html").read_text())
    assert [section["id"] for section in page.all("section")] == SECTIONS
    rows = [attributes for attributes in page.all("tr") if "data-probability" in attributes]
    given = json.loads((complete / "evaluation.json").read_text())["rows"]
    assert [float(row["data-probability"] or "nan") for row in rows] == pytest.approx(
        [float("nan") if row["probability_after"] is None else row["probability_after"] for row in given], nan_ok=True
    )
    # A prompt, an answer before and one after, in full, whatever is collapsed.
    assert page.answers[: 3 * len(given)] == [row[part] for row in given for part in ("prompt", "before", "after")]


def test_what_went_into_the_fit_is_shown(complete: Path) -> None:
    fit = json.loads((complete / "preference_fit.json").read_text())
    html = " ".join((complete / "report.html").read_text().split())
    table = html[html.index("<caption>What went in") :].split("</table>")[0]
    for part in fit["mix"]:
        row = next(row for row in table.split("<tr>") if part["dimension"] in row)
        assert {"AI": "the judge", "HUMAN": "people"}[part["source"]] in row
        assert f">{part['train_pairs']}<" in row
        assert f">{part['held_out_pairs']}<" in row
    parts = html[html.index("Agreement with held-out labels, by part") :].split("</table>")[0]
    for name, figures in (
        ("labels of people", fit["by_source"]["HUMAN"]),
        ("harmless", fit["by_dimension"]["harmless"]),
    ):
        row = next(row for row in parts.split("<tr>") if name in row)
        assert f"{figures['brier']:.3f}" in row
        assert f"{figures['expected_calibration_error']:.3f}" in row
    assert "the linear probe, before any step, had the lowest held-out loss" in html
    for name in ("labels of people", "dimension harmless"):
        assert f"Calibration: {name}" in html


def test_answers_that_the_token_limit_ended_are_marked(run_folder: Path) -> None:
    evaluation = made_up_evaluation(np.random.default_rng(0))
    first, second, *others = evaluation.rows
    rows = (replace(first, after_cut_off=True), replace(second, before_cut_off=False, after_cut_off=False), *others)
    write_result(run_folder, "evaluation", replace(evaluation, rows=rows))
    html = page_of(run_folder).text
    assert html.count("Cut off here by the token limit") == 1
    assert f"{first.after.split()[-1]} Cut off here by the token limit" in html


def test_dimensions_add_up_to_the_whole(complete: Path) -> None:
    page = Page((complete / "report.html").read_text())
    rows = re.findall(
        r"(helpful|harmless|honest) ([\d.]+)% [\d.]+% to [\d.]+% (\d+) (\d+) (\d+) (\d+) (\d+)", page.text
    )
    assert len(rows) == 3
    evaluation = json.loads((complete / "evaluation.json").read_text())
    sums = np.array([[int(number) for number in row[2:]] for row in rows]).sum(axis=0)
    assert sums.tolist() == [len(evaluation["rows"]), evaluation["wins"], evaluation["ties"], evaluation["losses"], 1]
    points = sum(float(rate) / 100 * (int(prompts) - int(failed)) for _, rate, prompts, *_, failed in rows)
    assert points == pytest.approx(evaluation["wins"] + evaluation["ties"] / 2, abs=0.05)


def test_each_principle_says_what_it_decided(complete: Path) -> None:
    page = Page((complete / "report.html").read_text())
    rows = json.loads((complete / "evaluation.json").read_text())["rows"]
    for principle in ("helpful-answers-the-question", "harmless-no-means-to-harm", "helpful-plain-words"):
        judged = [row["probability_after"] for row in rows if principle in row["principles"]]
        judged = [probability for probability in judged if probability is not None]
        preferred = sum(probability > 0.5 for probability in judged)
        said = f"judged {len(judged)} held-out prompts, preferred the aligned answer on {preferred} "
        assert re.search(rf"{principle} \w+ weight \d {said}", page.text)


def test_phase_times_and_their_shares(complete: Path) -> None:
    page = Page((complete / "report.html").read_text())
    seconds = json.loads((complete / "run.json").read_text())["phase_seconds"]
    share = round(100 * seconds["PPO"] / sum(seconds.values()))
    assert f"fitting preference model 1 min 25 s 10% PPO 5 min 2 s {share}% evaluating" in page.text
    assert f"Time {duration(sum(seconds.values()))} in all phases" in page.text


def test_the_spec_is_shown_exactly_and_can_be_run_again(complete: Path, tmp_path: Path) -> None:
    html = (complete / "report.html").read_text()
    shown = unescape(re.findall(r'<pre class="spec"[^>]*>(.*?)</pre>', html, re.DOTALL)[0])
    parsed = json_format.ParseDict(yaml.safe_load(shown), run_pb2.RunSpec())
    assert not parsed.ppo.HasField("dpo_beta")  # It is not used.
    assert fill_defaults(parsed) == read_run_folder(complete).spec
    for name in ("train.jsonl", "held_out.jsonl", "constitution.yaml", "labelled_pairs.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "spec.yaml").write_text(shown)
    assert fill_defaults(SpecFile(tmp_path / "spec.yaml").spec).ppo == read_run_folder(complete).spec.ppo  # type: ignore[union-attr]


def test_nothing_is_loaded_from_anywhere(complete: Path) -> None:
    path = complete / "report.html"
    html = path.read_text()
    page = Page(html)
    loading = {"src", "srcset", "data", "poster", "action", "formaction", "background", "manifest", "ping"}
    for tag, attributes in page.tags:
        assert not loading & set(attributes), (tag, attributes)
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "image"}
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", html))
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert (policies[0] or "").startswith("default-src 'none'")
    assert path.stat().st_size < 3_000_000


def test_page_is_well_formed_and_ids_are_unique(complete: Path) -> None:
    html = (complete / "report.html").read_text()
    page = Page(html)
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    targets = re.findall(r'(?:url\(|href=")#([^)"]+)', html)
    assert set(targets) <= set(ids)
    # Placeholder colours of the drawings are all replaced.
    assert not re.findall(r"#0000[ab]\d", html)
    assert html.count("var(--series-1)") > 10


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></script><script>alert(2)</script>",
    "{{ 7 * 7 }} {% for x in y %} <!-- ",
    "javascript:alert(1) &lt;b&gt; &amp;",
    "\u202emoc.live\u202c \x07 tail",
]


def test_hostile_text_stays_text(run_folder: Path) -> None:
    evaluation = made_up_evaluation(np.random.default_rng(0))
    rows = tuple(
        replace(row, prompt=text, before=text * 2, after=text * 60, dimension=text, outcome=text, principles=(text,))
        for row, text in zip(evaluation.rows, HOSTILE * 8, strict=True)
    )
    write_result(run_folder, "evaluation", replace(evaluation, rows=rows, failures={HOSTILE[0]: 1}))
    constitution = yaml.safe_load((run_folder / "constitution.yaml").read_text())
    for principle in constitution["principles"]:
        principle |= dict.fromkeys(("id", "dimension", "compare", "follow"), HOSTILE[1])
    (run_folder / "constitution.yaml").write_text(yaml.safe_dump(constitution))
    info = json.loads((run_folder / "run.json").read_text())
    info["versions"] = {HOSTILE[0]: HOSTILE[1]}
    info["counts"] = {HOSTILE[2]: 1}
    info["phase_seconds"] = {HOSTILE[1]: 2.0}
    (run_folder / "run.json").write_text(json.dumps(info))
    spec = json.loads((run_folder / "spec.json").read_text())
    spec["name"] = spec["policy"]["model"] = spec["judge"]["model"] = HOSTILE[2]
    (run_folder / "spec.json").write_text(json.dumps(spec))

    page = page_of(run_folder)
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.answers[:3] == [HOSTILE[0], HOSTILE[0] * 2, HOSTILE[0] * 60]
    assert page.answers[9] == "{{ 7 * 7 }} {% for x in y %} <!-- "


@pytest.mark.parametrize("missing", ALL_FILES)
def test_a_missing_file_is_named_and_the_rest_is_there(run_folder: Path, missing: str) -> None:
    (run_folder / missing).unlink()
    page = page_of(run_folder)
    assert f"Missing: {missing}" in page.text
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert ("win-rate" in page.figures) == (missing != "evaluation.json")


@pytest.mark.parametrize("only", ["spec.json", "run.json"])
def test_a_run_that_wrote_almost_nothing(run_folder: Path, only: str) -> None:
    for name in ALL_FILES:
        if name != only:
            (run_folder / name).unlink()
    page = page_of(run_folder)
    assert "No verdict" in page.text
    assert "It reported no progress." in page.text
    for name in ALL_FILES:
        assert (f"Missing: {name}" in page.text) == (name != only)


def test_an_unfinished_run_says_where_it_stopped(run_folder: Path) -> None:
    (run_folder / "evaluation.json").unlink()
    assert f"The last it reported was PPO, {STEPS} of {STEPS}." in page_of(run_folder).text


@pytest.mark.parametrize(("weak", "boxes"), [(True, 2), (False, 0)])
def test_a_weak_judge_gets_a_warning(tmp_path: Path, weak: bool, boxes: int) -> None:
    page = page_of(write_run_folder(tmp_path / "run", weak_judge=weak))
    assert len([box for box in page.all("div") if box.get("class") == "callout warning"]) == boxes
    assert ("A weak judge preferred" in page.text) == weak


def test_a_spec_without_labelled_pairs_is_said_to_have_none(run_folder: Path) -> None:
    spec = json.loads((run_folder / "spec.json").read_text())
    del spec["judge"]["labelled_pairs"]
    (run_folder / "spec.json").write_text(json.dumps(spec))
    (run_folder / "judge_check.json").unlink()
    page = page_of(run_folder)
    assert "The spec names no labelled pairs" in page.text
    assert "Missing: judge_check.json" not in page.text


@pytest.mark.parametrize("where", ["spec", "versions"])
def test_a_fake_engine_gives_no_verdict(run_folder: Path, where: str) -> None:
    name, field, value = {"spec": ("spec", "judge", "engine"), "versions": ("run", "versions", "judge engine")}[where]
    file = run_folder / f"{name}.json"
    content = json.loads(file.read_text())
    content[field][value] = "fake"
    file.write_text(json.dumps(content))
    page = page_of(run_folder)
    assert "No verdict: a fake engine took part" in page.text
    assert "preferred the aligned policy on" not in page.text


def test_a_dimension_whose_judgements_all_failed_has_no_rate(run_folder: Path) -> None:
    evaluation = made_up_evaluation(np.random.default_rng(0))
    rows = tuple(
        replace(row, probability_after=None, outcome="UNAVAILABLE") if row.dimension == "honest" else row
        for row in evaluation.rows
    )
    write_result(run_folder, "evaluation", replace(evaluation, rows=rows))
    assert "honest none 8 0 0 0 8" in page_of(run_folder).text


def test_unreadable_progress_lines_are_counted(run_folder: Path) -> None:
    events = run_folder / "events.jsonl"
    lines = events.read_text().splitlines()
    lines[2] = lines[2][:20]
    events.write_text("\n".join([*lines, '{"sequence": "99", "phase"']))
    page = page_of(run_folder)
    assert f"events.jsonl: 2 unreadable, left out: line 3, {len(lines) + 1}" in page.text


def test_sources_of_prompts_are_shown_with_their_shares(run_folder: Path) -> None:
    assert "train.jsonl 320 70.0% generated.jsonl 80 30.0%" in page_of(run_folder).text


def test_a_step_that_ran_again_counts_once(run_folder: Path) -> None:
    events = run_folder / "events.jsonl"
    last = json_format.Parse(events.read_text().splitlines()[-1], run_pb2.RunEvent())
    again = run_pb2.RunEvent(sequence=last.sequence + 1, phase=run_pb2.PHASE_PPO, step=5)
    again.metrics["kl_k1"] = 123.0
    with events.open("a") as file:
        file.write(json_format.MessageToJson(again, indent=None) + "\n")
    steps = read_run_folder(run_folder).ppo_steps
    assert list(steps) == list(range(1, STEPS + 1))
    assert steps[5] == {"kl_k1": 123.0}
    assert "Training by PPO" in page_of(run_folder).text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evaluation.json", '{"win_rate": "high"}', "win_rate"),
        ("judge_check.json", "{", "Invalid JSON"),
        ("spec.json", '{"nmae": "x"}', "nmae"),
        ("constitution.yaml", "principles: [", "flow"),
        ("constitution.yaml", "just text", "mapping"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(run_folder: Path, name: str, content: str, words: str) -> None:
    (run_folder / name).write_text(content)
    with pytest.raises(RunFolderError, match=words) as caught:
        write_report(run_folder)
    assert name in str(caught.value)
    assert not (run_folder / "report.html").exists()


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"neither spec\.json nor run\.json"):
        write_report(tmp_path)


def test_a_large_run_stays_small(tmp_path: Path) -> None:
    assert write_report(write_run_folder(tmp_path / "run", prompts=500)).stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (7380, "2 h 3 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
