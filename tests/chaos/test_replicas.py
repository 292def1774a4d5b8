"""Replicas of policy and judge that die, hang, come back and refuse, as processes under a real client of the worker.

The fake engine draws its answers from the seed of each prompt, so the answers of an undisturbed run are the ones that
every disturbed run must give: none lost, none twice, none from somewhere else.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.rpc.errors import ServiceError
from charter.runs.artifacts import Artifacts
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker.clients.services import Services
from charter.worker.errors import Cancelled
from charter.worker.reporter import Reporter

from tests.support.processes import Process
from tests.support.worker_services import CONSTITUTION
from tests.support.worker_trainer import listening

pytestmark = pytest.mark.timeout(900)

PROMPTS = [(ChatMessage("user", f"Question {number}?"),) for number in range(24)]
SAMPLING = run_pb2.SamplingSpec(temperature=1.0, max_new_tokens=48)
# About a second for the longest answer: long enough to be in the middle of it.
SLOW = "--setting=seconds_per_token=0.02"

OnWait = Callable[[str], bool]


def policies(stack: ExitStack, folder: Path, *settings: str, count: int) -> list[Process]:
    """Serving replicas of a fake policy."""
    arguments = ("--model=fake", "--engine=fake", *settings)
    found = [stack.enter_context(Process(folder, "policy", *arguments)) for _ in range(count)]
    for one in found:
        one.wait_serving()
    return found


@contextmanager
def client(
    folder: Path,
    replicas: list[Process],
    *,
    judges: list[Process] | None = None,
    on_wait: OnWait = lambda text: False,
) -> Iterator[Services]:
    """The worker's client; ``on_wait`` hears what the run says while it waits, True stops the run."""
    judged = [one.main for one in judges or replicas[:1]]
    addresses = run_pb2.ServiceAddresses(
        policy=[one.main for one in replicas],
        policy_control=[one.control for one in replicas],
        judge=judged[0],
        judge_replicas=judged[1:],
        preference="127.0.0.1:9",
        preference_control="127.0.0.1:9",
    )
    with listening(lambda event: on_wait(event.text)) as (trainer, _):
        reporter = Reporter(Artifacts(folder / "run", "run"), "run", 1, trainer)
        services = Services(addresses, reporter)
        try:
            yield services
        finally:
            services.close()
            reporter.close()


def send(services: Services, version: int) -> None:
    services.policy.send({"w": torch.full((4,), float(version))}, version)


def generate(services: Services, version: int = 1, samples: int = 2) -> list[list[str]]:
    found = services.policy.generate(PROMPTS, SAMPLING, version=version, seed=3, samples_per_prompt=samples)
    return [[answer.text for answer in answers] for answers in found]


def until_ready(services: Services, count: int) -> None:
    """Wait until so many replicas of the policy take calls, as the worker's own dispatch does."""
    replicas = services.policy.replicas
    with replicas.changed:
        assert replicas.changed.wait_for(lambda: len(replicas.ready()) == count, timeout=120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[str]]]:
    """The answers of one healthy replica, by weight version."""
    folder = tmp_path_factory.mktemp("undisturbed")
    answers = {}
    with ExitStack() as stack:
        replicas = policies(stack, folder, count=1)
        with client(folder, replicas) as services:
            for version in (1, 2):
                send(services, version)
                answers[version] = generate(services, version)
    assert answers[1] != answers[2]
    return answers


def test_work_is_shared_and_gives_the_same_answers(tmp_path: Path, undisturbed: dict[int, list[list[str]]]) -> None:
    with ExitStack() as stack:
        replicas = policies(stack, tmp_path, SLOW, count=3)
        with client(tmp_path, replicas) as services:
            send(services, 1)
            assert generate(services) == undisturbed[1]
        started = 'grpc_server_started_total{grpc_method="Generate"'
        assert all(one.metric(started) >= 1 for one in replicas)


def test_a_replica_killed_in_the_middle_loses_nothing_and_catches_up(
    tmp_path: Path, undisturbed: dict[int, list[list[str]]]
) -> None:
    with ExitStack() as stack:
        replicas = policies(stack, tmp_path, SLOW, count=3)
        victim = replicas[0]
        with client(tmp_path, replicas) as services, ThreadPoolExecutor() as threads:
            send(services, 1)
            answers = threads.submit(generate, services)
            # Some of its answers are out, others are not.
            victim.wait_metric("charter_policy_samples_total", 1)
            victim.kill()
            assert answers.result(120) == undisturbed[1]
            # A restarted one has lost its weights: it is brought to the newest by itself, and takes calls again.
            victim.start()
            until_ready(services, 3)
            assert (victim.version(), victim.health()) == (1, "SERVING")
            send(services, 2)
            assert generate(services, 2) == undisturbed[2]
            assert victim.metric("charter_policy_samples_total") >= 1


def test_a_hung_replica_does_not_stop_a_step_or_an_update(
    tmp_path: Path, undisturbed: dict[int, list[list[str]]]
) -> None:
    with ExitStack() as stack:
        replicas = policies(stack, tmp_path, count=3)
        late = replicas[1]
        with client(tmp_path, replicas) as services:
            send(services, 1)
            until_ready(services, 3)
            # It still counts as ready: its share is taken over by those that finish.
            late.suspend()
            assert generate(services) == undisturbed[1]
            # The update goes on without it.
            send(services, 2)
            assert generate(services, 2) == undisturbed[2]
            late.resume()
            until_ready(services, 3)
            assert late.version() == 2


def test_with_all_replicas_gone_the_run_says_so_and_goes_on(
    tmp_path: Path, undisturbed: dict[int, list[list[str]]]
) -> None:
    said: list[str] = []
    with ExitStack() as stack:
        replicas = policies(stack, tmp_path, count=2)

        def on_wait(text: str) -> bool:
            if text.startswith("waiting") and not said:
                said.append(text)
                replicas[1].start()
            return False

        with client(tmp_path, replicas, on_wait=on_wait) as services:
            send(services, 1)
            for one in replicas:
                one.kill()
            assert generate(services) == undisturbed[1]
    assert "none of 2 replicas of the policy service can be used" in said[0]
    assert replicas[0].control in said[0]


def test_a_waiting_run_can_be_stopped(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (replica,) = policies(stack, tmp_path, count=1)
        with client(tmp_path, [replica], on_wait=lambda text: text.startswith("waiting")) as services:
            send(services, 1)
            replica.kill()
            with pytest.raises(Cancelled):
                generate(services)


def test_weights_of_somebody_else_stop_the_run(tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicas = policies(stack, tmp_path, count=2)
        with client(tmp_path, replicas) as services, client(tmp_path / "other", replicas[:1]) as other:
            send(services, 1)
            until_ready(services, 2)
            other.policy.send({"w": torch.zeros(4)}, 1)
            with pytest.raises(RuntimeError, match="version 1 of somebody else"):
                services.policy.replicas.check_own()


def test_a_fault_on_one_replica_is_made_good_and_one_on_all_ends_the_run(
    tmp_path: Path, undisturbed: dict[int, list[list[str]]]
) -> None:
    with ExitStack() as stack:
        (sound,) = policies(stack, tmp_path, SLOW, count=1)
        (broken,) = policies(stack, tmp_path, "--setting=fail_every=1", count=1)
        with client(tmp_path, [sound, broken]) as services:
            send(services, 1)
            until_ready(services, 2)
            assert generate(services) == undisturbed[1]
        with client(tmp_path, [broken]) as services:
            send(services, 2)
            with pytest.raises(ServiceError, match="INTERNAL"):
                generate(services, 2)


def test_the_only_judge_killed_in_the_middle_loses_no_judgement(tmp_path: Path) -> None:
    """Before the first judgement has come: then gRPC would have tried the call again, and never ended it."""
    constitution = tmp_path / "constitution.yaml"
    constitution.write_text(CONSTITUTION)
    arguments = ("--model=fake", f"--constitution={constitution}", "--engine=fake", "--setting=latency_seconds=0.3")
    items = [
        judge_pb2.ComparisonItem(
            id=f"pair-{number}",
            prompt=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Well?")],
            answer_a=f"Yes {number}.",
            answer_b="No.",
        )
        for number in range(40)
    ]
    options = judge_pb2.JudgingOptions(seed=1)
    with ExitStack() as stack:
        judge = stack.enter_context(Process(tmp_path, "judge", *arguments, control=False))
        judge.wait_serving()
        with client(tmp_path, [judge], judges=[judge]) as services, ThreadPoolExecutor() as threads:
            expected = services.judge.compare(items, options)
            started = 'grpc_server_started_total{grpc_method="Compare"'
            before = judge.metric(started)
            assert services.judge.info().model.model == "fake"
            answers = threads.submit(services.judge.compare, items, options)
            judge.wait_metric(started, before + 1)
            judge.kill()
            judge.start()
            judged = answers.result(120)
        assert judged.keys() == expected.keys()
        assert all(judged[name].probability_a == expected[name].probability_a for name in expected)


def test_names_are_resolved_to_replicas_and_followed(tmp_path: Path) -> None:
    """A headless service stands behind one name; here the name is localhost, and has one address."""
    with ExitStack() as stack:
        (replica,) = policies(stack, tmp_path, count=1)
        main, control = (
            address.replace("127.0.0.1", "dns:///localhost") for address in (replica.main, replica.control)
        )
        addresses = run_pb2.ServiceAddresses(
            policy=[main], policy_control=[control], judge=replica.main, preference=replica.main
        )
        services = Services(addresses, Reporter(Artifacts(tmp_path / "named", "run"), "run", 1, ""))
        try:
            send(services, 1)
            assert len(generate(services)) == len(PROMPTS)
        finally:
            services.close()
