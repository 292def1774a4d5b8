"""Dashboard Comparison: the arms of a study (`charter compare`) beside each other, each the mean over its seeds."""

from deploy.monitoring.dashboards.panels import RUN, Board, Panel, Query

# Runs of a study are called STUDY-ARM-SEED; the trainer adds when they began, and four digits.
_ENDS = "-[0-9]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{4}"


def _of_study(metric: str) -> str:
    """Series of the runs of the chosen studies, with the label ``arm``: STUDY-ARM."""
    return f'label_replace({metric}{{{RUN}, run=~"$study-.+{_ENDS}"}}, "arm", "$1", "run", "(.+){_ENDS}")'


def _arms(*metrics: tuple[str, str]) -> tuple[Query, ...]:
    """Means over the seeds of each arm."""
    return tuple(
        Query(f"avg by (arm) ({_of_study(metric)})", f"{label} {{{{arm}}}}".strip()) for metric, label in metrics
    )


NOW = (
    Panel(
        "Step",
        "none",
        "Newest step of RL of each arm, mean over its seeds that are under way. Arms are compared at equal steps.",
        _arms(("charter_run_step", "")),
        "stat",
    ),
    Panel(
        "KL to the start",
        "nats",
        "Per answer (k3), of the newest step. Arms that are far apart here had other budgets: compare at equal KL.",
        _arms(("charter_ppo_kl_k3", "")),
        "stat",
    ),
    Panel(
        "Preferred by its own judge",
        "percentunit",
        "P(the run's judge prefers the policy's answer to the start's), on held-out prompts that are watched. It may "
        "have trained the arm: the study's figure is by a third judge.",
        _arms(("charter_ppo_held_out_judge", "")),
        "stat",
    ),
    Panel(
        "Agreement with the labels",
        "percentunit",
        "Share of held-out labels with which the arm's preference model agrees. 50 % is a coin: such an arm has "
        "nothing to learn from.",
        _arms(("charter_preference_fit_held_out_accuracy", "")),
        "stat",
    ),
    Panel(
        "Length of answers",
        "tokens",
        "Of the newest step. An arm whose answers became longer may be preferred for that.",
        _arms(("charter_ppo_response_tokens_mean", "")),
        "stat",
    ),
    Panel(
        "Throughput",
        "tokens/s",
        "Tokens that were learned from, of the newest step. It should be about the same for all.",
        _arms(("charter_ppo_tokens_per_second", "")),
        "stat",
    ),
)

ARMS = (
    Panel(
        "Reward",
        "none",
        "It should rise. Each arm has a scale of its own, that of its preference model: compare shapes, not heights.",
        _arms(("charter_ppo_reward_mean", "")),
    ),
    Panel(
        "KL to the start over time",
        "nats",
        "Per answer (k3). It should rise slowly, and alike in all arms.",
        _arms(("charter_ppo_kl_k3", "")),
    ),
    Panel(
        "Preferred by its own judge over time",
        "percentunit",
        "It should rise. Where it falls while the reward rises, that arm exploits its preference model.",
        _arms(("charter_ppo_held_out_judge", "")),
    ),
    Panel(
        "Length of answers over time",
        "tokens",
        "It should be level, or grow alike.",
        _arms(("charter_ppo_response_tokens_mean", "")),
    ),
    Panel(
        "Agreement with the labels over time",
        "percentunit",
        "Of the preference model, on held-out labels: it should lie above the line.",
        _arms(("charter_preference_fit_held_out_accuracy", "")),
        limit=0.5,
    ),
    Panel(
        "Throughput over time",
        "tokens/s",
        "Of steps. Arms that run beside each other share the machines.",
        _arms(("charter_ppo_tokens_per_second", "")),
    ),
)

BOARD = Board(
    "charter-comparison",
    "Charter: Comparison",
    "The arms of a study beside each other, each the mean over its seeds.",
    (("Where the arms are", NOW), ("How they came there", ARMS)),
    of_study=True,
)
