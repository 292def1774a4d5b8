"""Dashboard Serving: rate, errors, duration and saturation of policy, preference model, judge and gateway."""

from deploy.monitoring.dashboards.panels import (
    Board,
    Panel,
    Query,
    halves,
    here,
    in_use,
    mean,
    per_second,
    quantile,
    total_per_second,
)

METHOD = "grpc_service, grpc_method"
METHOD_LEGEND = "{{grpc_service}}/{{grpc_method}}"

CALLS = (
    Panel(
        "Calls",
        "reqps",
        "gRPC calls as they end, by methods that were called at all. During a run it should come in a regular beat.",
        (Query(in_use("grpc_server_handled_total", METHOD), METHOD_LEGEND),),
    ),
    Panel(
        "Failed calls",
        "reqps",
        "Calls that did not end well. There should be none. Cancelled is left out: a worker breaks off a call that has "
        "brought all it needs.",
        (
            Query(
                per_second("grpc_server_handled_total", f"{METHOD}, grpc_code, instance", 'grpc_code!~"OK|Cancelled"'),
                METHOD_LEGEND + " {{grpc_code}} {{instance}}",
            ),
        ),
    ),
    Panel(
        "Error budget",
        "percentunit",
        "Share of calls that failed by the service's own fault. Above the line a month's budget (1 %) is gone in two "
        "days.",
        (
            Query(here("charter:calls_failed:ratio_rate5m"), "5 minutes {{grpc_service}}"),
            Query(here("charter:calls_failed:ratio_rate1h"), "1 hour {{grpc_service}}"),
        ),
        limit=0.144,
    ),
    Panel(
        "Latency, 95th percentile",
        "s",
        "From the start of a call to its end, streams included: a Generate lasts as long as its slowest sample. It "
        "should be level.",
        (Query(quantile(0.95, "grpc_server_handling_seconds", METHOD), METHOD_LEGEND),),
        exemplars=True,
    ),
    Panel(
        "Calls under way",
        "calls",
        "Started and not yet ended, as the server counts them. It should return to 0 when no run goes on.",
        (
            Query(
                f"sum by (grpc_service) ({here('grpc_server_started_total')})"
                f" - sum by (grpc_service) ({here('grpc_server_handled_total')})",
                "{{grpc_service}}",
            ),
        ),
    ),
    Panel(
        "Queues",
        "percentunit",
        "How full the bounded queues are. At 100 % calls are refused; an alert fires at the line.",
        (Query(here("charter:queue:ratio"), "{{queue}} {{instance}}"),),
        limit=0.8,
    ),
)

POLICY = (
    Panel(
        "Tokens",
        "tokens/s",
        "Sampled, and read as prompts. During sampling all replicas should be near each other.",
        (
            Query(per_second("charter_policy_generated_tokens_total", "instance"), "sampled {{instance}}"),
            Query(per_second("charter_policy_prompt_tokens_total", "instance"), "prompts {{instance}}"),
        ),
    ),
    Panel(
        "Samples",
        "samples/s",
        "Answers by how they ended. Most should end by eos: those that end by length are cut off.",
        (Query(per_second("charter_policy_samples_total", "finish"), "{{finish}}"),),
    ),
    Panel(
        "Seconds to the first token",
        "s",
        "From the arrival of a request. It grows when requests wait. Objective: the line.",
        halves("charter_policy_first_token_seconds"),
        limit=2,
        exemplars=True,
    ),
    Panel(
        "Seconds to a sample",
        "s",
        "From the arrival of a request to each of its samples. Objective: the line.",
        halves("charter_policy_sample_seconds"),
        limit=20,
        exemplars=True,
    ),
    Panel(
        "Requests",
        "calls",
        "Generate and Score calls under way, and those of Generate that have no sample yet. The second should return "
        "to 0 between steps.",
        (
            Query(here("charter_policy_requests"), "under way {{instance}}"),
            Query(here("charter_policy_waiting_requests"), "without a sample {{instance}}"),
        ),
    ),
    Panel(
        "Samples of a request",
        "samples",
        "Mean over requests. Larger ones fill the engine's batches better.",
        (Query(mean("charter_policy_request_samples"), "samples"),),
    ),
    Panel(
        "Length of a sample",
        "tokens",
        "Mean over samples. Near the spec's max_new_tokens most are cut off.",
        (Query(mean("charter_policy_sample_tokens"), "tokens"),),
    ),
)

PREFERENCE = (
    Panel(
        "Answers scored",
        "answers/s",
        "By model. In bursts, one each step. It should return to 0 between them.",
        (Query(per_second("charter_preference_scores_total", "model"), "{{model}}"),),
    ),
    Panel(
        "Tokens scored",
        "tokens/s",
        "With those of their conversations; and how many of these were not computed again for each answer.",
        (
            Query(total_per_second("charter_preference_tokens_total"), "tokens"),
            Query(total_per_second("charter_preference_shared_tokens_total"), "shared"),
        ),
    ),
    Panel(
        "Wait and batch",
        "s",
        "95 % of answers wait no longer for their batch, and 95 % of batches take no longer. Objective of the wait: "
        "the line.",
        (
            Query(quantile(0.95, "charter_preference_wait_seconds"), "wait"),
            Query(quantile(0.95, "charter_preference_batch_seconds"), "batch"),
        ),
        limit=1,
    ),
    Panel(
        "Queue and batch size",
        "answers",
        "Answers that wait, and the mean number in a batch. Batches should fill before the queue grows.",
        (
            Query(here("charter_preference_waiting_answers"), "waiting {{model}} {{instance}}"),
            Query(mean("charter_preference_batch_answers"), "in a batch"),
        ),
    ),
)

JUDGE = (
    Panel(
        "Results",
        "s",
        "From the start of a call to each of its results, 95th percentile. Objective: the line.",
        (Query(quantile(0.95, "charter_judge_result_seconds", "rpc"), "{{rpc}}"),),
        limit=60,
        exemplars=True,
    ),
    Panel(
        "Items",
        "items",
        "Items that wait for a result, and the mean number in a call. The first should return to 0 between batches.",
        (
            Query(here("charter_judge_waiting_items"), "waiting {{instance}}"),
            Query(mean("charter_judge_request_items"), "in a call"),
        ),
    ),
    Panel(
        "Seconds of a comparison",
        "s",
        "The model's own work for a pair, all principles and orders, 95th percentile. Results take longer where pairs "
        "wait.",
        (Query(quantile(0.95, "charter_judge_comparison_seconds", "method"), "{{method}}"),),
    ),
    Panel(
        "Tokens to score",
        "tokens/s",
        "Given, and computed after what texts share. The gap is what sharing saves: the wider, the better.",
        (Query(per_second("charter_scoring_tokens_total", "app, kind"), "{{app}} {{kind}}"),),
    ),
    Panel(
        "Tokens of the judge",
        "tokens/s",
        "Read and written by the judge's model. With a paid endpoint this is the bill: it should stop with the run.",
        (Query(per_second("charter_judge_tokens_total", "kind"), "{{kind}}"),),
    ),
)

GATEWAY = (
    Panel(
        "HTTP requests",
        "reqps",
        "Answered by `charter gateway`, by path and status: 400 is a client's mistake, 429 a full policy, 503 one that "
        "is away. Broken streams ended with an error after their start; there should be none.",
        (
            Query(in_use("charter_gateway_requests_total", "path, status"), "{{path}} {{status}}"),
            Query(total_per_second("charter_gateway_broken_streams_total"), "broken streams"),
        ),
    ),
    Panel(
        "HTTP requests under way",
        "requests",
        "Streams that are still written included.",
        (Query(here("charter_gateway_open_requests"), "{{instance}}"),),
    ),
    Panel(
        "Latency of HTTP requests",
        "s",
        "95th percentile: to the end of an answer by path, and to the first piece of a stream. What the policy takes "
        "is in it.",
        (
            Query(quantile(0.95, "charter_gateway_request_seconds", "path"), "{{path}}"),
            Query(quantile(0.95, "charter_gateway_first_text_seconds"), "first piece"),
        ),
    ),
    Panel(
        "Tokens for clients",
        "tokens/s",
        "Read and written, as clients were told.",
        (Query(per_second("charter_gateway_tokens_total", "kind"), "{{kind}}"),),
    ),
)

CLIENTS = (
    Panel(
        "Calls by the worker",
        "reqps",
        "What the worker asks of the services, by how it ended. That should be OK, or Cancelled: it breaks off a call "
        "that has brought all it needs.",
        (Query(in_use("grpc_client_handled_total", "grpc_method, grpc_code"), "{{grpc_method}} {{grpc_code}}"),),
    ),
    Panel(
        "Latency as the worker sees it",
        "s",
        "95th percentile, the network included. Far above the server's own figure, the network or a queue before it is "
        "slow.",
        (Query(quantile(0.95, "grpc_client_handling_seconds", "grpc_method"), "{{grpc_method}}"),),
        exemplars=True,
    ),
    Panel(
        "Calls of the worker under way",
        "calls",
        "Started and not yet ended. A long plateau is what the run waits for.",
        (
            Query(
                f"sum by (grpc_method) ({here('grpc_client_started_total')})"
                f" - (sum by (grpc_method) ({here('grpc_client_handled_total')})"
                f" or 0 * sum by (grpc_method) ({here('grpc_client_started_total')}))",
                "{{grpc_method}}",
            ),
        ),
    ),
)

BOARD = Board(
    "charter-serving",
    "Charter: Serving",
    "Rate, errors, duration and saturation of policy, preference model, judge and gateway.",
    (
        ("Calls", CALLS),
        ("Policy", POLICY),
        ("Preference model", PREFERENCE),
        ("Judge", JUDGE),
        ("Gateway", GATEWAY),
        ("As the worker sees it", CLIENTS),
    ),
)
