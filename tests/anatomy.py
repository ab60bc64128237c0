"""Where the parts of a live model are, by model type. Knows no product code: tests compare the tables with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Anatomy:
    """Names of modules, and what cannot be read off them."""

    decoder: str = "model"
    final_norm: str = "norm"
    attention: str = "self_attn"
    output: str = "o_proj"
    """The projection from the heads back to the residual stream."""
    down: str = "down_proj"
    mlp: str = "mlp"
    writers: tuple[str, ...] = ()
    """Further projections back to the residual stream, of other kinds of layers."""
    inner: tuple[str, ...] = ()
    """Projections inside a mixer, which neither read nor write the residual stream."""
    state_space: str = ""
    latents: Mapping[str, str] = field(default_factory=dict)
    """Axis of a latent -> the projection of the attention that reads it."""
    experts: str = ""
    """Of a layer, the module in which its experts are joined."""
    router: str = ""
    shared: str = ""
    """The experts that all tokens use, where their width follows from that of the others."""
    mlp_follows: bool = False
    """Whether layers without experts have an MLP of an expert's width."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """A layer's norms over the residual stream, in the order in which they run."""
    norm_offset: float = 0.0
    """What a norm adds to its weight."""
    pattern: str = ""
    """The config list that llama.cpp computes itself."""
    epsilon: str = "rms_norm_eps"
    """The config field that holds it; empty where no field does."""

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        return model.get_submodule(self.decoder).layers

    def taps(self) -> Iterator[tuple[str, str]]:
        """(axis, module): heads and neurons are its input, hidden channels its output, and part of it state spaces'."""
        layer = f"{self.decoder}.layers.{{layer}}."
        yield "head", layer + f"{self.attention}.{self.output}"
        if not self.experts:
            yield "ffn", layer + f"{self.mlp}.{self.down}"
        if self.shared:
            yield "shared_ffn", layer + f"{self.shared}.{self.down}"
        if self.mlp_follows:
            yield "mlp_ffn", layer + f"{self.mlp}.{self.down}"
        for axis, module in self.latents.items():
            yield axis, layer + f"{self.attention}.{module}"
        for axis in ("mamba_head", "mamba_dim") if self.state_space else ():
            yield axis, f"{layer}{self.state_space}.in_proj"
        yield from (("hidden", layer + norm) for norm in self.norms)
        yield "hidden", f"{self.decoder}.{self.final_norm}"


FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
LATENT = Anatomy(
    experts="mlp.experts",
    router="mlp.gate",
    shared="mlp.shared_experts",
    latents={"q_rank": "q_b_proj", "kv_rank": "kv_b_proj"},
)
BESIDE_MAMBA = Anatomy(
    final_norm="final_layernorm",
    mlp="feed_forward",
    state_space="mamba",
    writers=("out_proj",),
    norms=("input_layernorm", "pre_ff_layernorm"),
)
ANATOMY = {
    "apertus": Anatomy(norms=("attention_layernorm", "feedforward_layernorm")),
    "bamba": BESIDE_MAMBA,
    "cohere": Anatomy(norms=("input_layernorm",), epsilon="layer_norm_eps"),
    "cohere2": Anatomy(norms=("input_layernorm",), epsilon="layer_norm_eps", pattern="layer_types"),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "ernie4_5_moe": Anatomy(experts="mlp.experts", router="mlp.gate", shared="mlp.shared_experts"),
    "exaone4": Anatomy(norms=POST_NORMS),
    "falcon_h1": BESIDE_MAMBA,
    "flex_olmo": Anatomy(norms=POST_NORMS, experts="mlp.experts", router="mlp.gate"),
    "gemma": Anatomy(norm_offset=1),
    "gemma2": Anatomy(norms=FOUR_NORMS, norm_offset=1, pattern="layer_types"),
    "gemma3_text": Anatomy(norms=FOUR_NORMS, norm_offset=1, pattern="layer_types"),
    "glm4": Anatomy(
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    ),
    "glm4_moe": Anatomy(experts="mlp.experts", router="mlp.gate", shared="mlp.shared_experts"),
    "glm4_moe_lite": LATENT,
    "gpt_neox": Anatomy(
        decoder="gpt_neox",
        final_norm="final_layer_norm",
        attention="attention",
        output="dense",
        down="dense_4h_to_h",
        epsilon="layer_norm_eps",
    ),
    "gpt_oss": Anatomy(experts="mlp.experts", router="mlp.router", pattern="layer_types"),
    "granitemoe": Anatomy(experts="block_sparse_moe.experts", router="block_sparse_moe.router"),
    "granitemoehybrid": Anatomy(mlp="shared_mlp", down="output_linear", state_space="mamba", writers=("out_proj",)),
    "jais2": Anatomy(epsilon="layer_norm_eps"),
    "jamba": Anatomy(
        final_norm="final_layernorm",
        mlp="feed_forward",
        experts="feed_forward.experts",
        router="feed_forward.router",
        mlp_follows=True,
        inner=("x_proj", "dt_proj"),
        writers=("out_proj",),
        norms=("input_layernorm", "pre_ff_layernorm"),
    ),
    "lfm2": Anatomy(
        final_norm="embedding_norm",
        output="out_proj",
        mlp="feed_forward",
        down="w2",
        norms=("operator_norm", "ffn_norm"),
        epsilon="norm_eps",
    ),
    "llama4_text": Anatomy(
        mlp="feed_forward",
        experts="feed_forward.experts",
        router="feed_forward.router",
        shared="feed_forward.shared_expert",
    ),
    "mellum": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "minimax_m2": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "mixtral": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "nemotron": Anatomy(norm_offset=1, epsilon="norm_eps"),
    "nemotron_h": Anatomy(
        final_norm="norm_f",
        attention="mixer",
        mlp="mixer",
        state_space="mixer",
        writers=("out_proj",),
        norms=("norm",),
        epsilon="layer_norm_epsilon",
    ),
    "olmo": Anatomy(epsilon=""),
    "olmo2": Anatomy(norms=POST_NORMS),
    "olmo3": Anatomy(norms=POST_NORMS),
    "olmoe": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "phimoe": Anatomy(experts="mlp.experts", router="mlp.router"),
    "qwen2_moe": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "qwen3_5_text": Anatomy(writers=("out_proj",), norm_offset=1),
    "qwen3_next": Anatomy(experts="mlp.experts", router="mlp.gate", writers=("out_proj",), norm_offset=1),
    "qwen3_moe": Anatomy(experts="mlp.experts", router="mlp.gate"),
    "smollm3": Anatomy(pattern="no_rope_layers"),
    "starcoder2": Anatomy(down="c_proj", epsilon="norm_epsilon"),
    "vaultgemma": Anatomy(norms=("input_layernorm", "pre_feedforward_layernorm"), norm_offset=1),
}


def anatomy(model_type: str) -> Anatomy:
    """Llama's, unless something is said of the type."""
    return ANATOMY.get(model_type, Anatomy())
