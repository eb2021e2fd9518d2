"""Logical axes of the generator's parameters, by path; `eqjax.sharding` maps them to a mesh.

Letters: E width, H heads, d head_dim, T condition tokens, W flow width, D latent size. Arrays of
stacked layers come with their depth first, which is never split.
"""

# The first pattern found in a path, with as many axes as the array has dimensions, counts.
LOGICAL_AXES = (
    (r"\bclass_embedding$", (None, "embed")),  # [classes, E]
    (r"\bcond_positions$", (None, "embed")),  # [T, E]
    (r"\blatent_proj/kernel$", (None, "embed")),  # [D, E]
    # Blocks: split by heads and by hidden channels, so that each of attention and MLP ends in one sum.
    (r"\bblocks/self_qkv/kernel$", (None, "embed", None, "heads", None)),  # [depth, E, 3, H, d]
    (r"\bblocks/self_qkv/bias$", (None, None, "heads", None)),
    (r"\bblocks/cross_(query|key|value)/kernel$", (None, "embed", "heads", None)),  # [depth, E, H, d]
    (r"\bblocks/cross_(query|key|value)/bias$", (None, "heads", None)),
    (r"\bblocks/(self|cross)_out/kernel$", (None, "heads", None, "embed")),  # [depth, H, d, E]
    (r"\bblocks/mlp_in/kernel$", (None, "embed", "mlp")),  # [depth, E, 4E]
    (r"\bblocks/mlp_in/bias$", (None, "mlp")),
    (r"\bblocks/mlp_out/kernel$", (None, "mlp", "embed")),  # [depth, 4E, E]
    # Flow head: the same in its blocks; modulations are split along the channels that they modulate.
    (r"\bflow_head/blocks_\d+/mlp_in/kernel$", ("embed", "mlp")),  # [W, W]
    (r"\bflow_head/blocks_\d+/mlp_in/bias$", ("mlp",)),
    (r"\bflow_head/blocks_\d+/mlp_out/kernel$", ("mlp", "embed")),
    (r"\bflow_head/modulation/kernel$", ("embed", None, None, "mlp")),  # [W, flow depth, 3, W]
    (r"\bflow_head/final_modulation/kernel$", ("embed", None, "mlp")),  # [W, 2, W]
    (r"\bflow_head/(input_proj|time_in|context_proj)/kernel$", (None, "embed")),
    (r"\bflow_head/(time_out|output_proj)/kernel$", ("embed", None)),
)
