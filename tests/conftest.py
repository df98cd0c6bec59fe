import os

# Before torch: one thread per worker. Models here are tiny, and two workers with two threads each would fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
