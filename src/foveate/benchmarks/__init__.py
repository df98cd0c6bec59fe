"""What pruning costs and saves: time, memory, cache and FLOPs against the bound, and the price of reading saliency."""
