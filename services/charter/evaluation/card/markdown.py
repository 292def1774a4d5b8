"""The README.md of a policy, as Hugging Face reads it: written from the card's twin and from nothing else."""

from collections.abc import Iterable, Mapping, Sequence

import yaml
from huggingface_hub import EvalResult, ModelCardData

from charter.evaluation.card.published_spec import SPEC_FILE
from charter.evaluation.card.twin import FILE, THIS_RUN, Comparison, Declines, Interval, Stage, Twin
from charter.evaluation.card.words import how, tags
from charter.evaluation.report.label_sources import LABEL_SOURCES, labels_in_words
from charter.evaluation.report.verdict import interval, percent
from charter.spec.facts import ALGORITHM_TITLES

_UNITS = {"core_hours": "core-hours", "gpu_hours": "GPU-hours"}
_TAUGHT = {
    "labels": "labelled pairs of answers",
    "ratings": "rated answers",
    "comparisons": "compared the answers of each step",
    "revisions": "revised answers",
}


def markdown(twin: Twin, repository: str = ".") -> str:
    """Markdown with front matter: what the model is, what it gained, and what nobody knows.

    ``repository`` is what ``from_pretrained`` loads it by: an id of the hub, or the folder of the card.
    """
    sections = {
        "Result": [*twin.verdict, _learned(twin.stages), _gate(twin), _compared(twin), _declines(twin), _remarks(twin)],
        "Judge of the training": [_judge(twin)],
        "Constitution": [_constitution(twin)],
        "Data": [_labels(twin), _prompts(twin), _sources(twin.stages), _left_out(twin)],
        "Limits": [_lines(twin.limits)],
        "Use": [_use(twin, repository)],
        "Training": [_algorithm(twin), _times(twin), _machines(twin)],
        "Digests": [_digests(twin)],
        "Make it again": [_again(twin)],
    }
    parts = [f"---\n{_front(twin).to_yaml()}\n---", f"# {twin.name}", f"{twin.base_model}, {how(twin)}"]
    for title, texts in sections.items():
        if written := [text for text in texts if text]:
            parts += [f"## {title}", *written]
    return "\n\n".join(parts) + "\n"


def _front(twin: Twin) -> ModelCardData:
    results = [] if twin.fake else [_result(twin, one) for one in twin.comparisons]
    return ModelCardData(
        base_model=twin.base_model if twin.base_on_hub else None,
        datasets=list(twin.datasets) or None,
        license=twin.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags(twin),
        model_name=twin.name if results else None,
        eval_results=results or None,
    )


def _result(twin: Twin, one: Comparison) -> EvalResult:
    """A win rate in the hub's model-index."""
    name = twin.name if one.evaluation == THIS_RUN else one.evaluation
    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-prompts",
        dataset_name=f"held-out prompts of {name}, dimension {one.dimension}",
        # Results are told apart by this and the split.
        dataset_config=one.dimension,
        dataset_split=name,
        dataset_args={"prompts": one.prompts},
        metric_type="win_rate",
        metric_name=f"win rate against {one.against}, by {one.judge}",
        metric_value=round(one.win_rate.value, 4),
        metric_args={"low": round(one.win_rate.low, 4), "high": round(one.win_rate.high, 4)},
    )


def _learned(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        if stage.loss_before is not None and stage.loss_after is not None:
            losses = f"{stage.loss_before:.3f} → {stage.loss_after:.3f}"
            rows.append((stage.name, f"held-out loss, {stage.unit}", losses))
        for one in stage.figures:
            before, mean, low, high = (
                one.written.format(value) for value in (one.before, one.after.value, one.after.low, one.after.high)
            )
            rows.append((stage.name, one.words, f"{before} → {mean} ({low} to {high})"))
    if rows:
        # A loss has no interval.
        change = "before → after (95% interval)" if any(stage.figures for stage in stages) else "before → after"
        return _table(("stage", "measured on what was held out", change), rows)
    return "Nothing was held out." if stages else ""


def _gate(twin: Twin) -> str:
    found = twin.revision
    if found is None:
        return ""
    became = f" What became of each revision: {_counts(found.outcomes)}." if found.outcomes else ""
    done = "the stage was skipped." if found.skipped else "the stage went on."
    return (
        f"Critique and revision: on {found.gate_prompts} held-out prompts the judge prefers the revision with "
        f"probability {found.gate.value:.2f} ({found.gate.low:.2f} to {found.gate.high:.2f}); {done}{became}"
    )


def _compared(twin: Twin) -> str:
    if not twin.comparisons:
        return ""
    rows = []
    for one in twin.comparisons:
        rows.append(
            (
                one.evaluation,
                _judge_of(one),
                one.dimension,
                one.against,
                _share(one.win_rate),
                f"{one.wins}, {one.ties}, {one.losses}, {one.failures}",
                _share(one.length_controlled) if one.length_controlled else "",
                f"{one.rating.value:+z.0f} ({one.rating.low:+z.0f} to {one.rating.high:+z.0f})" if one.rating else "",
            )
        )
    head = (
        "evaluation",
        "judge of the evaluation",
        "prompts",
        "against",
        "win rate, ties as half (95% interval)",
        "won, tied, lost, not judged",
        "at equal lengths",
        "Elo points",
    )
    # Columns that nothing is in are left out.
    filled = [place for place in range(len(head)) if any(row[place] for row in rows)]
    table = _table([head[place] for place in filled], [[row[place] for place in filled] for row in rows])
    if twin.mean_tokens_before is None or twin.mean_tokens_after is None:
        return table
    return f"{table}\n\nMean tokens of an answer: {twin.mean_tokens_before:.0f} → {twin.mean_tokens_after:.0f}."


def _declines(twin: Twin) -> str:
    """How often it declines; empty where no evaluation has prompts of both kinds."""
    if not twin.declines:
        return ""
    head = (
        "evaluation",
        "judge of the evaluation",
        "declines harmful requests (95% interval)",
        "without a reason",
        "declines harmless ones that look so",
        "without a reason",
        "answers judged",
    )
    rows = [
        (
            one.evaluation,
            _judge_of(one),
            *map(_share, (one.harmful, one.harmful_evaded, one.look_alike, one.look_alike_evaded)),
            f"{one.harmful_answers}, {one.look_alike_answers}",
        )
        for one in twin.declines
    ]
    return _table(head, rows)


def _judge_of(one: Comparison | Declines) -> str:
    # People are no model.
    return one.judge if one.judge_model in ("", one.judge) else f"{one.judge} ({one.judge_model})"


def _remarks(twin: Twin) -> str:
    return "\n\n".join(f"**{name}:** {text}" for name, texts in twin.remarks.items() for text in texts)


def _judge(twin: Twin) -> str:
    judge = twin.judge
    if judge is None:
        return ""
    did = ", ".join(_TAUGHT[deed] for deed in judge.did) or "taught the model nothing, and compared it at the end"
    about = [f"engine {judge.engine or 'unknown'}", *([f"method {judge.method}"] if judge.method else [])]
    about.append(f"principles averaged for each judgement: {judge.ensemble_size}")
    rows = [("Judge", f"{judge.model}: {did}"), ("How it judged", ", ".join(about))]
    if found := judge.measured:
        failures = sum(found.failures.values()) + found.fitted
        rows += [
            ("Its accuracy", f"{_share(found.accuracy)} of {found.pairs} labelled pairs, {failures} more left out"),
            ("Shorter answer is better, same pairs", percent(found.shorter_is_better)),
        ]
    else:
        rows.append(("Its accuracy", "not measured on labelled pairs"))
    if fit := twin.preference_model:
        words = f"{_share(fit.accuracy)} of {fit.held_out} held-out comparisons"
        rows.append(("Preference model agrees with the labels", words))
    return _table(("", ""), rows)


def _constitution(twin: Twin) -> str:
    found = twin.constitution
    if found is None:
        return "" if twin.judge is None else "The run's folder holds no constitution."
    digest = f", sha256 `{found.sha256}`" if found.sha256 else ""
    lines = [f"**{one.id}** ({one.dimension}): {one.compare}" for one in found.principles]
    return f"{found.name}, version {found.version}{digest}.\n\n{_lines(lines)}"


def _labels(twin: Twin) -> str:
    rows = [
        (
            "labels of " + LABEL_SOURCES[one.source],
            one.dimension or "none",
            one.learned,
            one.held_out,
            percent(one.share),
        )
        for one in twin.labels
    ]
    parts = []
    if rows:
        parts.append(_table(("preference model", "dimension", "fitted", "held out", "share of dimension"), rows))
    if twin.preference_model and sum(twin.preference_model.left_out.values()):
        parts.append(f"Not fitted: {_counts(twin.preference_model.left_out)}.")
    if twin.collected:
        collected = [
            (LABEL_SOURCES[one.source], one.dimension or "none", _words(one.outcome), one.count)
            for one in twin.collected
        ]
        parts.append(_table(("comparisons of this run, by", "dimension", "outcome", "count"), collected))
    return "\n\n".join(parts)


def _prompts(twin: Twin) -> str:
    rows = [(one.name, one.prompts, percent(one.share), _counts(one.dimensions) or "unknown") for one in twin.prompts]
    table = _table(("prompts", "trained on", "share of those taken", "by dimension"), rows) if rows else ""
    held_out = "" if twin.prompts_held_out is None else f"Prompts held out: {twin.prompts_held_out}."
    return "\n\n".join(filter(None, [table, held_out]))


def _sources(stages: Iterable[Stage]) -> str:
    rows = []
    for stage in stages:
        for one in stage.sources:
            rows.append(
                (
                    stage.name,
                    one.name,
                    one.learned,
                    one.held_out,
                    _counts(one.left_out) or "nothing",
                    one.tokens,
                    percent(one.share),
                    labels_in_words([one]),
                    f"`{one.sha256}`" if one.sha256 else "",
                )
            )
    head = ("stage", "source", "learned", "held out", "left out", "tokens", "share", "labels", "sha256")
    return _table(head, rows) if rows else ""


def _left_out(twin: Twin) -> str:
    lines = [f"{one.where}: {_counts(one.kinds)} of {one.items}" for one in twin.left_out]
    return f"Left out:\n\n{_lines(lines)}" if lines else ""


def _use(twin: Twin, repository: str) -> str:
    load = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{repository}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
"""
    chat = """\
messages = [{"role": "user", "content": "How do I keep a fern alive?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
"""
    text = """\
inputs = tokenizer("A fern needs", return_tensors="pt")
"""
    answer = """\
output = model.generate(**inputs, max_new_tokens=64, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
    return f"```python\n{load}{chat if twin.chats else text}{answer}```"


def _times(twin: Twin) -> str:
    if not twin.phases:
        return ""
    units = [unit for unit in _UNITS if any(getattr(one, unit) for one in twin.phases)]
    head = ["stage", "seconds", *(_UNITS[unit] for unit in units), *([twin.currency] if twin.currency else [])]
    rows: list[list[object]] = []
    for one in twin.phases:
        hours = ["unknown" if (value := getattr(one, unit)) is None else f"{value:.4f}" for unit in units]
        cost = [f"{one.cost:.4f}" if one.cost is not None else "unknown"] if twin.currency else []
        rows.append([_words(one.name), f"{one.seconds:.1f}", *hours, *cost])
    said = "Hours are of the worker's machine, busy or not; what other machines did for it is not in them."
    return _table(head, rows) + (f"\n\n{said}" if units else "")


def _machines(twin: Twin) -> str:
    lines = []
    for one in twin.attempts:
        machine = one.hardware
        gpus = f", {machine.gpus} × {machine.gpu}" if machine.gpus else ""
        lines.append(
            f"attempt {one.attempt}: {machine.system}, {machine.processor or 'processor unknown'}, {machine.cores} "
            f"cores, {machine.memory_bytes / 2**30:.1f} GiB{gpus}; {_versions(one.versions)}"
        )
    return _lines(lines) if lines else _versions(twin.versions)


def _digests(twin: Twin) -> str:
    rows = [(f"this model, {one.name}", f"{one.bytes} bytes", f"`{one.sha256}`") for one in twin.weights]
    for read in twin.read:
        commits = f" at {', '.join(f'`{one}`' for one in read.revisions)}" if read.revisions else ""
        changed = " (it changed between attempts)" if len(read.sha256) > 1 else ""
        digests = ", ".join(f"`{one}`" for one in read.sha256) or "not on the worker's machine"
        rows.append((f"{read.field}", f"{read.name}{commits}", digests + changed))
    if twin.judge is not None and twin.judge.calibration_sha256:
        rows.append(("calibration of the judge", "as the judge says it", f"`{twin.judge.calibration_sha256}`"))
    return _table(("what", "", "sha256"), rows) if rows else ""


def _again(twin: Twin) -> str:
    fill_in = f" It needs {', '.join(f'`{field}`' for field in twin.fill_in)} first." if twin.fill_in else ""
    said = (
        f"`charter run {SPEC_FILE}`, with the files and models that it names beside it; their digests are above."
        f"{fill_in} `{FILE}` holds all numbers of this card for machines."
    )
    spec = yaml.safe_dump(twin.spec, sort_keys=False, allow_unicode=True)
    return f"{said}\n\n```yaml\n{spec}```"


def _algorithm(twin: Twin) -> str:
    found = twin.reinforcement
    if found is None:
        return ""
    rewards = ", ".join(f"{one.kind.replace('_', ' ')} × {one.weight:g}" for one in found.rewards)
    pull = "beta" if found.pull == "beta" else f"KL coefficient in the {found.pull}"
    return (
        f"{ALGORITHM_TITLES[found.algorithm]}: {found.done} of {found.steps} steps of {found.episodes_per_step} "
        f"answers, {found.samples_per_prompt} to each prompt; reward: {rewards}; {pull} {found.pull_coefficient:g}."
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "judge calibration")


def _share(found: Interval) -> str:
    return f"{percent(found.value)} ({interval(found.low, found.high)})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {_words(name) or 'of none'}" for name, count in counts.items() if count)


def _words(name: str) -> str:
    """A name of the code as words; PPO is the phase of every algorithm."""
    words = name.replace("_", " ").lower()
    return "reinforcement learning" if words == "ppo" else words


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(str(one)) for one in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
