"""People's votes on the models of an evaluation: the page over HTTP, the folder, and the figures."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from charter.cli.main import app
from charter.evaluation.compare.folder import EvaluationFolder
from charter.feedback.labellers import Labellers
from charter.feedback.room import FeedbackConfig
from charter.state_files import FolderBusyError
from typer.testing import CliRunner

from tests.support.evaluated import PROMPTS, evaluated
from tests.support.feedback_page import TOKENS, constitution_of, served

# Nothing listens there: votes of an evaluation need no service.
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation of three models on eight prompts: `same` answers as `plain` does."""
    folder = tmp_path_factory.mktemp("evaluation")
    with evaluated(folder) as services:
        spec = services.spec(folder)
        third = f"  - {{name: same, address: '{services.addresses['plain']}'}}\nprompts:"
        spec.write_text(spec.read_text().replace("prompts:", third, 1))
        charter("evaluate", spec, "--folder", folder / "asked")
    return folder / "asked"


@pytest.fixture
def folder(asked: Path, tmp_path: Path) -> EvaluationFolder:
    """A copy for each test."""
    return EvaluationFolder(shutil.copytree(asked, tmp_path / "asked"))


def charter(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def config(folder: EvaluationFolder, **settings: Any) -> FeedbackConfig:
    chats = folder.path / "chats.jsonl"
    return FeedbackConfig(NOBODY, NOBODY, Labellers(TOKENS), chats, evaluation=folder, **settings)


class Person:
    """A browser of somebody who prefers by a rule."""

    def __init__(self, url: str, name: str, stack: ExitStack) -> None:
        self.client = stack.enter_context(httpx.Client(base_url=url))
        self.post("sign-in", token=TOKENS[name])

    def post(self, call: str, **body: object) -> Any:
        answer = self.client.post(f"/api/{call}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def next(self) -> Any:
        return self.post("next")["pair"]

    def vote(self, pair: Any, prefers: str, **more: str) -> Any:
        """For the answer that holds a word, or a tie for none."""
        choice = next((side for side in ("left", "right") if prefers and prefers in pair[side]), "tie")
        return self.post("labels", id=uuid4().hex, pair=pair["id"], choice=choice, **more)

    def vote_on_all(self, prefers: str) -> list[Any]:
        seen = []
        while (pair := self.next()) is not None:
            seen.append(pair)
            self.vote(pair, prefers)
        return seen


@contextmanager
def people(settings: FeedbackConfig, *names: str) -> Iterator[list[Person]]:
    with served(settings) as url, ExitStack() as stack:
        yield [Person(url, name, stack) for name in names]


def lines(folder: EvaluationFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.votes.read_text().split("\n")[:-1]]


def test_votes_are_one_more_judge_of_the_evaluation(folder: EvaluationFolder) -> None:
    assert "people" not in charter("evaluate", folder.path, "--figures")["judges"]
    with people(config(folder, second_share=1.0), "ann", "ben") as (ann, ben):
        session = ann.client.get("/api/session").json()
        assert (session["queue"], session["chat"]) == (True, False)
        # What `same` says is what `plain` says: one vote is on both.
        seen = ann.vote_on_all("wise")
        assert len(seen) == PROMPTS
        shown = json.dumps([{key: pair[key] for key in pair if key not in ("left", "right")} for pair in seen])
        assert not any(name in shown for name in ("wise", "plain", "same"))
        assert {"wise" in pair["left"] for pair in seen} == {True, False}
        for _ in range(PROMPTS - 2):
            ben.vote(ben.next(), "wise")
        ben.vote(ben.next(), "plain")
        ben.vote(ben.next(), "")
        assert ben.next() is None
        assert ann.client.get("/api/statistics").json()["labelled_twice"] == PROMPTS
    found = charter("evaluate", folder.path, "--figures")
    assert {"method": "votes", "votes": 2 * PROMPTS, "labellers": 2}.items() <= found["judges"]["people"].items()
    standings = {
        one["model"]: one for one in found["standings"] if (one["judge"], one["dimension"]) == ("people", "all")
    }
    # Of a pair on which two people differ half of it counts; that of a vote and a tie is three quarters.
    rate = standings["wise"]["win_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (PROMPTS - 1, 1, 0)
    assert rate["mean_probability"]["value"] == pytest.approx((PROMPTS - 2 + 0.5 + 0.75) / PROMPTS)
    assert standings["wise"]["rating"]["low"] > 0
    # Equal answers are ties without anybody having been asked.
    assert (standings["same"]["win_rate"]["ties"], standings["same"]["win_rate"]["wins"]) == (PROMPTS, 0)
    assert standings["same"]["rating"]["value"] == pytest.approx(0, abs=40)
    assert found["judgements_left_out"]["people"] == {"items": 2 * PROMPTS, "kinds": {}}
    agreed = {(one["judge"], one["other"]): one for one in found["agreements"] if one["dimension"] == "all"}
    assert set(agreed) == {("right", "people"), ("a person", "another person")}
    # On the pairs of `wise` with each of the two others; of one the mean of two people is a tie.
    with_judge = agreed["right", "people"]
    assert (with_judge["pairs"], with_judge["same"]["value"]) == (2 * PROMPTS, (PROMPTS - 1) / PROMPTS)
    # Two people have seen each text once, whoever else wrote it too.
    between = agreed["a person", "another person"]
    assert (between["pairs"], between["same"]["value"]) == (PROMPTS, (PROMPTS - 2) / PROMPTS)


def test_a_vote_sent_twice_or_taken_back_counts_once_or_not(folder: EvaluationFolder) -> None:
    with people(config(folder, second_share=0.0), "ann") as (ann,):
        first, label = ann.next(), {"id": "label-0001", "choice": "tie"}
        for _ in range(2):
            ann.post("labels", pair=first["id"], **label)
        done = ann.vote(ann.next(), "wise", reason="Wiser.", left_rating="up")
        ann.post("undo", comparison=done["comparison"])
        ann.vote(ann.next(), "plain")
    assert [one["preference"] != "" for one in lines(folder)] == [True, True, False, True]
    with folder.votes.open("a") as file:
        # What a page that is killed while it writes may leave.
        file.write('{"id": "feedb')
    with people(config(folder, second_share=0.0), "ann") as (ann,):
        assert ann.post("next")["progress"] == {"pairs": PROMPTS, "wanted": PROMPTS, "done": 2, "mine": 2}
        # It is sent again after the page was started again.
        ann.post("labels", pair=first["id"], **label)
        assert len(ann.vote_on_all("wise")) == PROMPTS - 2
    found = charter("evaluate", folder.path, "--figures")
    (wise,) = [
        one["win_rate"]
        for one in found["standings"]
        if (one["judge"], one["dimension"], one["model"]) == ("people", "all", "wise")
    ]
    assert (wise["wins"], wise["ties"], wise["losses"]) == (PROMPTS - 2, 1, 1)
    assert found["judges"]["people"]["votes"] == PROMPTS


def test_what_a_person_says_beside_the_choice_is_stored(folder: EvaluationFolder, tmp_path: Path) -> None:
    rules = Path(__file__).resolve().parents[3] / "examples" / "constitutions" / "general.yaml"
    constitution = constitution_of(rules)
    principle = constitution.principles[0].id
    with people(config(folder, constitution=constitution), "ann") as (ann,):
        pair = ann.next()
        ann.vote(pair, pair["left"], reason="Line\u2028break", principle=principle, right_rating="down")
    (vote,) = lines(folder)
    assert (vote["labeller"], vote["preference"], vote["reason"]) == ("ann", "left", "Line\u2028break")
    assert (vote["principle"], vote["constitution_digest"]) == (principle, constitution.digest)
    assert (vote["rating_left"], vote["rating_right"]) == ("", "down")
    assert {vote["model_left"], vote["model_right"]} <= {"wise", "plain", "same"}
    assert vote["dimension"] in ("helpful", "harmless")


def test_one_page_at_a_time_and_no_chats(folder: EvaluationFolder) -> None:
    with people(config(folder, most=2), "ann") as (ann,):
        with pytest.raises(FolderBusyError, match="another command"), served(config(folder)):
            pass
        refused = ann.client.post("/api/chat", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert "nobody writes new ones" in refused.text
        # Figures can be computed meanwhile.
        charter("evaluate", folder.path, "--figures")
        assert len(ann.vote_on_all("wise")) == 2
    with served(config(folder)):
        pass


def test_an_answer_that_was_asked_again_has_no_votes(folder: EvaluationFolder) -> None:
    with people(config(folder, second_share=0.0), "ann") as (ann,):
        ann.vote_on_all("wise")
    rows = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    changed = next(one for one in rows if one["model"] == "wise")
    changed["text"] = "Another answer."
    folder.answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = charter("evaluate", folder.path, "--figures")
    assert found["judgements_left_out"]["people"] == {"items": PROMPTS, "kinds": {"of_other_answers": 1}}
    with people(config(folder, second_share=0.0), "ann") as (ann,):
        (pair,) = ann.vote_on_all("")
        assert "Another answer." in (pair["left"], pair["right"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--evaluation", "nothing"], "no evaluation: "),
        (["--evaluation", "begun"], "holds no two different answers"),
        (["--evaluation", "begun", "--pairs", "x.jsonl"], "leave --pairs and --run out"),
        (["--count", "3"], "--count is for --evaluation"),
        (["--study", "nothing"], "no study: "),
        (["--study", "young"], "there are no pairs to compare in"),
        (["--study", "young", "--run", "r"], "leave --pairs and --run out"),
        (["--study", "young", "--evaluation", "begun"], "give --evaluation or --study, not both"),
    ],
)
def test_what_cannot_be_voted_on_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    begun = EvaluationFolder(tmp_path / "evaluations" / "begun")
    begun.path.mkdir(parents=True)
    begun.spec.write_text('{"name": "begun", "models": [{"name": "a"}, {"name": "b"}], "answers_per_prompt": 1}')
    (tmp_path / "studies" / "young").mkdir(parents=True)
    (tmp_path / "studies" / "young" / "spec.json").write_text('{"name": "young", "pairs": {"sampled": 4}}')
    result = CliRunner().invoke(app, ["feedback", "--labeller", "ann", "--preference", NOBODY, *arguments])
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
