"""The second bundled model: pictures of any size at their own resolution, a stock Qwen3-VL."""
