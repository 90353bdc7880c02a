"""One model on several ranks, by `torch.distributed`: NCCL on GPUs, gloo on CPUs."""
