"""Families that minitron can prune. To add one: a file with its table, and its name below (docs/extending.md)."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from minitron_cli.errors import CheckpointError, shown
from minitron_cli.model import unsupported
from minitron_cli.model.families import granitemoehybrid, jamba, nemotron_h
from minitron_cli.model.families.apertus import APERTUS
from minitron_cli.model.families.arcee import ARCEE
from minitron_cli.model.families.bamba import BAMBA
from minitron_cli.model.families.cohere import COHERE
from minitron_cli.model.families.cohere2 import COHERE2
from minitron_cli.model.families.cwm import CWM
from minitron_cli.model.families.deepseek_v2 import DEEPSEEK_V2
from minitron_cli.model.families.deepseek_v3 import DEEPSEEK_V3
from minitron_cli.model.families.ernie4_5 import ERNIE4_5
from minitron_cli.model.families.ernie4_5_moe import ERNIE4_5_MOE
from minitron_cli.model.families.exaone4 import EXAONE4
from minitron_cli.model.families.falcon_h1 import FALCON_H1
from minitron_cli.model.families.flex_olmo import FLEX_OLMO
from minitron_cli.model.families.gemma import GEMMA
from minitron_cli.model.families.gemma2 import GEMMA2
from minitron_cli.model.families.gemma3_text import GEMMA3_TEXT
from minitron_cli.model.families.glm import GLM
from minitron_cli.model.families.glm4 import GLM4
from minitron_cli.model.families.glm4_moe import GLM4_MOE
from minitron_cli.model.families.glm4_moe_lite import GLM4_MOE_LITE
from minitron_cli.model.families.gpt_neox import GPT_NEOX
from minitron_cli.model.families.gpt_oss import GPT_OSS
from minitron_cli.model.families.granite import GRANITE
from minitron_cli.model.families.granitemoe import GRANITEMOE
from minitron_cli.model.families.granitemoehybrid import GRANITEMOEHYBRID
from minitron_cli.model.families.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from minitron_cli.model.families.jais2 import JAIS2
from minitron_cli.model.families.jamba import JAMBA
from minitron_cli.model.families.lfm2 import LFM2
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.families.llama4_text import LLAMA4_TEXT
from minitron_cli.model.families.mellum import MELLUM
from minitron_cli.model.families.minimax_m2 import MINIMAX_M2
from minitron_cli.model.families.ministral import MINISTRAL
from minitron_cli.model.families.ministral3 import MINISTRAL3
from minitron_cli.model.families.mistral import MISTRAL
from minitron_cli.model.families.mixtral import MIXTRAL
from minitron_cli.model.families.nemotron import NEMOTRON
from minitron_cli.model.families.nemotron_h import NEMOTRON_H
from minitron_cli.model.families.olmo import OLMO
from minitron_cli.model.families.olmo2 import OLMO2
from minitron_cli.model.families.olmo3 import OLMO3
from minitron_cli.model.families.olmoe import OLMOE
from minitron_cli.model.families.phi3 import PHI3
from minitron_cli.model.families.phimoe import PHIMOE
from minitron_cli.model.families.qwen2 import QWEN2
from minitron_cli.model.families.qwen2_moe import QWEN2_MOE
from minitron_cli.model.families.qwen3 import QWEN3
from minitron_cli.model.families.qwen3_5_text import QWEN3_5_TEXT
from minitron_cli.model.families.qwen3_moe import QWEN3_MOE
from minitron_cli.model.families.qwen3_next import QWEN3_NEXT
from minitron_cli.model.families.seed_oss import SEED_OSS
from minitron_cli.model.families.smollm3 import SMOLLM3
from minitron_cli.model.families.starcoder2 import STARCODER2
from minitron_cli.model.families.vaultgemma import VAULTGEMMA
from minitron_cli.model.family import Family
from minitron_cli.model.nearest_family import Shapes

NO_TENSORS: Shapes = MappingProxyType({})

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        APERTUS,
        ARCEE,
        BAMBA,
        COHERE,
        COHERE2,
        CWM,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        ERNIE4_5,
        ERNIE4_5_MOE,
        EXAONE4,
        FALCON_H1,
        FLEX_OLMO,
        GEMMA,
        GEMMA2,
        GEMMA3_TEXT,
        GLM,
        GLM4,
        GLM4_MOE,
        GLM4_MOE_LITE,
        GPT_NEOX,
        GPT_OSS,
        GRANITE,
        GRANITEMOE,
        GRANITEMOEHYBRID,
        HUNYUAN_V1_DENSE,
        JAIS2,
        JAMBA,
        LFM2,
        LLAMA,
        LLAMA4_TEXT,
        MELLUM,
        MINIMAX_M2,
        MINISTRAL,
        MINISTRAL3,
        MISTRAL,
        MIXTRAL,
        NEMOTRON,
        NEMOTRON_H,
        OLMO,
        OLMO2,
        OLMO3,
        OLMOE,
        PHI3,
        PHIMOE,
        QWEN2,
        QWEN2_MOE,
        QWEN3,
        QWEN3_5_TEXT,
        QWEN3_MOE,
        QWEN3_NEXT,
        SEED_OSS,
        SMOLLM3,
        STARCODER2,
        VAULTGEMMA,
    )
}

WITH_OTHER_TABLES: dict[str, Callable[[Any], Family]] = {
    "granitemoehybrid": granitemoehybrid.table,
    "jamba": jamba.table,
    "nemotron_h": nemotron_h.table,
}
"""Model type -> function that gives the table of a config, where models of the type differ in more than their flags."""


def table_of(config: Any) -> Family:
    """Table of a config whose model type has one."""
    kind = config.model_type
    return WITH_OTHER_TABLES[kind](config) if kind in WITH_OTHER_TABLES else FAMILIES[kind]


def family_of(config: Any, tensors: Shapes = NO_TENSORS) -> Family:
    """Table for a `PretrainedConfig`. CheckpointError if no table describes the model.

    With the checkpoint's tensors, the error of an unknown model type names the nearest table.
    """
    if getattr(config, "is_heterogeneous", False):
        raise CheckpointError(
            "the model's layers differ in size (per_layer_config): only homogeneous models can be pruned"
        )
    if reason := unsupported.reason(config, FAMILIES, tensors):
        raise CheckpointError(reason)
    family = table_of(config)
    for name, wanted in family.uniform_if.items():
        found = getattr(config, name)
        if found != wanted and not (isinstance(found, list) and found and all(one == wanted for one in found)):
            raise CheckpointError(
                f"config field {name!r} is {shown(found)}, which the table of {config.model_type} does not describe: "
                f"only models where it is {wanted} can be pruned"
            )
    return family.of_model(config)
