"""Hardware and models by name, and what the two together give: a step model, a link, two pools.

Figures of hardware are nominal ones from vendors' data sheets times an efficiency each, stated beside
them; only the GH200's link was ever measured (the paper's Table 1). Knows no clock, file or policy.
Immutable, any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from superinfer_trt.core.errors import ConfigError
from superinfer_trt.core.geometry import Geometry
from superinfer_trt.sim.cost import StepModel
from superinfer_trt.sim.link import LinkModel
from superinfer_trt.sim.offload import CpuAttention

GIB = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU, its share of host memory, and the link between. Bytes, bytes/s, FLOP/s and seconds."""

    name: str
    hbm_bytes: float
    hbm_bytes_per_s: float  # nominal
    flops_per_s: float  # nominal, dense bf16
    d2h_bytes_per_s: float  # reached, this direction alone
    h2d_bytes_per_s: float
    dram_bytes_per_s: float  # both directions together
    dram_bytes: float  # for KV
    hbm_efficiency: float = 0.85
    flops_efficiency: float = 0.75
    expert_flops_efficiency: float = 0.50
    attention_flops_efficiency: float = 0.45
    hbm_usable: float = 0.9
    runtime_bytes: float = 12e9
    base_s: float = 4e-3
    row_s: float = 6e-6
    launch_batch_s: float = 0.3e-3
    d2h_copy_s: float = 5.01e-6  # one unbatched copy: launch, and the rate it then reaches
    h2d_copy_s: float = 5.82e-6
    d2h_copy_bytes_per_s: float = 89.2 * GIB
    h2d_copy_bytes_per_s: float = 166.7 * GIB
    # Attention on the CPU (neo): a kernel that reaches 200 to 250 of Grace's 384 GB/s is taken as good; what
    # a request costs, and what a layer costs to go there and back, are guesses. Not measured.
    cpu_attention_efficiency: float = 0.6  # of dram_bytes_per_s
    cpu_attention_row_s: float = 10e-6
    cpu_attention_layer_s: float = 50e-6

    def __post_init__(self) -> None:
        """Raises ConfigError for amounts that are none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not (isinstance(value, (int, float)) and value >= 0):
                raise ConfigError(f"hardware {self.name}: {field.name} is {value!r}; expected a number >= 0")


# GH200: HBM3e 4.9 TB/s, 989 TFLOP/s; link and copies from the paper's Table 1 (GB there is GiB); 480 GB
# of LPDDR5X at 384 GB/s, 400 GB of it for KV.
_GH200 = Hardware("gh200-144gb", 144e9, 4.9e12, 989e12, 238.95 * GIB, 269.69 * GIB, 384e9, 400e9)
# PCIe 5 x16 reaches 55 to 60 GB/s a direction (the paper's Fig. 5), copies launch as on GH200.
_H100 = replace(
    _GH200,
    name="h100-pcie5",
    hbm_bytes=80e9,
    hbm_bytes_per_s=3.35e12,
    d2h_bytes_per_s=55e9,
    h2d_bytes_per_s=55e9,
    dram_bytes_per_s=300e9,
    d2h_copy_bytes_per_s=50e9,
    h2d_copy_bytes_per_s=50e9,
    runtime_bytes=6e9,
)
# One Grace for two GPUs: per GPU half of its DRAM (480 GB at 384 GB/s) and half of NVLink-C2C (225 GB/s
# nominal a direction, taken at the GH200's 0.6). Not measured.
_GB200 = replace(
    _GH200,
    name="gb200",
    hbm_bytes=186e9,
    hbm_bytes_per_s=8e12,
    flops_per_s=2.5e15,
    d2h_bytes_per_s=135e9,
    h2d_bytes_per_s=135e9,
    dram_bytes_per_s=192e9,
    dram_bytes=200e9,
    d2h_copy_bytes_per_s=89.2 * GIB,
    h2d_copy_bytes_per_s=120e9,
)
_GB300 = replace(_GB200, name="gb300", hbm_bytes=279e9)

HARDWARE: Mapping[str, Hardware] = MappingProxyType({h.name: h for h in (_GH200, _H100, _GB200, _GB300)})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the models of step and pool need of a language model. bf16 unless `element_bytes` says."""

    name: str
    parameters: float  # all weights
    active_parameters: float  # weights that one token is multiplied with (no embedding table)
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens_max: int
    element_bytes: int = 2
    dense_share: float = 1.0  # weights outside the experts
    expert_share: float = 1.0  # experts one token picks, as a share of all

    @property
    def weight_bytes(self) -> float:
        """Of all weights."""
        return self.parameters * self.element_bytes

    def geometry(self, block_tokens: int) -> Geometry:
        """Of its KV blocks."""
        return Geometry(self.layers, self.kv_heads, self.head_dim, self.element_bytes, block_tokens)


MODELS: Mapping[str, ModelShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            ModelShape("llama-3-8b", 8.03e9, 7.5e9, 32, 32, 8, 128, 8_192),
            ModelShape("qwen2.5-32b", 32.75e9, 32.0e9, 64, 40, 8, 128, 32_768),
            ModelShape(
                "mixtral-8x7b", 46.7e9, 12.7e9, 32, 32, 8, 128, 32_768, dense_share=0.04, expert_share=0.25
            ),
        )
    }
)

LINKS = ("duplex", "merged-kernels", "merged-segments", "naive", "naive-blocking", "free")
"""DuplexKV; batched copies, one direction at a time; one copy a block; one copy a layer of a block; the
same, and whoever submits waits (vLLM V0); one that costs no time, for bounds."""

_FREE_BYTES_PER_S = 1e18  # a pool in a nanosecond


def find_hardware(name: str, changes: Mapping[str, object] | None = None) -> Hardware:
    """The hardware called `name`, some figures replaced; `custom` is a gh200-144gb to be changed.
    Raises ConfigError, which lists what is known."""
    if name != "custom" and name not in HARDWARE:
        raise ConfigError(f"hardware: {name!r} is unknown; known: {', '.join(HARDWARE)}, custom")
    hardware = replace(_GH200, name="custom") if name == "custom" else HARDWARE[name]
    known = [field.name for field in fields(Hardware) if field.name != "name"]
    for field in changes or {}:
        if field not in known:
            raise ConfigError(f"hardware: {field!r} is unknown; known: {', '.join(known)}")
    return replace(hardware, **dict(changes or {}))  # type: ignore[arg-type]


def step_model(hardware: Hardware, model: ModelShape) -> StepModel:
    """The step times of `model` on `hardware`."""
    experts = model.dense_share < 1.0
    efficiency = hardware.expert_flops_efficiency if experts else hardware.flops_efficiency
    return StepModel(
        active_parameters=model.active_parameters,
        weight_bytes=model.weight_bytes,
        kv_token_bytes=2 * model.layers * model.kv_heads * model.head_dim * model.element_bytes,
        attention_pair_flops=4.0 * model.layers * model.heads * model.head_dim,
        flops_per_s=hardware.flops_per_s * efficiency,
        attention_flops_per_s=hardware.flops_per_s * hardware.attention_flops_efficiency,
        hbm_bytes_per_s=hardware.hbm_bytes_per_s * hardware.hbm_efficiency,
        base_s=hardware.base_s,
        row_s=hardware.row_s,
        dense_share=model.dense_share,
        expert_share=model.expert_share,
    )


def cpu_attention(hardware: Hardware, model: ModelShape) -> CpuAttention:
    """What decodes with their KV in DRAM take of the CPU. Raises ConfigError."""
    return CpuAttention(
        bytes_per_s=hardware.dram_bytes_per_s * hardware.cpu_attention_efficiency,
        row_s=hardware.cpu_attention_row_s,
        launch_s=model.layers * hardware.cpu_attention_layer_s,
    )


def efficiencies(hardware: Hardware, model: ModelShape, found: StepModel) -> dict[str, float]:
    """What to change of `hardware` so that `step_model` gives `found`."""
    compute = "expert_flops_efficiency" if model.dense_share < 1.0 else "flops_efficiency"
    return {
        compute: found.flops_per_s / hardware.flops_per_s,
        "attention_flops_efficiency": found.attention_flops_per_s / hardware.flops_per_s,
        "hbm_efficiency": found.hbm_bytes_per_s / hardware.hbm_bytes_per_s,
        "base_s": found.base_s,
        "row_s": found.row_s,
    }


def link_model(hardware: Hardware, kind: str, *, unlimited_allowance: bool = False) -> LinkModel:
    """One of LINKS on `hardware`. `unlimited_allowance`: it claims to be infinitely fast, so that only
    the policy's own budget bounds what moves. Raises ConfigError."""
    told = float("inf") if unlimited_allowance else None
    batch_ns = round(hardware.launch_batch_s * 1e9)
    if kind in {"duplex", "merged-kernels"}:
        return LinkModel(
            d2h_bytes_per_s=hardware.d2h_bytes_per_s,
            h2d_bytes_per_s=hardware.h2d_bytes_per_s,
            dram_bytes_per_s=hardware.dram_bytes_per_s,
            batch_ns=batch_ns,
            serial=kind == "merged-kernels",
            told_bytes_per_s=told,
        )
    if kind == "free":
        return LinkModel(d2h_bytes_per_s=_FREE_BYTES_PER_S, h2d_bytes_per_s=_FREE_BYTES_PER_S)
    if kind not in LINKS:
        raise ConfigError(f"link: {kind!r} is unknown; known: {', '.join(LINKS)}")
    return LinkModel(
        d2h_bytes_per_s=hardware.d2h_copy_bytes_per_s,
        h2d_bytes_per_s=hardware.h2d_copy_bytes_per_s,
        dram_bytes_per_s=hardware.dram_bytes_per_s,
        d2h_descriptor_ns=hardware.d2h_copy_s * 1e9,
        h2d_descriptor_ns=hardware.h2d_copy_s * 1e9,
        layer_descriptors=kind != "merged-segments",
        serial=True,
        blocking=kind == "naive-blocking",
        told_bytes_per_s=told,
    )


def pool_blocks(hardware: Hardware, model: ModelShape, block_tokens: int) -> tuple[int, int]:
    """(HBM blocks, DRAM blocks) that are left for KV. Raises ConfigError where the weights do not fit."""
    block_bytes = model.geometry(block_tokens).block_bytes
    left = hardware.hbm_bytes * hardware.hbm_usable - model.weight_bytes - hardware.runtime_bytes
    blocks = int(left // block_bytes)
    if blocks < 1:
        raise ConfigError(
            f"model: {model.name} leaves no room for KV on {hardware.name}: "
            f"{hardware.hbm_usable:.0%} of {hardware.hbm_bytes / 1e9:.0f} GB, less "
            f"{model.weight_bytes / 1e9:.1f} GB of weights and "
            f"{hardware.runtime_bytes / 1e9:.0f} GB of runtime"
        )
    return blocks, int(hardware.dram_bytes // block_bytes)
