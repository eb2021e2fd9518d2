"""The flags of XLA's GPU compiler that matter to eqjax: what each is for, and which eqjax sets itself.

`options` gives those that eqjax sets, as options of a single program: `jax.jit(…, compiler_options=options(…))`. A flag
that the variable XLA_FLAGS names is left as it says there. All others are for XLA_FLAGS.
"""

from collections.abc import Mapping
import dataclasses
import os
import re
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of the compiler.

    Attributes:
      name: its name, without dashes.
      value: the value that is meant.
      purpose: when it helps, and what it does.
      set_for: programs for which eqjax sets it: "several devices", "profile"; None: it is the user's to set.
    """

    name: str
    value: bool | int | str
    purpose: str
    set_for: str | None = None

    @property
    def text(self) -> str:
        """The flag as a part of XLA_FLAGS.

        Example:
          >>> GPU_FLAGS[0].text
          '--xla_gpu_enable_latency_hiding_scheduler=true'
        """
        value = self.value if isinstance(self.value, str) else str(self.value).lower()
        return f"--{self.name}={value}"


GPU_FLAGS = (
    Flag(
        name="xla_gpu_enable_latency_hiding_scheduler",
        value=True,
        purpose="training on several GPUs: gathers weights and reduces gradients while it computes; XLA's default "
        "sends and computes in turn",
        set_for="several devices",
    ),
    Flag(
        name="xla_enable_command_buffers_during_profiling",
        value=True,
        purpose="profiles: shows command buffers (CUDA graphs) as they run; XLA's default launches their kernels one "
        "by one while a profiler is on, which takes longer",
        set_for="profile",
    ),
    Flag(
        name="xla_gpu_exclude_nondeterministic_ops",
        value=True,
        purpose="the same bits in every run on the same GPU, with the next flag: no sums in the order of arrival; "
        "slower",
    ),
    Flag(
        name="xla_gpu_autotune_level",
        value=0,
        purpose="the same bits in every run on the same GPU: kernels are not chosen by timing them; slower",
    ),
    Flag(
        name="xla_gpu_force_conv_nhwc",
        value=True,
        purpose="A100 and older, float32: convolutions without transposes around them",
    ),
    Flag(
        name="xla_gpu_enable_command_buffer",
        value="+WHILE",
        purpose="sampling with jax 0.11 and later: loops as a whole in command buffers; as a program's option it has "
        "no plus, and replaces the list",
    ),
    Flag(
        name="xla_gpu_enable_triton_gemm",
        value=False,
        purpose='should the compiler stop with "Couldn\'t find output tile sizes": cuBLAS computes all products',
    ),
)


def options(
    platform: str, *, num_devices: int = 1, profiled: bool = False, environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Returns the options of a program that eqjax sets itself.

    Args:
      platform: `device.platform` of the devices; only GPUs get options.
      num_devices: devices of the program.
      profiled: whether a profiler will trace it.
      environment: the variables; flags that its XLA_FLAGS names are left out.

    Example:
      >>> options("gpu", num_devices=8, environment={})
      {'xla_gpu_enable_latency_hiding_scheduler': True}
      >>> options("gpu", num_devices=8, environment={"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false"})
      {}
    """
    if platform not in ("gpu", "cuda"):
        return {}
    wanted = {"several devices": num_devices > 1, "profile": profiled, None: False}
    given = set(re.findall(r"--(\w+)", environment.get("XLA_FLAGS", "")))
    return {flag.name: flag.value for flag in GPU_FLAGS if wanted[flag.set_for] and flag.name not in given}
