"""Dashboard Judge quality: what the labels are worth, and what the preference model makes of them."""

from deploy.monitoring.dashboards.panels import (
    Board,
    Panel,
    Query,
    halves,
    here,
    of_run,
    per_second,
    runs,
    total_per_second,
)

LABELS = (
    Panel(
        "Outcomes",
        "pairs/s",
        "Pairs that the judge answered, by outcome. Both preferences should be about as frequent; INVALID and "
        "UNAVAILABLE never become labels.",
        (Query(per_second("charter_judge_judgements_total", "method, outcome") + " > 0", "{{method}} {{outcome}}"),),
        "stacked",
    ),
    Panel(
        "Judgements that failed",
        "percentunit",
        "Share without a label over ten minutes. An alert fires at the line.",
        (Query(here("charter:judge_failed:ratio_rate10m"), "failed"),),
        limit=0.1,
    ),
    Panel(
        "Position bias",
        "percentunit",
        "Share of pairs asked in both orders in which the same position won twice, over half an hour. Near 100 % the "
        "judge reads nothing; an alert fires at the line. Empty for a method that never shows both answers.",
        (Query(here("charter:judge_position_biased:ratio_rate30m"), "same position twice"),),
        limit=0.5,
    ),
    Panel(
        "Asked in both orders",
        "judgements/s",
        "Judgements that showed both orders, and those in which a position won twice, which should be few.",
        (
            Query(total_per_second("charter_judge_ordered_total"), "both orders"),
            Query(total_per_second("charter_judge_position_biased_total"), "biased"),
        ),
    ),
    Panel(
        "Entropy of the labels",
        "nats",
        "0 is certain, 0.693 a coin. At the line the labels teach almost nothing.",
        (Query(here("charter:judge_label_entropy:mean_rate30m"), "mean"), *halves("charter_judge_label_entropy_nats")),
        limit=0.68,
    ),
    Panel(
        "Principles",
        "judgements/s",
        "Judgements under each principle, by outcome. A principle that always fails is worded badly.",
        (
            Query(
                per_second("charter_judge_principle_judgements_total", "principle, outcome"),
                "{{principle}} {{outcome}}",
            ),
        ),
    ),
)

GIVEN = 'kind="given"'
WORK = (
    Panel(
        "Seconds of a comparison",
        "s",
        "The model's work for one pair, all principles and orders. It should be level.",
        halves("charter_judge_comparison_seconds", "method"),
    ),
    Panel(
        "Tokens that texts share",
        "percentunit",
        "Share of the tokens to score that was not computed again, because other texts begin alike: by the trees of "
        "the engine transformers, or the prefix cache of vLLM. Empty for an endpoint.",
        (
            Query(
                "1 - "
                + total_per_second("charter_scoring_tokens_total", 'kind="computed"')
                + f" / ({total_per_second('charter_scoring_tokens_total', GIVEN)} > 0)",
                "shared",
            ),
        ),
    ),
)

OTHER = (
    Panel(
        "Ratings",
        "answers/s",
        "Answers rated, by whether there is a rating. Those without one should be few.",
        (Query(per_second("charter_judge_ratings_total", "rated"), "rated {{rated}}"),),
    ),
    Panel(
        "Critiques and revisions",
        "texts/s",
        "Texts, by whether they were written. Those that were not should be few.",
        (Query(per_second("charter_judge_texts_total", "kind, written"), "{{kind}} {{written}}"),),
    ),
    Panel(
        "Constitution",
        "none",
        "What is judged by. During a run it must not change.",
        (Query(here("charter_judge_constitution_info"), "{{name}} {{version}}"),),
    ),
    Panel(
        "Reloads of the constitution",
        "reloads",
        "Changes of its file since the judge started, by result. A refused one is malformed: the log says where.",
        (Query(here("charter_judge_constitution_reloads_total"), "{{result}} {{instance}}"),),
    ),
)

ENDPOINT = (
    Panel(
        "Requests to the endpoint",
        "reqps",
        "By how they ended. Many that were limited mean a quota that is too small. Empty for a judge that runs its own "
        "model.",
        (Query(per_second("charter_endpoint_requests_total", "result"), "{{result}}"),),
    ),
    Panel(
        "Circuit of the endpoint",
        "none",
        "1 while calls are refused because the endpoint is down. It should be 0.",
        (Query(here("charter_endpoint_circuit_open"), "open {{instance}}"),),
    ),
    Panel(
        "Token budget of the endpoint",
        "tokens",
        "Tokens that are left. At 0 the judge stops. Empty without a budget.",
        (Query(here("charter_endpoint_budget_tokens"), "{{model}}"),),
    ),
)

COMPARISONS = (
    Panel(
        "Comparisons stored",
        "comparisons/s",
        "New ones by who labelled them and how, and repeats that were ignored. Repeats come from resumed runs and "
        "retries.",
        (
            Query(per_second("charter_comparisons_added_total", "source, outcome") + " > 0", "{{source}} {{outcome}}"),
            Query(total_per_second("charter_comparisons_duplicates_total"), "repeated"),
        ),
    ),
    Panel(
        "Judged pairs of the run",
        "pairs",
        "So far, by outcome. Pairs that are INVALID or UNAVAILABLE are lost, and should be few.",
        (Query(of_run("charter_worker_pairs_total"), "{{outcome}} {{run}}"),),
        "stacked",
    ),
    Panel(
        "Agreement of the preference model",
        "percentunit",
        "Share of held-out comparisons on which it agrees with the judge. 50 % is a coin.",
        runs(("charter_preference_fit_held_out_accuracy", "agreement")),
        limit=0.5,
    ),
    Panel(
        "Calibration error of the preference model",
        "percentunit",
        "Mean distance of its confidence and how often the judge agrees (Guo et al. 2017). Below 10 % is good.",
        runs(("charter_preference_fit_held_out_calibration_error", "error")),
    ),
    Panel(
        "Loss of the preference model",
        "nats",
        "0.693 is a coin. A held-out loss that rises while the other falls is overfitting.",
        runs(("charter_preference_fit_train_loss", "fitted"), ("charter_preference_fit_held_out_loss", "held out")),
    ),
)

BOARD = Board(
    "charter-judge",
    "Charter: Judge quality",
    "What the labels are worth, and what the preference model makes of them.",
    (
        ("Labels", LABELS),
        ("Comparisons and preference model", COMPARISONS),
        ("What a label takes", WORK),
        ("Other work of the judge", OTHER),
        ("Endpoint", ENDPOINT),
    ),
)
