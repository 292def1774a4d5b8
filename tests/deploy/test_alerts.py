"""Each alert fires on what it is for and on nothing near it, by promtool's unit tests; each has its runbook."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.dashboards import BOARDS
from tests.deploy.manifests import ROOT

RULES = ROOT / "deploy" / "monitoring" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks.md"

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)"
)


@dataclass(frozen=True)
class Case:
    """Series in promtool's notation, a value a minute, and whether the alert fires after ``minutes``."""

    alert: str
    why: str
    fires: bool
    minutes: int
    series: dict[str, str]


RUN = 'run="r1"'
JUDGED = "charter_judge_judgements_total"
GENERATE = 'grpc_service="charter.v1.PolicyService",grpc_method="Generate",instance="p1"'
SENT = f"charter_ppo_weight_version{{{RUN}}}"
SERVED = 'charter_weight_version{service="policy",instance="p1"}'
HEARD = f"charter_run_last_heard_timestamp_seconds{{{RUN}}}"
PPO_PHASE = f'charter_worker_phase{{{RUN},phase="PPO"}}'
SAVED = f"charter_worker_checkpoint_timestamp_seconds{{{RUN}}}"


def outcomes(good: int, bad: int) -> dict[str, str]:
    """Counters of the judge that grow by so many judgements a minute."""
    return {
        f'{JUDGED}{{method="choice",outcome="preferred_a"}}': f"0+{good}x200",
        f'{JUDGED}{{method="choice",outcome="invalid"}}': f"0+{bad}x200",
    }


def calls(all_of_them: str, failed: str) -> dict[str, str]:
    """Counters of one method: calls that ended, and those among them that failed by the service's own fault."""
    return {
        f'grpc_server_handled_total{{{GENERATE},grpc_code="OK"}}': all_of_them,
        f"charter_calls_failed_total{{{GENERATE}}}": failed,
    }


def reward(values: str, spread: str = "0.5x200", model: int = 1) -> dict[str, str]:
    """Mean reward and spread of the scores of a run, by a preference model."""
    labels = f'{RUN},preference_version="{model}"'
    return {f"charter_ppo_reward_mean{{{labels}}}": values, f"charter_ppo_score_std{{{labels}}}": spread}


def biased(share: float) -> dict[str, str]:
    """Judgements in both orders, and those in which a position won twice."""
    return {"charter_judge_ordered_total": "0+100x200", "charter_judge_position_biased_total": f"0+{100 * share:g}x200"}


def entropy(mean: float) -> dict[str, str]:
    """Labels of this mean entropy."""
    name = "charter_judge_label_entropy_nats"
    return {f"{name}_count": "0+100x200", f"{name}_sum": f"0+{100 * mean:g}x200"}


def kl(value: float, target: float | None = None) -> dict[str, str]:
    """KL of a run, and its target."""
    series = {f"charter_ppo_kl_k1{{{RUN}}}": f"{value}x60"}
    return series if target is None else series | {f"charter_ppo_kl_target{{{RUN}}}": f"{target}x60"}


CASES = (
    Case("CharterRewardCollapse", "from 1 to -1", True, 100, reward("1x60 -1x100")),
    Case("CharterRewardCollapse", "from 1 to 0.4, within the scores' spread", False, 100, reward("1x60 0.4x100")),
    Case(
        "CharterRewardCollapse",
        "a refreshed preference model has another scale",
        False,
        100,
        reward("1x60 stale", "0.5x60 stale") | reward("_x60 -1x100", "_x60 0.5x100", model=2),
    ),
    Case("CharterRewardCollapse", "it rises", False, 100, reward("-3+0.05x200")),
    Case("CharterRewardCollapse", "one bad step", False, 100, reward("1x60 -1x2 1x100")),
    Case("CharterKlAboveLimit", "more than three times its target", True, 30, kl(20, target=6)),
    Case("CharterKlAboveLimit", "twice its target", False, 30, kl(12, target=6)),
    Case("CharterKlAboveLimit", "60 nats without a target", True, 30, kl(60)),
    Case("CharterKlAboveLimit", "40 nats without a target", False, 30, kl(40)),
    Case("CharterKlAboveLimit", "60 nats, and a target of 30", False, 30, kl(60, target=30)),
    Case("CharterLogprobMismatch", "0.2 nats", True, 10, {f"charter_ppo_probe_mismatch_mean{{{RUN}}}": "0.2x60"}),
    Case("CharterLogprobMismatch", "rounding", False, 10, {f"charter_ppo_probe_mismatch_mean{{{RUN}}}": "0.01x60"}),
    Case("CharterStaleWeights", "two versions behind", True, 20, {SENT: "5x60", SERVED: "3x60"}),
    Case("CharterStaleWeights", "the version that was sent", False, 20, {SENT: "5x60", SERVED: "5x60"}),
    Case("CharterStaleWeights", "behind for five minutes", False, 20, {SENT: "4x14 5x60", SERVED: "4x19 5x60"}),
    Case("CharterStaleWeights", "no run", False, 20, {SERVED: "3x60"}),
    Case("CharterRunStalled", "silent since the start", True, 40, {HEARD: "0x60"}),
    Case("CharterRunStalled", "heard ten minutes ago", False, 40, {HEARD: "1800x60"}),
    Case("CharterRunFailed", "one more than before", True, 20, {'charter_runs{state="failed"}': "1x15 2x60"}),
    Case("CharterRunFailed", "failed long ago", False, 60, {'charter_runs{state="failed"}': "1x15 2x60"}),
    Case("CharterRunFailed", "one has succeeded", False, 20, {'charter_runs{state="succeeded"}': "1x15 2x60"}),
    Case("CharterCheckpointTooOld", "saved at the start", True, 70, {SAVED: "0x100", PPO_PHASE: "1x100"}),
    Case("CharterCheckpointTooOld", "saved in minute 50", False, 70, {SAVED: "3000x100", PPO_PHASE: "1x100"}),
    Case("CharterCheckpointTooOld", "never saved", True, 70, {PPO_PHASE: "1x100"}),
    Case("CharterCheckpointTooOld", "never saved, but PPO is young", False, 70, {PPO_PHASE: "0x30 1x100"}),
    Case("CharterCheckpointTooOld", "PPO is over", False, 70, {SAVED: "0x100", PPO_PHASE: "1x50 0x100"}),
    Case("CharterJudgeFailing", "every fifth", True, 30, outcomes(80, 20)),
    Case("CharterJudgeFailing", "every fiftieth", False, 30, outcomes(98, 2)),
    Case("CharterJudgeFailing", "nothing is judged", False, 30, outcomes(0, 0)),
    Case("CharterJudgeBiased", "nine of ten", True, 60, biased(0.9)),
    Case("CharterJudgeBiased", "three of ten", False, 60, biased(0.3)),
    Case("CharterJudgeBiased", "never asked in both orders", False, 60, outcomes(100, 0)),
    Case("CharterLabelsUndecided", "a coin", True, 60, entropy(0.69)),
    Case("CharterLabelsUndecided", "mostly sure", False, 60, entropy(0.5)),
    Case("CharterServiceDown", "not scraped", True, 15, {'up{app="judge",instance="j1"}': "0x60"}),
    Case("CharterServiceDown", "never ready", True, 15, {'charter_serving{service="judge"}': "0x60"}),
    Case(
        "CharterServiceDown",
        "sleeps while a run trains on its GPU",
        False,
        15,
        {
            'charter_serving{service="judge",app="judge",instance="j1"}': "0x60",
            'charter_asleep{service="judge",app="judge",instance="j1"}': "1x60",
        },
    ),
    Case(
        "CharterServiceDown",
        "another one sleeps",
        True,
        15,
        {
            'charter_serving{service="judge",app="judge",instance="j1"}': "0x60",
            'charter_asleep{service="policy",app="policy",instance="p1"}': "1x60",
        },
    ),
    Case("CharterServiceDown", "loads for five minutes", False, 15, {'charter_serving{service="judge"}': "0x5 1x60"}),
    Case("CharterServiceDown", "no run, so no worker", False, 15, {'up{app="worker",instance="w1"}': "0x60"}),
    Case(
        "CharterQueueSaturated",
        "the policy's, 250 of 256",
        True,
        10,
        {"charter_policy_requests": "250x60", "charter_policy_requests_limit": "256x60"},
    ),
    Case(
        "CharterQueueSaturated",
        "the preference model's, 60000 of 65536",
        True,
        10,
        {"charter_preference_waiting_answers": "60000x60", "charter_preference_waiting_answers_limit": "65536x60"},
    ),
    Case(
        "CharterQueueSaturated",
        "half full",
        False,
        10,
        {"charter_policy_requests": "128x60", "charter_policy_requests_limit": "256x60"},
    ),
    Case("CharterCallsFailingFast", "every third", True, 90, calls("0+30x200", "0+10x200")),
    Case("CharterCallsFailingFast", "every hundredth", False, 90, calls("0+100x200", "0+1x200")),
    Case("CharterCallsFailingFast", "an hour ago, now well", False, 120, calls("0+60x200", "0+30x70 2100x200")),
    Case("CharterCallsFailingSlowly", "every tenth for hours", True, 400, calls("0+100x500", "0+10x500")),
    Case("CharterCallsFailingSlowly", "every hundredth", False, 400, calls("0+100x500", "0+1x500")),
)


def alerts() -> list[dict[str, Any]]:
    """Every alert as it is written."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.why}")
def test_alert(case: Case, tmp_path: Path) -> None:
    firing = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
    test = {
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [
                    {
                        "expr": firing,
                        "eval_time": f"{case.minutes}m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump(test))
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    result = subprocess.run(["promtool", "check", "rules", *RULES.glob("*.yml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_is_tested_firing_and_not_firing() -> None:
    names = {alert["alert"] for alert in alerts()}
    assert {case.alert for case in CASES if case.fires} == names
    assert {case.alert for case in CASES if not case.fires} == names


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_each_alert_links_to_its_runbook(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"
    sections = re.findall(r"^## (.+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert alert["alert"] in sections


def test_panels_that_runbooks_name_exist() -> None:
    titles = {panel.title for board in BOARDS.values() for _, panels in board.rows for panel in panels}
    named = re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", RUNBOOKS.read_text())
    assert named
    assert {" ".join(one.split()) for one in named} <= titles


def test_each_runbook_belongs_to_an_alert() -> None:
    sections = re.findall(r"^## (.+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sections == [alert["alert"] for alert in alerts()]
