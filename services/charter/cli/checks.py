"""What must hold before a run is worth starting. Everything wrong is said at once."""

from collections.abc import Iterator
from pathlib import Path

from charter.cli.calls import channel_to, health
from charter.cli.services import endpoint
from charter.rpc.channel import QUICK
from charter.spec.constitution import load_constitution
from charter.spec.facts import needs_reinforcement, needs_store
from charter.spec.served import judge_problems, policy_problems
from charter.v1 import judge_pb2, judge_pb2_grpc, policy_pb2, policy_pb2_grpc, run_pb2


def problems(spec: run_pb2.RunSpec) -> list[str]:
    """Why the run that ``spec`` describes (addresses filled in) cannot start now; empty when it can."""
    asks = needs_reinforcement(spec)
    return list(_unhealthy(spec)) or ([*_other_policy(spec), *_other_judge(spec)] if asks else [])


def _unhealthy(spec: run_pb2.RunSpec) -> Iterator[str]:
    """Of the services that the run asks."""
    asks = needs_reinforcement(spec)
    addresses = [("policy", address) for address in spec.services.policy] if asks else []
    addresses += [("judge", spec.services.judge)] if asks else []
    addresses += [("preference", spec.services.preference)] if needs_store(spec) else []
    addresses += [("trainer", endpoint("trainer").main)]
    for name, address in addresses:
        match health(name, address):
            case "SERVING":
                continue
            case "NOT_SERVING" if spec.services.gpu_sharing > run_pb2.GPU_SHARING_TOGETHER:
                # Left asleep by a worker that died: the next one wakes it.
                continue
            case "NOT_SERVING":
                yield f"the {name} service at {address} is not serving yet; `charter status` tells when it is"
            case "ANOTHER SERVICE":
                yield f"what listens at {address} is not a {name} service"
            case _:
                yield f"the {name} service at {address} cannot be reached"


def _other_policy(spec: run_pb2.RunSpec) -> Iterator[str]:
    for address in spec.services.policy:
        with channel_to("policy", address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            served = stub.GetModelInfo(policy_pb2.PolicyServiceGetModelInfoRequest(), timeout=QUICK).model
        yield from policy_problems(spec, address, served)


def _other_judge(spec: run_pb2.RunSpec) -> Iterator[str]:
    address = spec.services.judge
    with channel_to("judge", address) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        served = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK)
        constitution = stub.GetConstitution(judge_pb2.GetConstitutionRequest(), timeout=QUICK).constitution
    yield from judge_problems(spec, address, served)
    if spec.judge.constitution and constitution.digest != load_constitution(Path(spec.judge.constitution)).digest:
        yield (
            f"the judge service at {address} holds the constitution `{constitution.name}` version "
            f"{constitution.version}, which is not what {spec.judge.constitution} says"
        )
