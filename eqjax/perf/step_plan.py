"""The analysis behind eqjax.cli.plan: a compiled step's memory and collectives, and what they take in time."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pretrained, sharding
from eqjax.generator import LOGICAL_AXES
from eqjax.latent_cache.check import encoding_params
from eqjax.perf import chips, flops
from eqjax.tokenizer import Tokenizer
from eqjax.training import loop, optim
from eqjax.training.generator import make_steps
from eqjax.training.state import TrainState

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def lower(config, devices, columns):
    """The training step on latents, lowered from shapes alone.

    Args:
      config: a generator's configuration; its mesh is used.
      devices: the devices of the mesh.
      columns: L of the training images.

    Returns:
      The lowered step, its state and batch as jax.ShapeDtypeStruct, and the FLOPs of the model.
    """
    config = config.copy_and_resolve_references()
    config.total_steps = max(config.total_steps, 1)
    generator = pretrained.build_module("generator", dict(config.generator))
    optimizer, _ = optim.make_optimizer(config.optimizer, config.total_steps)
    steps = make_steps(generator, optimizer, lambda frozen, batch, key: (batch["latents"], batch["label"]), config)
    step, plain_step = (jax.tree_util.Partial(step, {}) for step in steps)

    def init(key):
        params = generator.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))

    mesh, key = sharding.make_mesh(devices, config.mesh), jax.random.key(0)
    sharding.check_batch(mesh, config.batch_size, config.accumulation_steps)
    state = loop.abstract_state(init, LOGICAL_AXES, mesh, key)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.BATCH_AXES))
    batch = {
        "latents": jax.ShapeDtypeStruct((config.batch_size, columns, generator.latent_dim), "float32", sharding=rows),
        "label": jax.ShapeDtypeStruct((config.batch_size,), "int32", sharding=rows),
    }
    needed = flops.count(plain_step, state, batch, key)
    return loop.compile_step(step, LOGICAL_AXES, mesh, state, key).lower(state, batch), state, batch, needed


def encoder_bytes(config):
    """Bytes of the encoder's parameters, which every device holds where a step reads images; 0 for cached latents.

    Of the tokenizer that the configuration names; of the published one where it names none, or one that is not here.
    """
    if config.data.source == "latents":
        return 0
    try:
        params = pretrained.load(pretrained.resolve_path(config.tokenizer_weights or "")).params["tokenizer"]
    except FileNotFoundError:
        params = pretrained.abstract_params(Tokenizer())
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(encoding_params(params)))


def analyze(config, chips, columns=16):
    """Memory by kind, FLOPs and traffic of one step on a mesh of `chips` devices, as JSON values.

    Raises:
      ValueError: a configuration of another stage, a mesh or a batch that does not fit, or too few devices.
    """
    if "generator" not in config:
        raise ValueError(
            f"--config has trainer={config.get('trainer')!r}, but only a generator's step is planned; give a "
            "configuration such as configs/imagenet_generator.py."
        )
    devices = jax.devices()
    if len(devices) < chips:
        raise ValueError(f"there are {len(devices)} devices, not {chips}; start through `python -m eqjax.cli.plan`.")
    lowered, state, batch, needed = lower(config, devices[:chips], columns)
    compiled = lowered.compile()
    memory = {
        "parameters": _local_bytes(state.params),
        "averages": _local_bytes(state.ema_params),
        "frozen encoder": encoder_bytes(config),
        "optimizer": _local_bytes(state.opt_state),
        "batch": _local_bytes(batch),
        "intermediate values and gradients": int(compiled.memory_analysis().temp_size_in_bytes),
    }
    return {
        "model": f"width {config.generator.width}, depth {config.generator.depth}, {config.generator.dtype}, "
        f"remat {config.generator.remat}",
        "chips": chips,
        "mesh": config.mesh,
        "batch_size": config.batch_size,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "memory": memory,
        "flops": needed,
        "float32": str(config.generator.dtype) == "float32",
        "traffic": traffic(compiled.as_text()),
    }


def _local_bytes(tree):
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# ── Traffic ─────────────────────────────────────────────────────────────────────────────────────


def traffic(text):
    """Collectives of a compiled program, loops unrolled.

    Args:
      text: the program, as `compiled.as_text()` gives it.

    Returns:
      [{"kind", "group" (devices in a group), "span" (largest distance of their numbers, plus 1),
      "count" (calls), "bytes" (that one device sends, in rings)}] per kind and group.
    """
    found = {}
    for body, times in _computations(text):
        for line in body:
            match = re.search(rf"= (.+?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line)
            if match is None:
                continue
            kind, groups = match[2], _groups(line)
            size, span = groups.shape[1], int(np.ptp(groups, axis=1).max()) + 1
            if size == 1:
                continue
            # The result of an all-gather and of an all-reduce is whole, that of a reduce-scatter a part.
            whole = _result_bytes(match[1], bool(match[3])) * (size if kind == "reduce-scatter" else 1)
            share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)
            entry = found.setdefault((kind, size, span), {"count": 0, "bytes": 0})
            entry["count"] += times
            entry["bytes"] += times * share * whole
    return [{"kind": k, "group": g, "span": s, **entry} for (k, g, s), entry in sorted(found.items())]


def _computations(text):
    """(lines, how often they run) of every computation that the entry reaches."""
    bodies, name = {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = "ENTRY" if head[1] else head[2]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    times, waiting = {"ENTRY": 1}, ["ENTRY"]
    while waiting:
        name = waiting.pop()
        for line in bodies[name]:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", line):
                if callee in bodies:
                    times[callee] = times.get(callee, 0) + times[name] * (int(trips[1]) if trips else 1)
                    waiting.append(callee)
    return [(bodies[name], count) for name, count in times.items()]


def _groups(line):
    """Device numbers of a collective, one row per group: written out, as a shape and a permutation, or as mesh axes."""
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    )
    if mesh:
        return _mesh_groups(mesh[1], mesh[4], mesh[2] and _permuted(mesh[2], mesh[3]))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return _permuted(iota[2], iota[3]).reshape(_integers(iota[1]))
    pairs = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", line)
    if pairs is None:
        raise ValueError(f"no groups of devices in: {line.strip()[:200]}")
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", pairs[1])])


def _integers(text):
    return [int(n) for n in text.split(",")]


def _permuted(dims, order):
    """0, 1, … in a shape, "4,2", its axes in another order, "1,0" (None: as they are)."""
    numbers = np.arange(math.prod(_integers(dims))).reshape(_integers(dims))
    return numbers.transpose(_integers(order)) if order else numbers


def _mesh_groups(sizes, axes, devices):
    """Groups along axes of a mesh: "'a'=4,'b'=2" and "'a'", or "'a':(2)2" for a part of an axis (after 2, of 2).

    `devices`: their numbers in the mesh's order; None: counted through.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    shape, chosen = [], []
    for name, size in sizes.items():
        parts = sorted((int(before or 1), int(part or size)) for axis, before, part in wanted if axis == name)
        done = 1
        for before, part in parts:
            shape += [before // done, part]
            chosen.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    numbers = np.arange(math.prod(shape)) if devices is None else devices
    numbers = numbers.reshape(shape)
    numbers = np.moveaxis(numbers, chosen, range(-len(chosen), 0))
    return numbers.reshape(-1, math.prod(shape[i] for i in chosen))


def _result_bytes(kind, started):
    """Bytes of "(f32[2,3]{1,0}, …)"; a started collective's result holds its operands first."""
    sizes = [
        _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", kind)
    ]
    return sum(sizes[len(sizes) // 2 :] if started and len(sizes) > 1 else sizes)


# ── Time ────────────────────────────────────────────────────────────────────────────────────────


def find_chip(name):
    """The `eqjax.perf.chips.Chip` of a name.

    Raises:
      ValueError: an unknown chip.
    """
    if name not in chips.CHIPS:
        raise ValueError(f"--on={name!r} is not in the table: {', '.join(chips.CHIPS)}.")
    return chips.CHIPS[name]


def estimate(plan, name, encoder_flops=0.0):
    """Step time of a plan on a chip: the largest of three terms where they overlap fully, their sum where not.

    compute: FLOPs at the bfloat16 peak (half of it for float32 as TF32 on GPUs; a sixth on TPUs, where
    a float32 product takes six passes). memory: state read and written once, intermediate values written
    and read once. network: what a device sends, over the fast links where a group lies within a node.

    Args:
      plan: of `analyze`.
      name: of a chip in `eqjax.perf.chips.CHIPS`.
      encoder_flops: added per image.

    Returns:
      A dict of JSON values.

    Raises:
      ValueError: as `find_chip`.
    """
    chip = find_chip(name)
    slower = 1 if not plan["float32"] else 6 if name.startswith("v") else 2
    work = (plan["flops"] + encoder_flops * plan["batch_size"]) / plan["chips"]
    state = sum(plan["memory"][part] for part in ("parameters", "averages", "optimizer"))
    moved = 2 * (state + plan["memory"]["intermediate values and gradients"])
    sent = [entry["bytes"] / (chip.link if entry["span"] <= chip.node else chip.network) for entry in plan["traffic"]]
    terms = {"compute": work * slower / chip.flops, "memory": moved / chip.bandwidth, "network": sum(sent)}
    longest = max(terms, key=terms.get)
    total = sum(plan["memory"].values())
    return {
        "chip": name,
        "fits": total <= chip.memory,
        "memory_share": total / chip.memory,
        "terms": terms,
        "bound": longest,
        "seconds": [terms[longest], sum(terms.values())],
        "utilization": [work / chip.flops / seconds for seconds in (terms[longest], sum(terms.values()))],
    }


def text(plan, estimates):
    """A plan for people."""
    rows = [
        f"{plan['model']}: {plan['parameters'] / 1e6:.1f} M parameters, batch {plan['batch_size']}, "
        f"{plan['chips']} chips as {plan['mesh']}",
        "memory per device, GB:",
        *(f"  {size / 1e9:9.3f}  {part}" for part, size in plan["memory"].items()),
        f"  {sum(plan['memory'].values()) / 1e9:9.3f}  together",
        f"FLOPs of the model per step: {plan['flops']:.4g}, per device {plan['flops'] / plan['chips']:.4g}",
        "sent per device and step, GB:",
        *(
            f"  {entry['bytes'] / 1e9:9.3f}  {entry['kind']} × {entry['count']} in groups of {entry['group']}"
            for entry in plan["traffic"]
        ),
        "chip      fits    step, ms (terms overlap … do not)   utilization   bound by",
    ]
    for item in estimates:
        low, high = (1e3 * seconds for seconds in item["seconds"])
        best, worst = (100 * share for share in item["utilization"])
        fits = f"{100 * item['memory_share']:.0f} %"
        rows.append(f"{item['chip']:8}{fits:>7}    {low:10.1f} … {high:<10.1f}           "
                    f"{best:3.0f} … {worst:.0f} %     {item['bound']}")  # fmt: skip
    return "\n".join(rows)
