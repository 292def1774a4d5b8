"""Stands for the worker under torchrun: every process adds its rank to the others'."""

import torch
import torch.distributed as dist

if __name__ == "__main__":
    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank() + 1)
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {int(total)}", flush=True)  # noqa: T201
    dist.destroy_process_group()
