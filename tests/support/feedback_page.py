"""The feedback page as a person meets it: real services behind it, a real web server before it."""

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from charter.data.bad_rows import BadRows
from charter.feedback.app import build
from charter.feedback.labellers import Labellers
from charter.feedback.room import FeedbackConfig, Room
from charter.policy.server import PolicyConfig
from charter.policy.server import build as build_policy
from charter.preference.server import PreferenceConfig
from charter.preference.server import build as build_preference
from charter.rpc.channel import QUICK, connect
from charter.spec.constitution import load_constitution
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2

from tests.support.harness import running

TOKENS = {"ann": "token-of-ann-0123456789", "ben": "token-of-ben-0123456789"}


@dataclass(frozen=True)
class Addresses:
    """Where the two services are that the page needs."""

    policy: str
    preference: str

    def labels(self) -> list[types_pb2.Comparison]:
        """Everything that is stored, oldest first."""
        with connect(self.preference) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            pages = stub.StreamComparisons(preference_pb2.StreamComparisonsRequest(), timeout=QUICK)
            return [comparison for page in pages for comparison in page.comparisons]

    def add(self, *comparisons: types_pb2.Comparison) -> None:
        """Store comparisons."""
        with connect(self.preference) as channel:
            request = preference_pb2.AddComparisonsRequest(request_id="before", comparisons=comparisons)
            preference_pb2_grpc.PreferenceServiceStub(channel).AddComparisons(request, timeout=QUICK)


@contextmanager
def feedback_services(folder: Path, tiny_model: Path, seconds_per_token: float = 0.0) -> Iterator[Addresses]:
    """A policy that writes with the fake engine, and a preference service with an empty store."""
    policy = PolicyConfig("fake", folder, engine="fake", engine_settings={"seconds_per_token": seconds_per_token})
    preference = PreferenceConfig({"default": str(tiny_model)}, f"sqlite:///{folder}/feedback.db", folder / "staging")
    with running(build_policy(policy)) as at_policy, running(build_preference(preference)) as at_preference:
        yield Addresses(at_policy.main, at_preference.main)


def config(at: Addresses, folder: Path, files: Iterable[Path] = (), **settings: Any) -> FeedbackConfig:
    """A page for Ann and Ben."""
    return FeedbackConfig(
        policy=at.policy,
        preference=at.preference,
        labellers=Labellers(TOKENS),
        chats=folder / "chats.jsonl",
        files={str(file): BadRows() for file in files},
        **settings,
    )


def constitution_of(file: Path) -> Any:
    """The proto of a constitution's file."""
    return load_constitution(file).to_proto()


def write_pairs(file: Path, count: int, answer: str = "Answer") -> Path:
    """Pairs whose answers name their number and which of the two they are."""
    rows = [
        {"prompt": f"Question {n}?", "answer_a": f"{answer} {n} one", "answer_b": f"{answer} {n} two"}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@contextmanager
def served(settings: FeedbackConfig, port: int = 0) -> Iterator[str]:
    """Serve the page in a thread; yields its address."""
    ready = threading.Event()
    result: list[Any] = []

    async def main() -> None:
        room = Room(settings)
        await room.start()
        server = uvicorn.Server(
            uvicorn.Config(build(room), host="127.0.0.1", port=port, log_level="critical", lifespan="off")
        )
        task = asyncio.create_task(server.serve())
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        result.append(server)
        ready.set()
        await task
        await room.stop()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            result.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="feedback page")
    thread.start()
    ready.wait(60)
    if isinstance(result[0], BaseException):
        thread.join()
        raise result[0]
    server = result[0]
    bound = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{bound}"
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(30)
