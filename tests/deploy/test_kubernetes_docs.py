"""Commands, files, objects and names in docs/kubernetes.md exist."""

import itertools
import re
import shlex
from typing import Any

import typer
from charter.cli.cluster.checks import RIGHTS
from charter.cli.cluster.components import OPERATORS
from charter.cli.lazy import LazyCommand
from charter.cli.main import app

from tests.deploy.manifests import (
    BASE,
    COMPONENTS,
    OVERLAYS,
    ROOT,
    SERVICES,
    containers,
    everything,
    loose_objects,
    of_kind,
    render,
)
from tests.deploy.test_image import instructions

DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
OBJECTS = (*itertools.chain.from_iterable(everything(folder) for folder in OVERLAYS), *loose_objects())
# A line of code, with the lines that it is continued on, or code in the text.
CODE = [
    *re.findall(r"^ {4,}(?:- )?((?:.*\\\n)*.*)$", DOCUMENT, re.MULTILINE),
    *re.findall(r"`([^`]+)`", DOCUMENT.replace("\n", " ")),
]


def commands(program: str) -> list[list[str]]:
    """Each command line of a program, in words, without what is redirected."""
    found = [shlex.split(code.replace("\\\n", " ")) for code in CODE if code.strip().startswith(f"{program} ")]
    assert found, program
    return [list(itertools.takewhile(lambda word: word not in ("<", ">", "|"), words[1:])) for words in found]


def test_commands_of_charter_are_taken() -> None:
    for words in commands("charter"):
        command: Any = typer.main.get_command(app)
        options = {option: one for one in command.params for option in one.opts}
        rest = [word for word in words if word != "..."]
        while rest:
            word = rest.pop(0)
            if word.startswith("-"):
                assert word in options, f"charter {' '.join(words)}: {word}"
                if not getattr(options[word], "is_flag", False) and rest:
                    rest.pop(0)
            elif hasattr(command, "commands"):
                assert word in command.commands, f"charter {' '.join(words)}: {word}"
                command = command.commands[word]
                command = command.load() if isinstance(command, LazyCommand) else command
                options |= {option: one for one in command.params for option in one.opts}


def test_images_are_built_from_targets_that_exist() -> None:
    targets = {argument.split()[-1] for name, argument in instructions() if name == "FROM"}
    used = {container["image"] for _, _, container in containers(OBJECTS)}
    for words in commands("docker"):
        if words == ["build"]:
            continue
        assert words[0] == "build", words
        assert (ROOT / words[words.index("-f") + 1]).is_file()
        assert words[words.index("--target") + 1] in targets
        assert words[words.index("-t") + 1] in used


def exists(kind: str, name: str) -> bool:
    """Whether an object is in a manifest, or is a pod or claim of one."""
    kinds = {"svc": "Service", "pvc": "PersistentVolumeClaim"}
    names = {one["metadata"]["name"] for one in OBJECTS if one["kind"].lower() == kinds.get(kind, kind).lower()}
    if kind == "pod":
        names |= {f"{one['metadata']['name']}-0" for one in of_kind(OBJECTS, "StatefulSet")}
    return name in names


def test_kubectl_is_given_files_and_objects_that_exist() -> None:
    seen = set()
    for words in commands("kubectl"):
        line = " ".join(words)
        if "-n" in words:
            assert words[words.index("-n") + 1] == "charter", line
        for option, check in (("-k", "kustomization.yaml"), ("-f", "")):
            if option in words[:-1] and not (target := words[words.index(option) + 1]).isupper():
                assert (ROOT / target / check).is_file(), line
        words = [word for word in words if word not in ("-n", "charter")]
        seen.add(words[0])
        for word in words:
            if match := re.fullmatch(r"(pod|svc|statefulset|deployment)/([a-z0-9-]+)", word):
                assert exists(match[1], match[2]), line
        match words:
            case ["exec", *rest]:
                assert exists("pod", next(word for word in rest if not word.startswith("-"))), line
            case ["delete", kind, *rest]:
                assert exists(kind, rest[-1]), line
            case ["cp", _, target]:
                assert exists("pod", target.partition(":")[0]), line
            case ["port-forward", target, ports]:
                service = next(one for one in of_kind(OBJECTS, "Service") if f"svc/{one['metadata']['name']}" == target)
                assert int(ports.partition(":")[2]) in {port["port"] for port in service["spec"]["ports"]}, line
            case ["create", "secret", "generic", name, *literals]:
                keys = {literal.removeprefix("--from-literal=").partition("=")[0] for literal in literals}
                asked = {
                    entry["valueFrom"]["secretKeyRef"]["key"]
                    for _, _, container in containers(OBJECTS)
                    for entry in container.get("env", ())
                    if entry.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == name
                }
                # The driver of JuiceFS reads its own.
                assert asked <= keys if name != "artifacts-s3" else "metaurl" in keys, line
    assert {"apply", "exec", "scale", "create", "port-forward"} <= seen


def test_files_and_folders_exist() -> None:
    for path in re.findall(r"`((?:deploy|examples|tests|docs|protos|services)/[^`* ]*|skaffold.yaml)`", DOCUMENT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"^ +- (?:resources: )?(\.\./\.\./[a-z0-9/-]+)", DOCUMENT, re.MULTILINE):
        assert (ROOT / "deploy/overlays/mine" / path / "kustomization.yaml").resolve().is_file(), path


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", DOCUMENT.replace("\n", " ")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_variables_are_read_somewhere() -> None:
    text = "".join(
        path.read_text()
        for place in ("services", "tests", "deploy", "Makefile")
        for path in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
        if path.is_file() and path.suffix in ("", ".py", ".yaml") and path.name != "test_kubernetes_docs.py"
    )
    for name in set(re.findall("CHARTER_[A-Z_]+", DOCUMENT)):
        # Names like CHARTER_POLICY_ADDRESS are put together.
        assert name in text or re.fullmatch(r"CHARTER_(POLICY|JUDGE|PREFERENCE|TRAINER)(_CONTROL)?_ADDRESS", name), name


def test_metrics_are_in_their_document() -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    for name in re.findall(r"`(charter_[a-z_]+)", DOCUMENT):
        assert f"`{name}`" in known, name


def test_the_table_of_components_has_each_and_says_what_it_needs() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \|", DOCUMENT.partition("## Sizes")[0], re.MULTILINE))
    assert rows.keys() == {component.name for component in COMPONENTS}
    for name, operator in OPERATORS.items():
        assert rows[name].startswith(operator.name), rows[name]


def test_ports_and_rights_are_those_of_the_code() -> None:
    named = {
        port["name"]: port["containerPort"]
        for name, _, container in containers(render(BASE))
        if name in (*SERVICES, "worker")
        for port in container["ports"]
    }
    for name, number in re.findall(r"`([a-z-]+)` (\d{4,5})\b", DOCUMENT.partition("## From an empty")[0]):
        assert named[name] == int(number), name
    rights = DOCUMENT[DOCUMENT.index("You need these rights") :].partition("\n\n")[0]
    for _, resource, verb in RIGHTS:
        assert verb in rights
        assert resource in rights
