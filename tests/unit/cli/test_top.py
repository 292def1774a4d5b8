"""What `charter top` makes of metrics pages: rates need two readings, and what nobody exports is no number."""

import http.server
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from charter.cli.main import app
from charter.cli.output import console
from charter.cli.runs.readings import Reading, summary
from charter.cli.runs.top import _run, earlier, sparkline
from charter.cli.services import DEFAULTS, SERVICES, Endpoint
from typer.testing import CliRunner

from tests.support.ports import free_ports


def reading(time: float, **pages: dict[str, float]) -> Reading:
    return Reading(time, {page: {name: [({}, value)] for name, value in one.items()} for page, one in pages.items()})


def test_rates_are_differences_per_second() -> None:
    counter = "charter_policy_generated_tokens_total"
    shown = summary(reading(10.0, policy={counter: 100.0}), reading(14.0, policy={counter: 300.0}))
    assert shown["per_second"]["sampled_tokens"] == 50.0
    assert shown["per_second"]["scores"] is None


def test_live_rates_cover_half_a_minute_of_bursts() -> None:
    kept = deque([reading(0.0)])
    compared = [earlier(kept, reading(float(now))).time for now in (2, 29, 31, 40, 100)]
    assert compared == [0.0, 0.0, 0.0, 2.0, 40.0]


def test_a_restarted_service_has_no_rate_yet() -> None:
    counter = "charter_policy_generated_tokens_total"
    shown = summary(reading(10.0, policy={counter: 100.0}), reading(14.0, policy={counter: 3.0}))
    assert shown["per_second"]["sampled_tokens"] is None


def test_a_gauge_without_a_value_is_none_and_not_zero() -> None:
    shown = summary(reading(0.0), reading(1.0, worker={"charter_ppo_kl_k1": 0.5}))
    assert shown["run"]["kl"] == 0.5
    assert shown["run"]["reward"] is None
    assert summary(reading(0.0), reading(1.0))["run"] is None


def test_the_step_is_that_of_the_run_and_not_of_a_worker_that_resumed_it() -> None:
    worker = {
        "charter_worker_run_info": [({"run": "tides-1", "model": "m"}, 1.0)],
        "charter_worker_steps_total": [({"run": "tides-1"}, 2.0)],
    }
    trainer = {"charter_run_step": [({"run": "tides-1"}, 42.0), ({"run": "another"}, 7.0)]}
    shown = summary(reading(0.0), Reading(1.0, {"worker": worker, "trainer": trainer}))
    assert shown["run"]["step"] == 42.0


def test_a_stage_before_rl_has_its_losses_while_it_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    def at(phase: str) -> Reading:
        labels = {"run": "tides-1", "stage": "SUPERVISED"}
        worker = {
            "charter_worker_run_info": [({"run": "tides-1", "model": "m"}, 1.0)],
            "charter_worker_phase": [({"phase": phase, "run": "tides-1"}, 1.0)],
            "charter_learning_step": [({**labels, "stage": "PRETRAINING"}, 90.0), (labels, 3.0)],
            "charter_learning_train_loss": [({**labels, "stage": "PRETRAINING"}, 9.0), (labels, 2.5)],
            "charter_learning_held_out_loss": [(labels, 2.25)],
            "charter_learning_learning_rate": [(labels, 2e-5)],
        }
        return Reading(1.0, {"worker": worker})

    run = summary(reading(0.0), at("SUPERVISED"))["run"]
    assert run["learning"] == {
        "step": 3.0,
        "loss": 2.5,
        "held_out_loss": 2.25,
        "learning_rate": 2e-5,
        "tokens_per_second": None,
        "step_seconds": None,
    }
    console.print(_run(run, [3.0, 2.5]))
    shown = capsys.readouterr().out
    for words in ("supervised fine-tuning", "2.500 nats  █▁", "2.250 nats", "2.00e-05"):
        assert words in shown
    assert "KL" not in shown
    assert summary(reading(0.0), at("PPO"))["run"]["learning"] is None


def test_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 7.0, 3.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


PAGE = """\
# TYPE charter_serving gauge
charter_serving{service="judge"} 1.0
# TYPE charter_worker_run_info gauge
charter_worker_run_info{model="m",name="tides",run="tides-1"} 1.0
# TYPE charter_worker_phase gauge
charter_worker_phase{phase="JUDGING",run="tides-1"} 0.0
charter_worker_phase{phase="PPO",run="tides-1"} 1.0
# TYPE charter_ppo_reward_mean gauge
charter_ppo_reward_mean{run="tides-1"} 0.25
"""


@contextmanager
def served(text: str) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_one_reading_of_a_run_with_a_service_away(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path))
    for name, there in zip(SERVICES, free_ports(len(SERVICES)), strict=True):
        # Not the usual ports: services of this machine may listen there.
        monkeypatch.setitem(DEFAULTS, name, Endpoint("127.0.0.1:1", "", f"127.0.0.1:{there}"))
    with served(PAGE) as port:
        monkeypatch.setenv("CHARTER_WORKER_METRICS_PORT", str(port))
        result = CliRunner().invoke(app, ["top", "--json", "--interval", "0.2"])
        text = CliRunner().invoke(app, ["top", "--once", "--interval", "0.2"])
    shown = json.loads(result.stdout)
    assert result.exit_code == 1
    assert set(shown["services"]) == set(SERVICES)
    assert (shown["run"]["id"], shown["run"]["phase"], shown["run"]["reward"]) == ("tides-1", "PPO", 0.25)
    assert shown["run"]["kl"] is None
    assert "+0.250" in text.stdout
    assert "tides-1" in text.stdout
