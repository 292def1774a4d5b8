"""Files and model folders that a spec names: resolved against the folder of the spec's file, and compared."""

from pathlib import Path

from charter.v1 import run_pb2


def same_model(served: str, wanted: str) -> bool:
    """Whether two names mean the same model: the same hub id, or the same folder of this machine."""
    if served == wanted:
        return True
    one, other = Path(served).expanduser(), Path(wanted).expanduser()
    return one.is_dir() and other.is_dir() and one.resolve() == other.resolve()


def resolve_paths(spec: run_pb2.RunSpec, base: Path, remote: bool = False) -> list[tuple[str, str]]:
    """Make every file and local model folder of ``spec`` absolute, in place.

    With ``remote`` the run is for another machine: its models are there, and so are absolute files that are not here.
    Returns a problem, as (field path, text), for each one that does not exist.
    """
    problems: list[tuple[str, str]] = []

    def file(field: str, value: str) -> str:
        path = (base / Path(value).expanduser()).resolve()
        if remote and value.startswith("/") and not path.exists():
            return value
        if not path.is_file():
            problems.append((field, f"no such file: {path}"))
        return str(path)

    def model(field: str, value: str) -> str:
        if remote:
            if value.startswith((".", "~")):
                problems.append((field, f"`{value}` is a folder here; name one there, as /models/NAME, or a hub id"))
            return value
        path = (base / Path(value).expanduser()).resolve()
        if path.is_dir():
            return str(path)
        # A hub id never starts like this.
        if value.startswith((".", "/", "~")):
            problems.append((field, f"no such model folder: {path}"))
        return value

    for name in ("train", "held_out"):
        values = getattr(spec.prompts, name)
        values[:] = [file(f"prompts.{name}[{index}]", value) for index, value in enumerate(values)]
    for name in ("constitution", "labelled_pairs", "calibration"):
        if value := getattr(spec.judge, name):
            setattr(spec.judge, name, file(f"judge.{name}", value))
    if spec.policy.engine != "fake":
        spec.policy.model = model("policy.model", spec.policy.model)
    if spec.judge.engine not in ("openai", "fake", "external"):
        spec.judge.model = model("judge.model", spec.judge.model)
    if spec.preference_model.model:
        spec.preference_model.model = model("preference_model.model", spec.preference_model.model)
    return problems
