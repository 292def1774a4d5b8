"""Dashboard Run: is it learning?"""

from deploy.monitoring.dashboards.panels import Board, Panel, Query, of_run, runs, scored

NOW = (
    Panel(
        "PPO step",
        "none",
        "Newest step of each run under way. It should count up.",
        (Query(of_run("charter_run_step"), "{{run}}"),),
        "stat",
    ),
    Panel(
        "Phase done",
        "percentunit",
        "Share of the present phase that is done, of runs under way. It should grow; a run that stands still raises an "
        "alert.",
        (Query(of_run("charter_worker_phase_done_ratio"), "{{run}}"),),
        # A worker ends before its last event is scraped: the last there was is never the end.
        "now",
    ),
    Panel(
        "Reward",
        "none",
        "Mean reward of the newest step. It should be above that of the first steps with the same preference model.",
        scored(("charter_ppo_reward_mean", "")),
        "stat",
    ),
    Panel(
        "Win rate",
        "percentunit",
        "Share of held-out prompts on which the judge prefers the aligned policy, of evaluated runs. Above 50 % is "
        "better than the start; the report has the interval.",
        (Query(of_run("charter_run_win_rate"), "{{run}}"),),
        "stat",
        least=0.5,
    ),
    Panel(
        "Answers learned from",
        "answers",
        "Since the worker started. It should grow by the spec's episodes_per_step with each step.",
        (Query(of_run("charter_worker_episodes_total"), "{{run}}"),),
        "stat",
    ),
    Panel(
        "Checkpoint age",
        "s",
        "Time since the newest complete checkpoint of runs under way: what a crash would cost. It should stay within a "
        "few steps; an alert fires at an hour.",
        (Query(f"time() - {of_run('charter_worker_checkpoint_timestamp_seconds')}", "{{run}}"),),
        "now",
        limit=3600,
    ),
)

REWARD = (
    Panel(
        "Reward and score",
        "none",
        "Both should rise. A score that rises while the reward does not is paid for with KL or missing ends. The "
        "number is the preference model's: a refreshed one has lines and a scale of its own, not to be compared.",
        scored(("charter_ppo_reward_mean", "reward"), ("charter_ppo_score_mean", "score")),
    ),
    Panel(
        "Step",
        "none",
        "The PPO step at each moment: where the reward turns bad, `charter samples RUN --step N` shows the answers, "
        "and from these the labels behind them. It should climb evenly.",
        (Query(of_run("charter_run_step"), "step {{run}}"),),
    ),
    Panel(
        "Spread of the reward",
        "none",
        "A tenth of the answers lies below the lowest line, a tenth above the highest. Lines that meet mean answers "
        "that are all alike.",
        scored(
            ("charter_ppo_reward_p10", "10 %"),
            ("charter_ppo_reward_p50", "median"),
            ("charter_ppo_reward_p90", "90 %"),
            ("charter_ppo_score_std", "deviation of scores"),
        ),
    ),
    Panel(
        "Score by dimension",
        "none",
        "All should rise. One that falls while another rises shows the price.",
        (Query(of_run("charter_ppo_dimension_score_mean"), "{{dimension}} {{run}} {{preference_version}}"),),
    ),
    Panel(
        "Reward against KL",
        "none",
        "Across: distance from the start, the square root of the KL (Gao et al. 2023). Up: score. It should rise and "
        "bend; where it turns down, the preference model is being exploited. Choose one run.",
        (
            Query(f"sqrt(clamp_min({of_run('charter_ppo_kl_k3')}, 0))", "sqrt(KL in nats)"),
            Query(of_run("charter_ppo_score_mean"), "score {{run}} {{preference_version}}"),
        ),
        "xy",
    ),
    Panel(
        "The judge's opinion on held-out prompts",
        "percentunit",
        "P(the judge prefers the policy's answer to the starting policy's), where the spec has it watched. It should "
        "rise; where it falls while the score rises, the preference model is being exploited.",
        runs(("charter_ppo_held_out_judge", "preferred")),
    ),
    Panel(
        "Score on held-out prompts",
        "none",
        "As in training, on prompts that are not trained on. It should rise too; one far below that of training is "
        "memorised. Each preference model has a line and a scale of its own.",
        scored(("charter_ppo_held_out_score", "score")),
    ),
    Panel(
        "Length of answers",
        "tokens",
        "Mean tokens. Length that rises with the reward hints at a preference model that pays for length.",
        runs(("charter_ppo_response_tokens_mean", "tokens")),
    ),
    Panel(
        "Length and reward",
        "none",
        "Correlation over the answers of a step. Near 0 is good; near 1 the reward is mostly length.",
        runs(("charter_ppo_length_reward_correlation", "correlation")),
    ),
)

LEARNING = (
    Panel(
        "Loss before RL",
        "nats",
        "Cross-entropy of the tokens that texts and conversations teach. Both should fall; where the held-out one "
        "turns up the stage stops, and keeps the best weights.",
        (
            Query(of_run("charter_learning_train_loss"), "learned {{stage}} {{run}}"),
            Query(of_run("charter_learning_held_out_loss"), "held out {{stage}} {{run}}"),
        ),
    ),
    Panel(
        "Held-out loss by source",
        "nats",
        "All should fall. One that rises is paid for by the others: change the weights.",
        (Query(of_run("charter_learning_source_held_out_loss"), "{{source}} {{stage}} {{run}}"),),
    ),
    Panel(
        "Learning rate before RL",
        "none",
        "It should rise for the warm-up and fall to 0.",
        (Query(of_run("charter_learning_learning_rate"), "{{stage}} {{run}}"),),
    ),
    Panel(
        "Step and gradient before RL",
        "none",
        "The step should climb evenly; a gradient norm that grows wants a lower learning rate.",
        (
            Query(of_run("charter_learning_step"), "step {{stage}} {{run}}"),
            Query(of_run("charter_learning_gradient_norm"), "gradient norm {{stage}} {{run}}"),
        ),
    ),
    Panel(
        "Learned tokens",
        "tokens/s",
        "Of the newest step. It should stay level.",
        (Query(of_run("charter_learning_tokens_per_second"), "{{stage}} {{run}}"),),
    ),
    Panel(
        "Time of a step before RL",
        "s",
        "Without measurements and checkpoints. It should stay level.",
        (Query(of_run("charter_learning_step_seconds"), "{{stage}} {{run}}"),),
    ),
    Panel(
        "Revisions by verdict",
        "none",
        "Of all rounds so far. Most should be clean; what is not is never learned.",
        (Query(of_run("charter_revision_rows"), "{{verdict}} {{run}}"),),
    ),
    Panel(
        "Gate and accepted revisions",
        "percentunit",
        "The gate's lower end above 50 % says that revising helps. Accepted: the share of answers with a revision to "
        "learn from.",
        runs(
            ("charter_revision_gate_probability", "preferred at the gate"),
            ("charter_revision_gate_low", "lower end"),
            ("charter_revision_gate_high", "upper end"),
            ("charter_revision_accepted_share", "accepted"),
        ),
    ),
)

POLICY = (
    Panel(
        "KL to the reference",
        "nats",
        "Per answer. It should rise slowly and level off near its target, on held-out prompts too; k1 below 0 for long "
        "is a wrong estimate.",
        runs(
            ("charter_ppo_kl_k1", "k1"),
            ("charter_ppo_kl_k3", "k3"),
            ("charter_ppo_held_out_kl", "k3, held out"),
            ("charter_ppo_kl_target", "target"),
        ),
    ),
    Panel(
        "KL coefficient",
        "none",
        "Fixed, or adapting so that the KL stays near its target. One that only grows does not hold the policy back.",
        runs(("charter_ppo_kl_coefficient", "coefficient")),
    ),
    Panel(
        "Clip fraction and answers with an end",
        "percentunit",
        "Clipping of a few per cent is usual; much more means steps that are too large. Ends should become more. "
        "Answers without a score are left out; above failures.max_share the run stops.",
        runs(
            ("charter_ppo_clip_fraction", "ratio clipped"),
            ("charter_ppo_value_clip_fraction", "value clipped"),
            ("charter_ppo_eos_share", "ended"),
            ("charter_ppo_left_out_share", "without a score"),
        ),
    ),
    Panel(
        "Ratio",
        "none",
        "Mean probability ratio of new and old policy, and of trainer and sampler. Both should stay near 1.",
        runs(("charter_ppo_ratio_mean", "new to old"), ("charter_ppo_importance_ratio_mean", "trainer to sampler")),
    ),
    Panel(
        "Entropy",
        "nats",
        "Of the next token's distribution. It falls slowly; near 0 the policy has collapsed.",
        runs(("charter_ppo_entropy", "entropy")),
    ),
    Panel(
        "Explained variance",
        "percentunit",
        "Of the returns, by the critic. It should rise towards 100 %; below 0 the critic does harm.",
        runs(("charter_ppo_explained_variance", "explained")),
    ),
    Panel(
        "Log-prob mismatch",
        "nats",
        "Between sampler and trainer on the step's answers: the rounding of the two where the policy has not moved "
        "since they were sampled (age 0), else how far it has moved. It should be level.",
        runs(("charter_ppo_logprob_mismatch_mean", "mean"), ("charter_ppo_logprob_mismatch_max", "largest")),
    ),
    Panel(
        "Age of tokens",
        "versions",
        "Mean over the newest step's tokens. It should not exceed ppo.max_staleness.",
        runs(("charter_ppo_token_age_mean", "age")),
    ),
    Panel(
        "Probe of the replicas",
        "nats",
        "Between trainer and replicas on fixed texts, after each new version. It should stay level; growth means other "
        "weights; an alert fires at the line.",
        runs(("charter_ppo_probe_mismatch_mean", "mean"), ("charter_ppo_probe_mismatch_max", "largest")),
        limit=0.05,
    ),
    Panel(
        "Losses",
        "none",
        "The value loss should fall; the policy loss has no level of its own.",
        runs(("charter_ppo_policy_loss", "policy"), ("charter_ppo_value_loss", "value")),
    ),
    Panel(
        "Online DPO: agreement",
        "percentunit",
        "Share of the judged pairs in which the policy leans as the judge does: it should rise above 50 %. How sure "
        "the judge is of the better answer: near 50 % there is nothing to learn. Empty for other algorithms.",
        runs(("charter_ppo_dpo_accuracy", "accuracy"), ("charter_ppo_judge_certainty", "judge's certainty")),
    ),
    Panel(
        "Online DPO: margin",
        "nats",
        "Mean lead of the answer that the judge prefers, times dpo_beta. It should rise above 0. Empty for other "
        "algorithms.",
        runs(("charter_ppo_dpo_margin", "margin")),
    ),
    Panel(
        "Gradient norm",
        "none",
        "Of the policy, before clipping. It should be level; spikes are batches worth looking at.",
        runs(("charter_ppo_policy_gradient_norm", "policy")),
    ),
)

PACE = (
    Panel(
        "Time of a PPO step",
        "s",
        "Where the newest step's time went. Waiting for answers is what sampling takes longer than what it overlaps.",
        runs(
            ("charter_ppo_waiting_seconds", "wait for answers"),
            ("charter_ppo_scoring_seconds", "score"),
            ("charter_ppo_update_seconds", "update"),
            ("charter_ppo_weight_sync_seconds", "send weights"),
            ("charter_ppo_watching_seconds", "judge compares"),
        ),
        "stacked",
    ),
    Panel(
        "Time to sample a batch",
        "s",
        "The newest step's answers, in part or all while the worker learned from others. It should be level; it grows "
        "with the answers.",
        runs(("charter_ppo_sampling_seconds", "sample")),
    ),
    Panel(
        "Idle",
        "percentunit",
        "Share of the newest step in which the trainer's device computed nothing, and in which no answer was sampled. "
        "Where the worker idles more, more or faster replicas help; where the policy does, fewer will do.",
        runs(("charter_ppo_worker_idle_share", "worker"), ("charter_ppo_policy_idle_share", "policy")),
    ),
    Panel(
        "Throughput of steps",
        "steps/s",
        "By the clock, with pauses and checkpoints. It should be level. Each mark is a step, and leads to its trace.",
        (Query(f"rate({of_run('charter_worker_steps_total')}[$__rate_interval])", "{{run}}"),),
        exemplars=True,
    ),
    Panel(
        "Throughput of answers",
        "answers/s",
        "Of whole steps. It should be level; it falls when answers become longer. Those left out, by kind of failure, "
        "should be few.",
        (
            *runs(("charter_ppo_episodes_per_second", "answers")),
            Query(
                f"rate({of_run('charter_worker_left_out_total')}[$__rate_interval])",
                "left out {{stage}} {{kind}} {{run}}",
            ),
        ),
    ),
    Panel(
        "Tokens learned from",
        "tokens/s",
        "Of the newest step, and by the clock with pauses and checkpoints. The two should lie close together.",
        (
            *runs(("charter_ppo_tokens_per_second", "in a step")),
            Query(f"rate({of_run('charter_worker_tokens_total')}[$__rate_interval])", "by the clock {{run}}"),
        ),
    ),
    Panel(
        "Step and checkpoint",
        "s",
        "The newest of each. A checkpoint should take a small part of the steps between two.",
        runs(("charter_ppo_step_seconds", "step"), ("charter_worker_checkpoint_seconds", "checkpoint")),
    ),
    Panel(
        "Time in phases",
        "s",
        "Of phases that have ended. PPO should take most of it.",
        (Query(of_run("charter_worker_phase_seconds_total") + " > 0", "{{phase}} {{run}}"),),
    ),
    Panel(
        "Phase",
        "none",
        "What the worker did when. Each phase should come once, except those inside PPO.",
        (Query(of_run("charter_worker_phase") + " == 1", "{{phase}} {{run}}"),),
        "timeline",
    ),
)

BOARD = Board(
    "charter-run",
    "Charter: Run",
    "Is it learning? Reward, KL, length, and where the time goes.",
    (("Now", NOW), ("Before RL", LEARNING), ("Reward", REWARD), ("Policy", POLICY), ("Pace", PACE)),
)
