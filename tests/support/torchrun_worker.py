"""Stands for the worker under torchrun: each process adds its rank to the others', and ends as a stopped one."""

import sys

import torch
import torch.distributed as dist

if __name__ == "__main__":
    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {int(total)}", flush=True)  # noqa: T201
    dist.destroy_process_group()
    print("stopped", file=sys.stderr)  # noqa: T201
    sys.exit(3)
