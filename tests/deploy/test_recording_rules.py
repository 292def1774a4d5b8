"""Each recording rule against numbers computed by hand, by promtool's unit tests."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import ROOT

RULES = ROOT / "deploy" / "monitoring" / "rules" / "recording.yml"


@dataclass(frozen=True)
class Case:
    """Series in promtool's notation, a value a minute, and what a recorded series is at the end of ``minutes``."""

    record: str
    why: str
    series: dict[str, str]
    expected: dict[str, float]
    minutes: int = 30


RUN = 'run="r1"'


def calls(failed: str) -> dict[str, str]:
    """Two methods of one service that end four times a minute together, and those that failed by its own fault."""
    labels = 'grpc_service="s",grpc_method='
    return {
        f'grpc_server_handled_total{{{labels}"a",grpc_code="OK"}}': "0+3x500",
        f'grpc_server_handled_total{{{labels}"b",grpc_code="Internal"}}': "0+1x500",
        f'charter_calls_failed_total{{{labels}"a"}}': "0x500",
        f'charter_calls_failed_total{{{labels}"b"}}': failed,
    }


CASES = (
    *(
        Case(
            f"charter:calls_failed:ratio_rate{window}",
            "one of four",
            calls("0+1x500"),
            {'{grpc_service="s"}': 0.25},
            400,
        )
        for window in ("5m", "30m", "1h", "6h")
    ),
    # Failures of the first hundred minutes lie in the longest window alone: 100 of 4 * 360.
    Case(
        "charter:calls_failed:ratio_rate5m",
        "all is well again",
        calls("0+1x100 100x400"),
        {'{grpc_service="s"}': 0},
        360,
    ),
    Case(
        "charter:calls_failed:ratio_rate6h",
        "all is well again",
        calls("0+1x100 100x400"),
        {'{grpc_service="s"}': 100 / (4 * 360)},
        360,
    ),
    Case("charter:calls_failed:ratio_rate5m", "no calls", dict.fromkeys(calls(""), "0x60"), {}),
    Case(
        "charter:queue:ratio",
        "the policy's and those of two preference models",
        {
            "charter_policy_requests": "64x60",
            "charter_policy_requests_limit": "256x60",
            'charter_preference_waiting_answers{model="default"}': "30x60",
            'charter_preference_waiting_answers_limit{model="default"}': "40x60",
            'charter_preference_waiting_answers{model="old"}': "2x60",
            'charter_preference_waiting_answers_limit{model="old"}': "40x60",
        },
        {
            '{queue="policy"}': 0.25,
            '{queue="preference", model="default"}': 0.75,
            '{queue="preference", model="old"}': 0.05,
        },
    ),
    Case(
        "charter:judge_failed:ratio_rate10m",
        "two of ten",
        {
            'charter_judge_judgements_total{method="choice",outcome="preferred_a"}': "0+8x60",
            'charter_judge_judgements_total{method="choice",outcome="invalid"}': "0+1x60",
            'charter_judge_judgements_total{method="choice",outcome="unavailable"}': "0+1x60",
        },
        {"{}": 0.2},
    ),
    Case(
        "charter:judge_position_biased:ratio_rate30m",
        "over all principles",
        {
            'charter_judge_ordered_total{principle="kind"}': "0+6x60",
            'charter_judge_ordered_total{principle="safe"}': "0+4x60",
            'charter_judge_position_biased_total{principle="kind"}': "0+3x60",
            'charter_judge_position_biased_total{principle="safe"}': "0x60",
        },
        {"{}": 0.3},
    ),
    Case(
        "charter:judge_label_entropy:mean_rate30m",
        "two judges",
        {
            'charter_judge_label_entropy_nats_sum{instance="a"}': "0+3x60",
            'charter_judge_label_entropy_nats_count{instance="a"}': "0+10x60",
            'charter_judge_label_entropy_nats_sum{instance="b"}': "0+6x60",
            'charter_judge_label_entropy_nats_count{instance="b"}': "0+10x60",
        },
        {"{}": 0.45},
    ),
    # Five times 1 and five times 3. Whether the value ten minutes ago counts depends on Prometheus's version: it is 2.
    Case(
        "charter:ppo_reward_mean:avg10m",
        "it rose",
        {f"charter_ppo_reward_mean{{{RUN}}}": "1x19 2 1x4 3x60"},
        {f"{{{RUN}}}": 2},
    ),
)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.record}: {case.why}")
def test_recording_rule(case: Case, tmp_path: Path) -> None:
    # promtool compares floats exactly.
    expr = f"round({case.record}, 1e-6)"
    samples = [{"labels": labels, "value": round(value, 6)} for labels, value in case.expected.items()]
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [{"expr": expr, "eval_time": f"{case.minutes}m", "exp_samples": samples}],
            }
        ],
    }
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump(test))
    result = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_recording_rule_has_a_case() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert {rule["record"] for group in groups for rule in group["rules"]} == {case.record for case in CASES}
