"""Sizes of NVIDIA GPUs by which work is divided."""

# Programs that run at once: multiprocessors of an H100. Other GPUs run them in several waves, or leave some idle.
PROGRAMS = 132
LEAST = 16  # Rows and columns of the smallest products on tensor cores.
