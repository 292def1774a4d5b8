"""Dashboard Fleet: which processes there are, what they serve, and how weights reach them."""

from deploy.monitoring.dashboards.panels import Board, Panel, Query, here, of_run, per_second, quantile


def of_process(metric: str) -> str:
    """Series that every program has, of Charter's processes: the scrape names them with the label ``app``."""
    return here(metric, 'app=~"policy|judge|preference|trainer|worker"')


PROCESSES = (
    Panel(
        "Ready",
        "none",
        "1 for each service that answers calls. A 0 for ten minutes raises an alert, unless the service sleeps while a "
        "run trains on its GPU.",
        (Query(here("charter_serving"), "{{service}} {{instance}}"),),
        "now",
        least=1,
    ),
    Panel(
        "Runs",
        "none",
        "By state, as the trainer knows them. A new one that failed raises an alert.",
        (Query(f"sum by (state) ({here('charter_runs')}) > 0", "{{state}}"),),
        "now",
    ),
    Panel(
        "Worker last heard",
        "s",
        "Seconds since each run's worker spoke to the trainer. An alert fires at half an hour.",
        (Query(f"time() - {of_run('charter_run_last_heard_timestamp_seconds')}", "{{run}}"),),
        "now",
        limit=1800,
    ),
    Panel(
        "Versions of Charter",
        "none",
        "Processes by version. More than one version outside a rollout is a mistake.",
        (Query(f"count by (version) ({here('charter_build_info')})", "{{version}}"),),
        "now",
    ),
    Panel(
        "Runs and models",
        "none",
        "Workers under way, with the model that they align: one for each run that runs.",
        (Query(of_run("charter_worker_run_info", 'model=~"$model"'), "{{name}} {{model}}"),),
        "now",
    ),
    Panel(
        "Scraped",
        "none",
        "Processes that Prometheus reaches, by service. The worker is there only during a run.",
        (Query(f"sum by (app) ({of_process('up')})", "{{app}}"),),
        "now",
    ),
)

RESOURCES = (
    Panel(
        "Restarts",
        "starts",
        "New starts within an hour, by process. More than one each is a crash loop.",
        (Query(f"changes({of_process('process_start_time_seconds')}[1h])", "{{app}} {{instance}}"),),
    ),
    Panel(
        "Memory",
        "bytes",
        "Resident memory of each process. It should level off after the first step.",
        (Query(of_process("process_resident_memory_bytes"), "{{app}} {{instance}}"),),
    ),
    Panel(
        "CPU",
        "cores",
        "Cores in use by each process. At its limit a process is slowed down; during sampling the policy should be the "
        "busiest.",
        (Query(f"rate({of_process('process_cpu_seconds_total')}[$__rate_interval])", "{{app}} {{instance}}"),),
    ),
)

WEIGHTS = (
    Panel(
        "Weight version",
        "none",
        "Served by each replica, and sent by the run. All replicas of a service should be on one line, which steps up.",
        (
            Query(here("charter_weight_version"), "{{service}} {{instance}}"),
            Query(of_run("charter_ppo_weight_version"), "sent {{run}}"),
        ),
    ),
    Panel(
        "Weight transfer, 95th percentile",
        "s",
        "To receive a version, and to put it into service. The policy waits for both.",
        (
            Query(quantile(0.95, "charter_weight_transfer_seconds", "service"), "receive {{service}}"),
            Query(quantile(0.95, "charter_weight_load_seconds", "service"), "load {{service}}"),
        ),
        limit=60,
    ),
    Panel(
        "Weights received",
        "binBps",
        "A burst at the end of each step, equal for all replicas of a service.",
        (Query(per_second("charter_weight_received_bytes_total", "service, instance"), "{{service}} {{instance}}"),),
    ),
    Panel(
        "Failed transfers",
        "transfers",
        "Refused or broken off within an hour. It should be 0.",
        (
            Query(
                f"increase({here('charter_weight_transfer_failures_total')}[1h])",
                "{{service}} {{instance}}",
            ),
        ),
    ),
    Panel(
        "Age of tokens, 95th percentile",
        "versions",
        "Weight versions between the one that wrote a token and the one that learned from it. 0 where "
        "ppo.max_staleness is 0.",
        (Query(quantile(0.95, "charter_worker_token_age_versions"), "age"),),
    ),
    Panel(
        "Replicas",
        "replicas",
        "Those that the worker knows, by whether they take calls. What is not ready is late, away, or holds old "
        "weights.",
        (Query(here("charter_worker_replicas"), "{{service}} ready {{ready}}"),),
    ),
    Panel(
        "Work given to another replica",
        "items/s",
        "Prompts and pairs, by why. It should be near 0: failed ones point to a replica that is ill, slow ones to "
        "one that is loaded.",
        (Query(per_second("charter_worker_reassigned_total", "service, reason"), "{{service}} {{reason}}"),),
    ),
)

BOARD = Board(
    "charter-fleet",
    "Charter: Fleet",
    "Which processes there are, what they serve, and how weights reach them.",
    (("Processes", PROCESSES), ("Weights", WEIGHTS), ("Resources", RESOURCES)),
)
