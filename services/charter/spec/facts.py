"""What a filled run spec implies."""

from charter.v1 import run_pb2


def needs_preference_model(spec: run_pb2.RunSpec) -> bool:
    """Whether a preference model scores the answers: not when only others do, or the judge compares pairs."""
    compares = spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO
    return spec.reward.preference_weight > 0 and not compares
