"""Logical axes of the generator's parameters, by path; `eqjax.sharding` maps them to a mesh.

Letters: E width, H heads, d head size, T condition tokens, W flow width, D latent size. Arrays of
stacked layers have their depth as the first axis, which is never sharded.
"""

# The first pattern applies that is found in the path and has as many axes as the array.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"\bclass_embedding$", (None, "embed")),  # [classes, E]
    (r"\bcond_positions$", (None, "embed")),  # [T, E]
    (r"\blatent_proj/kernel$", (None, "embed")),  # [D, E]
    # Blocks are sharded by heads and by hidden channels, so attention and MLP end in one all-reduce each.
    (r"\bblocks/self_qkv/kernel$", (None, "embed", None, "heads", None)),  # [depth, E, 3, H, d]
    (r"\bblocks/self_qkv/bias$", (None, None, "heads", None)),
    (r"\bblocks/cross_(query|key|value)/kernel$", (None, "embed", "heads", None)),  # [depth, E, H, d]
    (r"\bblocks/cross_(query|key|value)/bias$", (None, "heads", None)),
    (r"\bblocks/(self|cross)_out/kernel$", (None, "heads", None, "embed")),  # [depth, H, d, E]
    (r"\bblocks/mlp_in/kernel$", (None, "embed", "mlp")),  # [depth, E, 4E]
    (r"\bblocks/mlp_in/bias$", (None, "mlp")),
    (r"\bblocks/mlp_out/kernel$", (None, "mlp", "embed")),  # [depth, 4E, E]
    # The same for the blocks of the flow head; modulations are sharded along the channels that they modulate.
    (r"\bflow_head/blocks_\d+/mlp_in/kernel$", ("embed", "mlp")),  # [W, W]
    (r"\bflow_head/blocks_\d+/mlp_in/bias$", ("mlp",)),
    (r"\bflow_head/blocks_\d+/mlp_out/kernel$", ("mlp", "embed")),
    (r"\bflow_head/modulation/kernel$", ("embed", None, None, "mlp")),  # [W, flow depth, 3, W]
    (r"\bflow_head/final_modulation/kernel$", ("embed", None, "mlp")),  # [W, 2, W]
    (r"\bflow_head/(input_proj|time_in|context_proj)/kernel$", (None, "embed")),
    (r"\bflow_head/(time_out|output_proj)/kernel$", ("embed", None)),
)
