"""The arrows between the rooms: who may import whom, read from the source without running it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHARTER = ROOT / "services" / "charter"
GENERATED = CHARTER / "v1"
MOST_LINES = 400

SERVICES = ("policy", "judge", "preference", "trainer")
FOUNDATIONS = ("rpc", "inference", "generation", "weights", "storage", "data", "prompts", "spec", "runs")
# Single files at the bottom, which anyone may import and which import only each other and the stubs.
SMALL = (
    "chat",
    "outcomes",
    "jsonl",
    "hashing",
    "atomic_files",
    "held_out",
    "state_files",
    "environment",
    "shown",
    "listed",
)
# What the worker may import besides itself. The generated stubs are charter.v1.
WORKER_MAY_IMPORT = (
    "v1",
    "rpc",
    "inference",
    "weights",
    "storage",
    "data",
    "spec",
    "runs",
    "evaluation",
    "study",
    *SMALL,
)
# How the judge makes a probability of what it finds: no service, no engine.
READS_EVIDENCE = ("charter.judge.calibration", "charter.judge.methods")
# The only file outside a service's room that may import its server.
SERVE = "cli/local/serve.py"


@dataclass(frozen=True)
class Import:
    """One ``import`` of a Charter module: the file it stands in and the module it names."""

    file: str
    line: int
    target: str

    @property
    def room(self) -> str:
        """First folder of the importing file, or the file itself when it lies in the root."""
        return self.file.split("/", maxsplit=1)[0]

    @property
    def target_room(self) -> str:
        """First name after ``charter.``."""
        return self.target.split(".")[1]

    def __str__(self) -> str:
        """The form that an editor can jump to."""
        return f"services/charter/{self.file}:{self.line} imports {self.target}"


def source_files() -> list[Path]:
    """Every Python file of the package that a person wrote."""
    return sorted(path for path in CHARTER.rglob("*.py") if GENERATED not in path.parents)


def charter_imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every Charter module that a file imports, inside functions too.

    ``from charter import policy`` and relative imports count; so does ``import_module("charter.policy")``.
    """
    package = ["charter", *path.relative_to(CHARTER).parent.parts]
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # The imported name may itself be a module: charter.policy in "from charter import policy".
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            names = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        else:
            continue
        for name in names:
            if name.startswith("charter."):
                yield node.lineno, name


@cache
def all_imports() -> list[Import]:
    """Every Charter import of every written file."""
    return [
        Import(path.relative_to(CHARTER).as_posix(), line, target)
        for path in source_files()
        for line, target in charter_imports(path.read_text(), path)
    ]


def refuse(broken: list[Import], rule: str) -> None:
    """Fail with the rule and each line that breaks it."""
    assert not broken, rule + ":\n" + "\n".join(f"  {one}" for one in broken)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import charter.policy.server", "charter.policy.server"),
        ("from charter.policy import server", "charter.policy.server"),
        ("from charter import policy", "charter.policy"),
        ("from . import server", "charter.judge.server"),
        ("from ..policy.server import build", "charter.policy.server.build"),
        ("def f():\n    import charter.policy", "charter.policy"),
        ("import importlib\nimportlib.import_module('charter.policy')", "charter.policy"),
    ],
)
def test_every_form_of_import_is_seen(statement: str, expected: str) -> None:
    """The reader itself: a form that it overlooked would let a broken arrow through."""
    assert [name for _, name in charter_imports(statement, CHARTER / "judge" / "x.py")] == [expected]


@pytest.mark.parametrize("room", FOUNDATIONS)
def test_foundations_do_not_know_the_services(room: str) -> None:
    above = (*SERVICES, "worker", "cli", "feedback")
    broken = [one for one in all_imports() if one.room == room and one.target_room in above]
    refuse(broken, f"charter/{room} serves every service and must not know any of them")


def test_small_files_are_at_the_bottom() -> None:
    small = {f"{name}.py" for name in SMALL}
    broken = [one for one in all_imports() if one.file in small and one.target_room not in ("v1", *SMALL)]
    refuse(broken, "small files at the root of charter import only each other and the stubs")


def test_rpc_needs_no_engine() -> None:
    broken = [one for one in all_imports() if one.room == "rpc" and one.target_room == "inference"]
    refuse(broken, "charter/rpc carries messages (charter.chat) and must not know an engine")


@pytest.mark.parametrize("room", SERVICES)
def test_services_do_not_import_each_other(room: str) -> None:
    others = {*SERVICES, "worker", "cli"} - {room}
    broken = [one for one in all_imports() if one.room == room and one.target_room in others]
    refuse(broken, f"charter/{room} is a service of its own: it may speak gRPC to others, not import them")


def test_worker_imports_stubs_and_never_a_service() -> None:
    allowed = {*WORKER_MAY_IMPORT, "worker"}
    broken = [one for one in all_imports() if one.room == "worker" and one.target_room not in allowed]
    refuse(broken, "charter/worker is a client of the services and may import only " + ", ".join(sorted(allowed)))


def test_evaluation_does_not_know_services_or_worker() -> None:
    above = (*SERVICES, "worker", "cli")
    broken = [
        one
        for one in all_imports()
        if one.room == "evaluation"
        and one.target_room in above
        # What is reported of a judge is what it serves: both read evidence by the same lines.
        and not (one.file.startswith("evaluation/judge/") and one.target.startswith(READS_EVIDENCE))
    ]
    refuse(broken, "charter/evaluation reads results, and the worker imports it: it must not know a service")


def test_feedback_is_a_client_of_the_services() -> None:
    above = (*SERVICES, "worker", "cli")
    broken = [one for one in all_imports() if one.room == "feedback" and one.target_room in above]
    refuse(broken, "charter/feedback is a client of policy and preference and must not import a service")


def test_the_gateway_is_a_client_of_the_services() -> None:
    above = (*SERVICES, "worker", "cli")
    broken = [one for one in all_imports() if one.room == "gateway" and one.target_room in above]
    refuse(broken, "charter/gateway is a client of policies and must not import a service")


def test_only_serve_imports_servers() -> None:
    servers = [f"charter.{room}.server" for room in SERVICES]
    broken = [
        one
        for one in all_imports()
        if one.file != SERVE
        and one.room not in SERVICES
        and any(one.target == server or one.target.startswith(f"{server}.") for server in servers)
    ]
    refuse(broken, f"outside the services only {SERVE} may import a room's server (others speak gRPC)")


def test_only_the_cli_plans_memory() -> None:
    broken = [one for one in all_imports() if one.target_room == "memory" and one.room not in ("memory", "cli")]
    refuse(broken, "charter/memory is a plan for a person: who is started by it must not depend on it")


def test_nobody_imports_the_cli() -> None:
    broken = [one for one in all_imports() if one.target_room == "cli" and one.room != "cli"]
    refuse(broken, "charter/cli is the top: nothing imports it")


@pytest.mark.parametrize("path", [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines < MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it by concept (limit {MOST_LINES})"


def rooms_tied() -> list[str]:
    """Sibling folders that need each other, each pair with one import of either direction."""
    needs: dict[tuple[str, str], Import] = {}
    for one in all_imports():
        here, there = one.file.split("/")[:-1], one.target.split(".")[1:]
        common = 0
        while common < min(len(here), len(there)) and here[common] == there[common]:
            common += 1
        if common < len(here) and CHARTER.joinpath(*there[: common + 1]).is_dir():
            parent = "/".join(here[:common])
            needs.setdefault((f"{parent}/{here[common]}", f"{parent}/{there[common]}"), one)
    rooms = {room for pair in needs for room in pair}
    # Every room that can be reached from each, by whatever way.
    reached = {room: {b for a, b in needs if a == room} for room in rooms}
    while any(reached[b] - reached[a] for a in rooms for b in set(reached[a])):
        for a in rooms:
            reached[a] |= {c for b in set(reached[a]) for c in reached[b]}
    return [str(one) for (a, b), one in sorted(needs.items()) if a in reached[b]]


def test_no_circle_between_rooms() -> None:
    tied = rooms_tied()
    assert not tied, "rooms beside each other must not need each other:\n" + "\n".join(f"  {one}" for one in tied)


def test_generated_code_is_marked() -> None:
    written = [path for path in GENERATED.glob("*_pb2*.py*") if "enerated" not in path.read_text()[:400]]
    assert not written, f"services/charter/v1 is generated and nobody edits it: {[path.name for path in written]}"
