"""Reads the spec of a study from YAML, with those of its arms. Every mistake is reported with its field and line."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from charter.data.errors import DataError
from charter.data.prompts import read_prompts
from charter.data.sources import Source
from charter.evaluation.compare import spec as evaluations
from charter.listed import listed
from charter.spec.bad_rows import bad_rows_of
from charter.spec.checks import Findings, findings
from charter.spec.load import MessageFile, SpecFile
from charter.spec.paths import PathResolver
from charter.spec.problems import Problem, SpecError
from charter.study import checks
from charter.study.arms import Arm, filled, label_problems
from charter.study.pairs import pair_findings
from charter.study.points import steps_of
from charter.study.remarks import trained_judges
from charter.study.spec import CheckedStudy, StudySpec, asked, axes, fill_defaults
from charter.v1 import evaluation_pb2, run_pb2, study_pb2


def load_study(path: Path, home: Path) -> CheckedStudy:
    """The checked study in a file, whose folder is in ``home``. Raises ``SpecError`` with every mistake."""
    return _StudyFile(path, home).checked()


class _StudyFile:
    """A study's file and that of its run spec, and every mistake in them as ``file:line: field: what``."""

    def __init__(self, path: Path, home: Path) -> None:
        self._home = home
        self._file = MessageFile(path, StudySpec(), lambda spec, base: _resolve(spec, base, home / "runs"))
        self._base: SpecFile | None = None
        # File, line and text.
        self._lines: list[tuple[Path, int, str]] = []
        self._unread: list[Problem] = []
        self._remarks: list[Problem] = []

    def checked(self) -> CheckedStudy:
        """The study. Raises ``SpecError``."""
        base = self._read_base()
        spec = fill_defaults(self._file.spec, base)
        self._file.add(checks.broken_rules(spec))
        arms = self._read_arms(spec)
        specs = {arm.name: one.spec for arm, one in zip(spec.arms, arms, strict=True)}
        self._file.add(checks.too_many_models(spec, steps_of(specs)))
        self._check_measurement(spec, base, specs)
        if lines := [f"{file}:{line}: {text}" for file, line, text in self._all_lines()]:
            raise SpecError(lines)
        self._remarks += trained_judges(spec, specs)
        return CheckedStudy(spec, self._home / "studies" / spec.name, base, specs, self._unread, self._remarks)

    def _all_lines(self) -> list[tuple[Path, int, str]]:
        files: list[MessageFile[StudySpec] | SpecFile] = [self._file, *([self._base] if self._base else [])]
        own = [(file.path, file.line(one), str(one)) for file in files for one in file.problems]
        order = {file.path: place for place, file in enumerate(files)}
        return sorted(dict.fromkeys([*own, *self._lines]), key=lambda one: (order[one[0]], one[1]))

    def _read_base(self) -> run_pb2.RunSpec:
        """The filled run spec that all arms share; an empty one where there is none to read."""
        run = self._file.spec.run
        if run and Path(run).is_file():
            try:
                self._base = SpecFile(Path(run))
            except SpecError as error:
                # Not YAML at all.
                self._file.add(Problem("run", one) for one in error.problems)
        return filled(self._base.spec if self._base else run_pb2.RunSpec())

    def _read_arms(self, spec: StudySpec) -> list[Arm]:
        shared = self._base.spec if self._base else run_pb2.RunSpec()
        folder = self._file.path.resolve().parent
        arms = [
            Arm(spec, arm, self._file.fields_of(f"arms[{index}].run"), shared, folder)
            for index, arm in enumerate(spec.arms)
        ]
        if self._base is None or self._base.problems:
            # What follows from that is no second mistake.
            for index, arm in enumerate(arms):
                self._add_of_arm(spec.arms[index], index, arm, arm.problems)
            return arms
        of_base = {(one.field, one.text) for one in findings(filled(shared), absent_files=True).problems}
        shared_by: dict[Problem, list[str]] = {}
        for index, (arm, about) in enumerate(zip(arms, spec.arms, strict=True)):
            self._add_of_arm(about, index, arm, arm.problems)
            self._file.add(
                Problem(f"arms[{index}].{one.field}", one.text, tuple(f"arms[{index}].{other}" for other in one.others))
                for one in label_problems(spec, about, arm.merged)
            )
            found = findings(arm.spec, absent_files=True)
            self._note(found, about)
            for one in found.problems:
                if not arm.certain(one) or any(one.field == other.field for other in arm.problems):
                    continue
                if (one.field, one.text) in of_base and arm.line(one.field) is None:
                    shared_by.setdefault(one, []).append(about.name)
                else:
                    self._add_of_arm(about, index, arm, [one])
        for one, names in shared_by.items():
            of = "" if len(names) == len(arms) else f" (of {_arms(names)})"
            self._lines.append((self._base.path, self._base.line(one), f"{one}{of}"))
        return arms

    def _add_of_arm(self, about: study_pb2.StudyArm, index: int, arm: Arm, problems: list[Problem]) -> None:
        for one in problems:
            line = arm.line(one.field) or self._file.line(Problem(f"arms[{index}]", ""))
            self._lines.append((self._file.path, line, f"arms[{index}].run.{one.field} (arm {about.name}): {one.text}"))

    def _note(self, found: Findings, arm: study_pb2.StudyArm) -> None:
        """Keep what is no mistake, each once."""
        self._unread += [one for one in found.unread if one not in self._unread]
        for one in found.remarks:
            if one.text not in [other.text for other in self._remarks]:
                self._remarks.append(Problem(f"arm {arm.name}, {one.field}", one.text))

    def _check_measurement(self, spec: StudySpec, base: run_pb2.RunSpec, arms: Mapping[str, run_pb2.RunSpec]) -> None:
        """Judges that measure and that label, and prompts, by the rules of an evaluation; and the pairs."""
        wrong = {one.field for one in self._file.problems}
        measured = evaluations.fill_defaults(asked(spec))
        labelling = evaluations.fill_defaults(evaluation_pb2.EvaluateSpec(judges=spec.judges))
        for prefix, one in (("evaluation.", measured), ("", labelling)):
            # What it measures and is called follows from the study.
            fields = ("judges", "prompts")
            inside = {field.removeprefix(prefix) for field in wrong if field.startswith(prefix)}
            contents, unread = evaluations.read_contents(one, inside)
            broken = [*evaluations.broken_rules(one), *contents]
            self._file.add(_within(prefix, [found for found in broken if found.field.startswith(fields)]))
            self._unread += _within(prefix, unread)
        self._file.add(self._prompts(spec, base, arms))
        pairs, unread = pair_findings(spec, base)
        self._file.add(pairs)
        self._unread += unread

    def _prompts(
        self, spec: StudySpec, base: run_pb2.RunSpec, arms: Mapping[str, run_pb2.RunSpec]
    ) -> Iterator[Problem]:
        """Prompts of the measurement that an arm learns from, and axes that have none."""
        trained: dict[str, set[str]] = {}
        for name, arm in arms.items():
            for source in arm.prompts.train:
                trained.setdefault(source, set()).add(name)
        keys = {source: _keys(source, base) for source in trained}
        dimensions: set[str] | None = set()
        for index, prompts in enumerate(spec.evaluation.prompts):
            there = _keys(prompts.source, base)
            if there is None:
                dimensions = None
                continue
            if dimensions is not None:
                dimensions |= {dimension or prompts.dimension for dimension in there.values()}
            for source, names in trained.items():
                if shared := len(there.keys() & (keys[source] or {}).keys()):
                    where = f"prompts.train of {_arms(sorted(names))}, {source}"
                    text = f"{shared} of its prompts are in {where}: take them out"
                    yield Problem(f"evaluation.prompts[{index}].source", text)
        for index, axis in enumerate(axes(spec) if len(spec.evaluation.axes) == 2 else ()):
            if dimensions is not None and axis not in dimensions:
                has = listed(sorted(dimensions - {""})) or "none"
                text = f"no prompt of evaluation.prompts is of the dimension `{axis}`; they have {has}"
                field = f"evaluation.axes[{index}]" if self._file.spec.evaluation.axes else "evaluation.prompts"
                yield Problem(field, f"{text}. Add some, or name the two by `axes`", ("evaluation.prompts",))


def _resolve(spec: StudySpec, base: Path, runs: Path) -> list[Problem]:
    """Make every file and folder absolute, in place; those of the arms are read later."""
    paths = PathResolver(base)
    if spec.run:
        spec.run = paths.file("run", spec.run)
    for index, source in enumerate(spec.pairs.sources):
        spec.pairs.sources[index] = str(paths.data(f"pairs.sources[{index}]", Source.parse(source, base)))
    problems = paths.problems
    for prefix, holder in (("evaluation.", spec.evaluation), ("", spec)):
        of_evaluation = evaluation_pb2.EvaluateSpec(judges=holder.judges)
        if holder is spec.evaluation:
            of_evaluation.prompts.extend(spec.evaluation.prompts)
        problems += _within(prefix, evaluations.resolve(of_evaluation, base, runs))
        del holder.judges[:]
        holder.judges.extend(of_evaluation.judges)
        if of_evaluation.prompts:
            del spec.evaluation.prompts[:]
            spec.evaluation.prompts.extend(of_evaluation.prompts)
    return problems


def _within(prefix: str, problems: list[Problem]) -> list[Problem]:
    return [
        Problem(f"{prefix}{one.field}", one.text, tuple(f"{prefix}{name}" for name in one.others)) for one in problems
    ]


def _keys(source: str, base: run_pb2.RunSpec) -> dict[str, str] | None:
    """By key of each prompt of a source its dimension; None where it cannot be read, which is said elsewhere."""
    try:
        here = Source.parse(source).here()
        return None if here is None else {one.key: one.dimension for one in read_prompts(str(here), bad_rows_of(base))}
    except DataError:
        return None


def _arms(names: list[str]) -> str:
    return f"arm{'s' * (len(names) > 1)} {listed(names)}"
