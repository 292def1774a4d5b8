"""What is published of a run: the files of its policy, its card, and what makes it again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from charter.atomic_files import write_text
from charter.evaluation.card.evaluated import is_evaluated
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.markdown import markdown
from charter.evaluation.card.published_spec import CONSTITUTION_FILE, SPEC_FILE
from charter.evaluation.card.twin import FILE, Twin
from charter.runs.artifacts import COMPARISON
from charter.runs.folder import RunFolder

CARD = "README.md"
_SETTINGS = ("config.json", "special_tokens_map.json")


class NotPublishableError(ValueError):
    """A run should not be published as it is; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The files of a policy as they lie in the run's folder, and the texts that go with them, by name."""

    model: dict[str, Path]
    texts: dict[str, str]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        sizes = {name: path.stat().st_size for name, path in self.model.items()}
        return dict(sorted((sizes | {name: len(text.encode()) for name, text in self.texts.items()}).items()))


def publication_of(run: RunFolder, evaluations: Iterable[Path] = (), repository: str = ".") -> Publication:
    """What is published of a finished run. ``repository`` is what the card says to load it by.

    Raises ``NotPublishableError``, and as ``twin_of``.
    """
    policy = run.path / "policy"
    if run.info is None or run.info.finished is None or not (policy / "config.json").is_file():
        raise NotPublishableError(
            f"the run {run.name} has not finished: there is no whole model to publish. `charter runs resume "
            f"{run.info.id if run.info else run.name}` goes on with it"
        )
    if run.fake:
        raise NotPublishableError(
            f"a fake engine took part in the run {run.name}, so that nothing it made or measured means anything: set "
            "policy.engine and judge.engine to others, and run it again"
        )
    texts = card_texts(run, twin_of(run, evaluations), repository)
    # A file with a dot in front is nobody's part of a model, and a folder is none either.
    model = {
        file.name: file
        for file in sorted(policy.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.name not in texts
    }
    _refuse_places(model, [run.path, Path.home(), *([Path(run.spec.policy.model)] if run.spec else [])])
    return Publication(model, texts)


def _refuse_places(model: Mapping[str, Path], places: Sequence[Path]) -> None:
    """Raise ``NotPublishableError`` for a file of settings that says where something is on this machine."""
    for name, file in model.items():
        if not name.endswith(_SETTINGS):
            continue
        text = file.read_text(encoding="utf-8")
        for place in places:
            # The root, which is the home of who has none, begins much that is no place.
            if place.is_absolute() and place.name and f'"{place}' in text:
                raise NotPublishableError(f"{file} names {place}, a place on this machine: take it out of the file")


def card_texts(run: RunFolder, twin: Twin, repository: str = ".") -> dict[str, str]:
    """The card, its twin, and the spec and constitution that make it again, by name of the file."""
    texts = {
        CARD: markdown(twin, repository),
        FILE: twin.to_json(),
        SPEC_FILE: yaml.safe_dump(twin.spec, sort_keys=False, allow_unicode=True),
    }
    source = run.path / "constitution.yaml"
    if twin.constitution is not None and source.is_file():
        # Its comments are the author's own.
        fields = yaml.safe_load(source.read_text(encoding="utf-8"))
        texts[CONSTITUTION_FILE] = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return texts


def write_card(run: RunFolder) -> None:
    """Write the card of a run and what goes with it beside its policy. Raises as ``twin_of``.

    Of evaluations it tells of the run's own comparison of its stages.
    """
    own = [one for one in (run.path / COMPARISON,) if is_evaluated(run.path, one)]
    for name, text in card_texts(run, twin_of(run, own)).items():
        write_text(run.path / "policy" / name, text)
