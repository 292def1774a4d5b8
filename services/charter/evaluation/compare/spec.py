"""The spec of an evaluation: read from YAML, filled with defaults, and checked as far as files tell."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from charter.data.errors import MOST_NAMED, DataError
from charter.data.prompts import read_prompts
from charter.data.sources import Source
from charter.evaluation.compare.checkpoints import checkpoint_problem
from charter.evaluation.compare.prompts import KINDS, bad_rows_of
from charter.evaluation.compare.trained import trained_prompts
from charter.runs.folder import is_run_folder, newest_run
from charter.spec.comparison_checks import ALL, ALL_TAKEN, PEOPLE, lone_kind
from charter.spec.constitution import ConstitutionError, load_constitution
from charter.spec.defaults import DEFAULTS, fill
from charter.spec.load import MessageFile
from charter.spec.paths import PathResolver
from charter.spec.problems import Problem
from charter.v1 import evaluation_pb2, judge_pb2

EvaluateSpec = evaluation_pb2.EvaluateSpec

# With more models, pairs of all of them cost more than they tell.
_MOST_ALL_PAIRS = 6
_DEFAULTS = {"answers_per_prompt": 1, "bootstrap_samples": 2000}
# Engines whose model is no folder.
_REMOTE = ("openai", "fake")


@dataclass(frozen=True, slots=True)
class Checked:
    """The spec of a file with its defaults; ``unread`` is what it names and could not be looked into."""

    spec: EvaluateSpec
    # Where what is asked is kept.
    folder: Path
    unread: Sequence[Problem]


def load_evaluation(path: Path, home: Path, folder: Path | None = None) -> Checked:
    """The checked spec in a file; ``home`` has the runs that it may name, and the evaluations.

    ``folder`` is where it is kept, if that is not there. Raises ``SpecError`` with every mistake.
    """
    file = MessageFile(path, EvaluateSpec(), lambda spec, base: resolve(spec, base, home / "runs"))
    place = folder or home / "evaluations" / file.spec.name
    filled = fill_defaults(file.spec)
    file.add(broken_rules(filled))
    wrong = {one.field for one in file.problems}
    file.add(_checkpoints(filled, wrong, place))
    contents, unread = read_contents(filled, wrong)
    file.add(contents)
    file.raise_if_wrong()
    return Checked(filled, place, unread)


def fill_defaults(spec: EvaluateSpec) -> EvaluateSpec:
    """Copy of ``spec`` in which every unset field has its default."""
    filled = EvaluateSpec()
    filled.CopyFrom(spec)
    fill(filled, _DEFAULTS)
    fill(filled.sampling, DEFAULTS["sampling"])
    fill(filled.failures, DEFAULTS["failures"])
    if not filled.start and filled.models:
        filled.start = filled.models[0].name
    if not filled.pairs:
        filled.pairs = "all" if len(filled.models) <= _MOST_ALL_PAIRS else "start"
    for judge in filled.judges:
        if not judge.HasField("ensemble_size"):
            judge.ensemble_size = 1
        if not judge.address and not judge.engine:
            judge.engine = "transformers"
    return filled


def spec_to_json(spec: EvaluateSpec) -> str:
    """Write a spec as protobuf JSON with snake_case names (``spec.json`` of an evaluation's folder)."""
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, ensure_ascii=False)


def spec_from_json(text: str) -> EvaluateSpec:
    """Read what ``spec_to_json`` wrote. Raises ``google.protobuf.json_format.ParseError``."""
    return json_format.Parse(text, EvaluateSpec())


def pairs_of(spec: EvaluateSpec) -> list[tuple[str, str]]:
    """The pairs of models whose answers are compared, in the order of the spec; the start comes last in its pairs."""
    names = [model.name for model in spec.models if model.name != spec.start]
    against_start = [(name, spec.start) for name in names]
    if spec.pairs == "start":
        return against_start
    others = [(name, other) for place, name in enumerate(names) for other in names[place + 1 :]]
    return [*against_start, *others]


def changes(old: EvaluateSpec, new: EvaluateSpec, stored: Mapping[str, Collection[str]]) -> list[str]:
    """What differs so that stored answers and judgements are none of the new spec's.

    ``stored`` names the ``models`` and ``judges`` that anything is stored of: of others nothing is bound. Prompts,
    models and judges may be added and left out, for each answer says what it is to. Bounds of failures and of an
    endpoint, bootstrap draws and the start model change nothing that is stored.
    """
    bound = ("seed", "sampling") if any(stored.values()) else ()
    found = [name for name in bound if getattr(old, name) != getattr(new, name)]
    for kind, earlier, later in (("models", old.models, new.models), ("judges", old.judges, new.judges)):
        known = {one.name: _asked(one) for one in earlier if one.name in stored[kind]}
        found += [f"{kind} `{one.name}`" for one in later if one.name in known and known[one.name] != _asked(one)]
    return found


def _asked(one: evaluation_pb2.EvaluatedModel | evaluation_pb2.EvaluationJudge) -> dict[str, Any]:
    """What of a model or judge decides its answers."""
    return {field.name: value for field, value in one.ListFields() if field.name != "limits"}


def resolve(spec: EvaluateSpec, base: Path, runs: Path) -> list[Problem]:
    """Make every file and folder absolute, in place; returns a problem for each one that does not exist.

    ``base`` is the folder of the spec's file, ``runs`` that of the runs.
    """
    paths = PathResolver(base)
    for index, model in enumerate(spec.models):
        field = f"models[{index}]"
        if model.run:
            needs_policy = not model.HasField("step")
            model.run = _run_folder(paths, f"{field}.run", model.run, base, runs, needs_policy=needs_policy)
        if model.model and model.engine not in _REMOTE:
            model.model = paths.model(f"{field}.model", model.model)
        model.chat_template = paths.template(f"{field}.chat_template", model.chat_template)
    for index, prompts in enumerate(spec.prompts):
        if prompts.source:
            prompts.source = str(paths.data(f"prompts[{index}].source", Source.parse(prompts.source, base)))
    for index, judge in enumerate(spec.judges):
        for name in ("constitution", "calibration"):
            if value := getattr(judge, name):
                setattr(judge, name, paths.file(f"judges[{index}].{name}", value))
        if judge.model and judge.engine not in _REMOTE:
            judge.model = paths.model(f"judges[{index}].model", judge.model)
    return paths.problems


def _run_folder(paths: PathResolver, field: str, value: str, base: Path, runs: Path, *, needs_policy: bool) -> str:
    places = [base / Path(value).expanduser(), *([runs / value] if Path(value).name == value else [])]
    folder = next((place for place in places if os.path.isdir(place) and is_run_folder(place)), None)
    folder = folder or newest_run(runs, value)
    if folder is None:
        paths.problems.append(
            Problem(field, f"no run: {' and '.join(map(str, places))} hold neither spec.json nor run.json")
        )
        return value
    if needs_policy and not os.path.isdir(folder / "policy"):
        paths.problems.append(
            Problem(field, f"the run in {folder} has made no policy yet: let it end (`charter runs resume`)")
        )
    return str(folder.resolve())


def _names(spec: EvaluateSpec) -> Iterator[Problem]:
    for kind in ("models", "judges"):
        seen: dict[str, int] = {}
        for index, one in enumerate(getattr(spec, kind)):
            if one.name and one.name in seen:
                yield Problem(
                    f"{kind}[{index}].name", f"`{one.name}` is the name of {kind}[{seen[one.name]}] too: give another"
                )
            seen.setdefault(one.name, index)
    for index, judge in enumerate(spec.judges):
        if judge.name == PEOPLE:
            yield Problem(f"judges[{index}].name", f"`{PEOPLE}` is what votes of people stand under: give another")
    for index, prompts in enumerate(spec.prompts):
        if prompts.dimension == ALL:
            yield Problem(f"prompts[{index}].dimension", f"makes {ALL_TAKEN}")
    if spec.start and spec.start not in {model.name for model in spec.models}:
        there = ", ".join(model.name for model in spec.models)
        yield Problem("start", f"names no model: `{spec.start}` is not among {there}", ("models",))


def _models(spec: EvaluateSpec) -> Iterator[Problem]:
    for index, model in enumerate(spec.models):
        field = f"models[{index}]"
        given = [name for name in ("run", "model", "address") if getattr(model, name)]
        if not given:
            yield Problem(field, "needs one of run, model and address: what answers")
        elif len(given) > 1:
            yield Problem(field, f"has {' and '.join(given)}: leave all but one out")
        if model.address:
            extra = ("engine", "endpoint", "chat_template", "eos_token", "limits")
            yield from _needless(model, field, extra, "is for a model that is started here, not for an address")
        yield from _endpoint(model, field)
        if model.run and model.engine in _REMOTE:
            yield Problem(f"{field}.engine", f"{model.engine} cannot serve the policy of a run: leave it out")
        if model.HasField("step") and not model.run:
            yield Problem(f"{field}.step", "is that of a run's checkpoint: name the run", (f"{field}.run",))
        if model.eos_token and not model.chat_template:
            yield Problem(
                f"{field}.eos_token", "belongs to chat_template, which is not set", (f"{field}.chat_template",)
            )


def _judges(spec: EvaluateSpec) -> Iterator[Problem]:
    for index, judge in enumerate(spec.judges):
        field = f"judges[{index}]"
        if judge.address:
            extra = ("model", "engine", "endpoint", "constitution", "calibration", "limits")
            yield from _needless(judge, field, extra, "is for a judge that is started here, not for an address")
            continue
        for name in ("model", "constitution"):
            if not getattr(judge, name):
                yield Problem(f"{field}.{name}", "is required, or address, the running service that judges")
        yield from _endpoint(judge, field)
        if judge.engine == "openai" and judge.method == judge_pb2.JUDGING_METHOD_CONTRAST:
            yield Problem(
                f"{field}.method",
                "contrast reads log-likelihoods, which no endpoint gives: choose choice or verdict",
                (f"{field}.engine",),
            )


def _kinds(spec: EvaluateSpec) -> Iterator[Problem]:
    if lone := lone_kind([KINDS[prompts.kind] for prompts in spec.prompts]):
        index, problem = lone
        yield Problem(f"prompts[{index}].kind", problem, ("prompts",))


def _needless(
    one: evaluation_pb2.EvaluatedModel | evaluation_pb2.EvaluationJudge, field: str, names: Sequence[str], why: str
) -> Iterator[Problem]:
    given = {known.name for known, _ in one.ListFields()}
    for name in names:
        if name in given:
            yield Problem(f"{field}.{name}", f"{why}: leave one out", (f"{field}.address",))


def _endpoint(one: evaluation_pb2.EvaluatedModel | evaluation_pb2.EvaluationJudge, field: str) -> Iterator[Problem]:
    openai, engine = one.engine == "openai", (f"{field}.engine",)
    if openai and not one.endpoint:
        yield Problem(f"{field}.endpoint", "is required by engine openai: the base URL of the endpoint", engine)
    given = {known.name for known, _ in one.ListFields()}
    for name in ("endpoint", "limits"):
        if name in given and not openai and not one.address:
            yield Problem(f"{field}.{name}", "is for engine openai: set that, or leave this out", engine)


_RULES: tuple[Callable[[EvaluateSpec], Iterator[Problem]], ...] = (_names, _models, _judges, _kinds)


def broken_rules(spec: EvaluateSpec) -> Iterator[Problem]:
    """Every mistake across the fields of a filled spec."""
    for rule in _RULES:
        yield from rule(spec)


def _checkpoints(spec: EvaluateSpec, wrong: set[str], folder: Path) -> Iterator[Problem]:
    for index, model in enumerate(spec.models):
        field = f"models[{index}]"
        if not model.HasField("step") or wrong & {field, f"{field}.run", f"{field}.step"}:
            continue
        try:
            problem = checkpoint_problem(folder, model)
        except (ValueError, OSError) as error:
            problem = f"the run's files cannot be read: {error}"
        if problem:
            yield Problem(f"{field}.step", problem)


def read_contents(spec: EvaluateSpec, wrong: Collection[str]) -> tuple[list[Problem], list[Problem]]:
    """Mistakes in the files that it names, and what could not be looked into; ``wrong`` are fields with a mistake."""
    found: list[Problem] = []
    unread: list[Problem] = []
    for index, judge in enumerate(spec.judges):
        field = f"judges[{index}].constitution"
        if judge.constitution and field not in wrong:
            try:
                load_constitution(Path(judge.constitution))
            except ConstitutionError as error:
                found += [Problem(field, line) for line in error.problems[:MOST_NAMED]]
            except OSError as error:
                found.append(Problem(field, f"cannot read {judge.constitution}: {error.strerror}"))
    trained: dict[str, set[str]] = {}
    for index, model in enumerate(spec.models):
        try:
            trained[model.name] = trained_prompts(model)
        except DataError as error:
            unread.append(Problem(f"models[{index}]", f"the prompts that trained it cannot be read: {error}"))
    for index, prompts in enumerate(spec.prompts):
        field = f"prompts[{index}].source"
        if not prompts.source or field in wrong:
            continue
        here = Source.parse(prompts.source).here()
        if here is None:
            unread.append(Problem(field, f"{prompts.source} is not in the hub's cache of this machine"))
            continue
        try:
            dimensions = {prompt.key: prompt.dimension for prompt in read_prompts(str(here), bad_rows_of(spec))}
        except DataError as error:
            found += [Problem(field, line) for line in str(error).splitlines()]
            continue
        there = dimensions.keys()
        if ALL in dimensions.values():
            found.append(Problem(field, f"has {ALL_TAKEN}"))
        for name, keys in trained.items():
            if shared := len(there & keys):
                found.append(Problem(field, f"{shared} of its prompts trained {name}: take them out", ("models",)))
        if prompts.count > len(there):
            count = f"is {prompts.count}, and {prompts.source} holds {len(there)} different ones"
            text = f"{count}: lower it, or leave it out"
            found.append(Problem(f"prompts[{index}].count", text, (field,)))
    return found, unread
