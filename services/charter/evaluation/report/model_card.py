"""The README.md of an aligned policy, as Hugging Face reads it."""

from pathlib import Path

from huggingface_hub import ModelCardData, metadata_load

from charter.data.sources import Source
from charter.evaluation.report.label_sources import labels_in_words
from charter.evaluation.report.learned import STAGES, figure_rows
from charter.evaluation.report.model_names import model_name, on_hub
from charter.evaluation.report.verdict import interval, percent, verdict
from charter.runs.folder import RunFolder, RunFolderError, read_run_folder
from charter.runs.results import LearnedSource
from charter.spec.data_sources import change_data_sources
from charter.spec.defaults import OPTIONAL_SECTIONS
from charter.spec.facts import needs_reinforcement
from charter.spec.load import spec_to_yaml
from charter.v1 import run_pb2

_ALIGNED = ["constitutional-ai", "rlaif", "ppo"]


def model_card(run_folder: Path) -> str:
    """Markdown with front matter: what the policy was aligned to, how, what it gained and what nobody knows.

    The spec is shown without file names and addresses: a card is made to be published. Raises ``RunFolderError``.
    """
    run = read_run_folder(run_folder)
    if run.spec is None:
        raise RunFolderError(f"{run_folder} has no spec.json: nothing says which model was aligned")
    base = run.spec.policy.model
    name = model_name(base)
    aligned = needs_reinforcement(run.spec)
    data = ModelCardData(
        base_model=base if on_hub(base) else None,
        license=_license(base),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["charter", *(_ALIGNED if aligned else []), *(one for one in ("dpo", "kto") if one in run.learned)],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {run.name}",
        f"{name}, {_how(run, run.spec)}",
        *(_of_alignment(run, name) if aligned else _of_learning(run, name)),
        "## Use",
        _USE,
        "## Training",
        f"```yaml\n{spec_to_yaml(_published(run, run.spec))}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_alignment(run: RunFolder, name: str) -> list[str]:
    found = verdict(run.evaluation, run.judge_check, run.preference_fit, fake=run.fake)
    return [
        "## Result",
        found.sentence,
        found.reward,
        _figures(run),
        "## Constitution",
        _constitution(run),
        "## Limits",
        _limits(run, name),
    ]


def _of_learning(run: RunFolder, name: str) -> list[str]:
    """Of a run without RL: what was held out before and after, and what it learned from."""
    rows, data = [], []
    for stage, result in run.learned.items():
        first = result.measured[0] if result.measured else None
        kept = next((one for one in result.measured if one.step == result.kept_step), None)
        if first is not None and kept is not None:
            rows.append(f"| {stage} | held-out loss, {STAGES[stage].unit} | {first.loss:.3f} → {kept.loss:.3f} |")
            rows += [
                f"| {stage} | {one.words} | {one.before} → {one.after} ({one.interval}) |"
                for one in figure_rows(first.figures, kept.figures)
            ]
        data += [f"- {stage}: {_without_folder(source)}, {_data(one)}" for source, one in result.sources.items()]
    table = "\n".join(["| | | before → after (95% interval) |", "| --- | --- | --- |", *rows]) if rows else ""
    limits = ["Nobody has checked the model for safety.", f"The licence and the limits of {name} apply."]
    return [
        "## Result",
        table or "Nothing was held out.",
        "## Data",
        "\n".join(data),
        "## Limits",
        "\n".join(f"- {one}" for one in limits),
    ]


def _without_folder(source: str) -> str:
    return str(Source.parse(source).without_folder())


def _data(source: LearnedSource) -> str:
    digest = f"sha256 `{source.digest}`" if source.digest else ""
    counts = f"{source.train} learned, {source.held_out} held out, {source.left_out.failures} left out"
    return "; ".join(filter(None, [counts, labels_in_words([source]), digest]))


def _how(run: RunFolder, spec: run_pb2.RunSpec) -> str:
    """What was done to the model, as a sentence goes on."""
    learned = [
        (spec.HasField("pretraining"), "it learned from texts"),
        (spec.HasField("supervised"), "it was fine-tuned on conversations"),
        (spec.HasField("revision"), "it was to learn from revisions of its answers by the constitution"),
        (spec.HasField("dpo"), "it learned from comparisons of answers (DPO)"),
        (spec.HasField("kto"), "it learned from answers with a thumb up or down (KTO)"),
    ]
    before = ", ".join(what for was, what in learned if was)
    if not needs_reinforcement(spec):
        judged = any(source.labels.get("AI") for one in run.learned.values() for source in one.sources.values())
        part = "Labels of a judge are in it" if judged else "No judge and no constitution had a part in it"
        return f"trained with Charter: {before}. {part}."
    return (
        f"aligned to a written constitution with Charter: {before + ', then ' if before else ''}a judge model labelled "
        "pairs of its answers by the constitution, the labels trained a preference model, and PPO trained the policy "
        "against that model while a KL penalty held it near its start."
    )


_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
```"""


def _figures(run: RunFolder) -> str:
    rows: list[tuple[str, str]] = []
    if evaluation := run.evaluation:
        failed = sum(evaluation.failures.values())
        rate = interval(evaluation.win_rate_low, evaluation.win_rate_high)
        rows += [
            ("Win rate, ties as half", f"{percent(evaluation.win_rate)} (95% interval {rate})"),
            ("Won, tied, lost, not judged", f"{evaluation.wins}, {evaluation.ties}, {evaluation.losses}, {failed}"),
            ("Mean tokens of an answer", f"{evaluation.mean_tokens_before:.0f} → {evaluation.mean_tokens_after:.0f}"),
        ]
    if judge := run.judge_check:
        measured = judge.calibration
        accuracy = interval(measured.accuracy_low, measured.accuracy_high)
        rows += [
            ("Judge", f"{model_name(judge.model)}, engine {run.engine('judge') or 'unknown'}, method {judge.method}"),
            ("Judge's accuracy", f"{percent(measured.accuracy)} of {measured.pairs} labelled pairs ({accuracy})"),
            ("Shorter answer is better, same pairs", percent(judge.shorter_is_better_accuracy)),
        ]
    elif run.spec is not None:
        rows.append(("Judge", f"{model_name(run.spec.judge.model)}, not measured on labelled pairs"))
    if fit := run.preference_fit:
        held_out = f"{percent(fit.held_out.accuracy)} of {fit.held_out_pairs} held-out comparisons"
        rows.append(("Preference model agrees with the judge", held_out))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows)])


def _constitution(run: RunFolder) -> str:
    if run.constitution is None:
        return "The run's folder holds no constitution."
    digest = f", digest `{run.info.constitution_digest}`" if run.info and run.info.constitution_digest else ""
    head = f"{run.constitution.name}, version {run.constitution.version}{digest}."
    lines = [f"- **{one.id}** ({one.dimension}): {_line(one.compare)}" for one in run.constitution.principles]
    return head + "\n\n" + "\n".join(lines)


def _limits(run: RunFolder, base: str) -> str:
    found = verdict(run.evaluation, run.judge_check, run.preference_fit, fake=run.fake)
    lines = [
        *found.caveats,
        "The win rate is what one judge model prefers; no person has rated these answers, and nobody has checked the "
        "model for safety.",
        "It holds for prompts like the held-out ones and for answers up to the trained length.",
        f"The licence and the limits of {base} apply.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _published(run: RunFolder, spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """The parts of a spec that say how it was trained, without the names of files and machines."""
    policy = run_pb2.PolicySpec(
        model=model_name(spec.policy.model),
        engine=run.engine("policy"),
        # The name alone of a file, or of a model's folder.
        chat_template=model_name(spec.policy.chat_template),
        eos_token=spec.policy.eos_token,
    )
    published = run_pb2.RunSpec(name=spec.name, seed=spec.seed, policy=policy)
    for section in OPTIONAL_SECTIONS:
        if spec.HasField(section):
            getattr(published, section).CopyFrom(getattr(spec, section))
    change_data_sources(published, lambda _field, source: source.without_folder())
    if not needs_reinforcement(spec):
        return published
    published.MergeFrom(
        run_pb2.RunSpec(
            judge=run_pb2.JudgeSpec(
                model=model_name(spec.judge.model), engine=run.engine("judge"), method=spec.judge.method
            ),
            sampling=spec.sampling,
            comparisons=spec.comparisons,
            preference_model=spec.preference_model,
            ppo=spec.ppo,
            evaluation=spec.evaluation,
        )
    )
    if spec.judge.HasField("ensemble_size"):
        published.judge.ensemble_size = spec.judge.ensemble_size
    if spec.preference_model.model:
        published.preference_model.model = model_name(spec.preference_model.model)
    return published


def _license(model: str) -> str | None:
    """License that the model card in a base model's folder states; None where nothing states one."""
    card = Path(model) / "README.md"
    metadata = metadata_load(card) if card.is_file() else None
    stated = metadata.get("license") if metadata else None
    return stated if isinstance(stated, str) else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", r"\|")
