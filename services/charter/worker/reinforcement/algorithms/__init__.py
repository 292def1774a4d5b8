"""The algorithms by their number in the spec."""

from charter.v1 import run_pb2
from charter.worker.reinforcement.algorithms.base import Algorithm
from charter.worker.reinforcement.algorithms.grpo import Grpo
from charter.worker.reinforcement.algorithms.online_dpo import OnlineDpo
from charter.worker.reinforcement.algorithms.ppo import Ppo
from charter.worker.reinforcement.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from charter.worker.reinforcement.algorithms.rloo import Rloo

ALGORITHMS: dict["run_pb2.Algorithm.ValueType", type[Algorithm]] = {
    run_pb2.ALGORITHM_PPO: Ppo,
    run_pb2.ALGORITHM_GRPO: Grpo,
    run_pb2.ALGORITHM_RLOO: Rloo,
    run_pb2.ALGORITHM_REINFORCE_PLUS_PLUS: ReinforcePlusPlus,
    run_pb2.ALGORITHM_ONLINE_DPO: OnlineDpo,
}
