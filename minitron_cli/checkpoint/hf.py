"""Interface to transformers: directories to models, models to files.

Code in a checkpoint never runs, and its config does not choose the attention kernel. A tensor that is missing,
unexpected or of another shape is an error; transformers would fill in random numbers.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli import io, stopping, strict_json
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.license_files import license_files
from minitron_cli.checkpoint import base_names, config_checks, document_masks, text_growth
from minitron_cli.checkpoint.reader import Checkpoint, main_dtype
from minitron_cli.checkpoint.writer import TensorSpec, blank_like, write_checkpoint
from minitron_cli.environment_errors import is_of_environment
from minitron_cli.errors import CheckpointError, EnvironmentFault, shown
from minitron_cli.stacked_names import stacks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""Files of a multimodal wrapper beside its tokenizer's."""


def load_config(path: Path) -> "PretrainedConfig":
    """The config of a checkpoint directory, as transformers reads it. Its code never runs."""
    return config_of(Checkpoint.open(path))


def config_of(checkpoint: Checkpoint) -> "PretrainedConfig":
    """The config of a checkpoint, as transformers reads it. Its code never runs."""
    return config_from_dict(dict(checkpoint.config), str(checkpoint.path / "config.json"))


def config_from_dict(raw: dict[str, Any], where: str) -> "PretrainedConfig":
    """Config of a parsed config.json. CheckpointError, which begins with `where`, if it is invalid or unsupported."""
    from transformers import CONFIG_MAPPING

    config_checks.refuse(raw, where)
    with _refusing(f"{where} is not a valid {raw['model_type']} config", "fix the field"):
        return CONFIG_MAPPING[raw["model_type"]].from_dict(config_checks.trusted(raw))


def check_wrapper_config(raw: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if transformers cannot read a multimodal wrapper's config, or reads other text sizes."""
    from transformers import CONFIG_MAPPING

    where = path / "config.json"
    with _refusing(f"{where} is not a valid {raw['model_type']} config", "fix the field"):
        read = CONFIG_MAPPING[raw["model_type"]].from_dict(config_checks.trusted(dict(raw))).get_text_config()
    own = load_config(path)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
        if getattr(read, name) != getattr(own, name):
            raise CheckpointError(f"{where} reads as {name}={shown(getattr(read, name))}, not {getattr(own, name)}")


@contextmanager
def _refusing(what: str, hint: str) -> Iterator[None]:
    """Turn the many error types of transformers into CheckpointError; errors of the environment are passed on.

    A stop request interrupts the context at any point.
    """
    try:
        with stopping.interruptible():
            yield
    except Exception as e:
        if is_of_environment(e):
            raise
        raise CheckpointError(f"{what}: {_last_line(e)}; {hint}") from None


def _attention(config: "PretrainedConfig") -> str:
    """Attention kernel: torch's fused one, or the plain one for what that cannot compute (Gemma 2's soft cap)."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    has_softcap = getattr(config, "attn_logit_softcapping", None) is not None
    is_supported = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    return "sdpa" if is_supported and not has_softcap else "eager"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "".join(c if c.isprintable() else " " for c in (lines or [type(error).__name__])[-1])
    return text[:160].rstrip(".;")


def load_model(
    path: Path, *, device: str = "cpu", dtype: Any = "auto", device_map: Mapping[str, Any] | None = None
) -> "PreTrainedModel":
    """The model in evaluation mode. CheckpointError for any tensor that is missing or of another shape.

    `dtype` "auto" is the one in which most of the weights are stored, whatever config.json says.
    With a `device_map` (module -> device, see `spread`) accelerate places it on several devices.
    """
    checkpoint = Checkpoint.open(path)  # validates headers and files before transformers reads them, or is imported

    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    config = config_of(checkpoint)
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _refusing(f"{path} does not load", "check that config.json fits the weights"):
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=checkpoint.dtype if dtype == "auto" else dtype,
                attn_implementation=_attention(config),
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                device_map=device_map,
                key_mapping=checkpoint.wrapper.prefixes() if checkpoint.wrapper else None,
            )
    finally:
        logging.set_verbosity(verbosity)
    if checkpoint.wrapper:
        model._weight_conversions = None  # which would save the text model under the wrapper's names
    for kind in ("missing_keys", "mismatched_keys"):  # what is unexpected was looked at when the files were opened
        if info.get(kind):
            raise CheckpointError(
                f"{path} has {kind.replace('_', ' ')} such as {min(map(str, info[kind]))}: "
                "the checkpoint is incomplete; download it again"
            )
    document_masks.keep_documents_apart(model)
    return model.eval() if device_map else model.to(device).eval()


def spread(path: Path, free_bytes: Mapping[int, int], dtype: Any = "auto") -> dict[str, Any]:
    """`device_map` for a model that exceeds one accelerator. EnvironmentFault if it exceeds all of them."""
    from accelerate import infer_auto_device_map

    model = empty_model(path, dtype=dtype)
    whole = getattr(model, "_no_split_modules", None)
    found = infer_auto_device_map(model, dict(free_bytes), no_split_module_classes=whole, dtype=model.dtype)
    if not set(found.values()) <= free_bytes.keys():
        raise EnvironmentFault(
            f"{path} does not fit on the {len(free_bytes)} accelerators of this machine beside the student: "
            "shard it over several processes (--gpus, distill.sharding=full)"
        )
    return dict(found)


def empty_model(path: Path, *, device: str = "cpu", dtype: Any = "auto") -> "PreTrainedModel":
    """The model of a checkpoint directory without its weights, which stay on disk; buffers are real."""
    checkpoint = Checkpoint.open(path)
    config = config_of(checkpoint)
    with _refusing(f"{path} makes no model", "fix config.json"):
        return empty_model_of(config, device=device, dtype=checkpoint.dtype if dtype == "auto" else dtype)


def empty_model_of(config: "PretrainedConfig", *, device: str, dtype: Any) -> "PreTrainedModel":
    """The model of a config without weights; buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, initialization

    # On the meta device torch draws nothing, yet takes longer for it than for all else.
    with init_empty_weights(include_buffers=False), initialization.no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_attention(config)).eval()
    model.tie_weights()  # init_empty_weights has untied them
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    document_masks.keep_documents_apart(model)
    return model


def parameter_names(config: "PretrainedConfig") -> frozenset[str]:
    """Names of the parameters and buffers that transformers loads into a model of this config."""
    with _refusing("config.json makes no model", "fix config.json"):
        return frozenset(empty_model_of(config, device="meta", dtype=None).state_dict())


def model_of(
    config: dict[str, Any], state: Mapping[str, "Tensor"], *, device: str = "cpu", dtype: Any = "auto"
) -> "PreTrainedModel":
    """Model made from a state dict in memory, as from a checkpoint. CheckpointError if the tensors do not fit."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    typed = config_from_dict(config, "the config of the pruned model")
    logging.disable_progress_bar()
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(typed)]
    with stopping.interruptible():
        model, info = cls.from_pretrained(
            None,
            config=typed,
            state_dict=_joined(state),
            dtype=main_dtype((t.dtype, t.numel()) for t in state.values()) if dtype == "auto" else dtype,
            attn_implementation=_attention(typed),
            output_loading_info=True,
        )
    if wrong := [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]]:
        raise CheckpointError(
            f"the pruned model does not fit its config at {min(map(str, wrong))}: report the model's family"
        )
    document_masks.keep_documents_apart(model)
    return model.to(device).eval()


def new_model(config: "PretrainedConfig", *, seed: int) -> "PreTrainedModel":
    """Model of this config with random weights, fp32, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), _refusing("the config makes no model", "fix config.json"):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=_attention(config))
    document_masks.keep_documents_apart(model)
    return model.eval()


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """Tokenizer of a checkpoint directory. CheckpointError if there is none. Code in the directory never runs."""
    from transformers import AutoTokenizer

    if not has_tokenizer(path):
        raise CheckpointError(f"{path} has no tokenizer: copy the model's tokenizer files there")
    text_growth.check(path)
    with _refusing(f"{path}: its tokenizer does not load", "restore the tokenizer files"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)


def has_tokenizer(path: Path) -> bool:
    """Whether a checkpoint directory holds a tokenizer."""
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


@contextmanager
def without_generation_config(model: "PreTrainedModel") -> Iterator[None]:
    """Context in which `generate` does what its caller says; what that leaves out is not the model's to fill in."""
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def check_generation_config(path: Path) -> None:
    """Raise CheckpointError if a directory's generation_config.json is there and transformers cannot read it."""
    from transformers import GenerationConfig

    file = path / "generation_config.json"
    if file.is_file():
        strict_json.load(file)
        with _refusing(f"{file} is not valid", "fix the field, or remove the file"):
            GenerationConfig.from_pretrained(path, local_files_only=True)


def stored_tensors(model: "PreTrainedModel", names: Iterable[str] = ()) -> "dict[str, Tensor]":
    """A model's tensors by their names on disk: transformers renames some in memory and joins experts.

    Of a stack, of which `names` have entries (`stacked_names.py`), each entry is one.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state = base_names.in_memory(
        {"model_type": model.config.model_type}, revert_weight_conversion(model, model.state_dict())
    )
    taken = {stored: parts for stored, parts in stacks(names).items() if parts != [stored]}
    entries = {name: part for stored, parts in taken.items() for name, part in zip(parts, state[stored], strict=True)}
    return {name: tensor for name, tensor in state.items() if name not in taken} | entries


def _joined(state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """State dict with each stack as one tensor, as it lies on disk."""
    import torch

    return {
        stored: state[stored] if stored in state else torch.stack([state[name] for name in names])
        for stored, names in stacks(state).items()
    }


def write_model(model: "PreTrainedModel", specs: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Write a model that has no checkpoint yet: the tensors of `specs` (name -> shape) and its config."""
    state = stored_tensors(model, specs)
    config = {name: value for name, value in model.config.to_dict().items() if name != "transformers_version"}
    tensors = {stored: state[name] for name, stored in base_names.in_files(config, specs).items()}
    sized = {stored: TensorSpec(tuple(tensor.shape), tensor.dtype) for stored, tensor in tensors.items()}
    write_checkpoint(directory, sized, lambda name: [tensors[name]])
    io.write_new_json(directory / "config.json", config)


def save_like(like: Checkpoint, directory: Path, tensors: "Iterable[tuple[str, Tensor]]") -> None:
    """Write the tensors of the checkpoint `like`, in its order and dtypes, with its config; copy its other files.

    `tensors` come in any order, one at a time, and may include others. CheckpointError if one is missing.
    """
    specs = {name: TensorSpec(info.shape, info.torch_dtype) for name, info in like.tensors.items()}
    missing = set(specs)
    with blank_like(like, directory, specs) as blank:
        for name, tensor in tensors:
            if name in missing:
                blank.fill(name, [tensor.detach().to(specs[name].dtype)])
                missing.remove(name)
        if missing:
            raise CheckpointError(
                f"{like.path} stores {min(missing)}, which the model in memory does not have: use another checkpoint"
            )
    if strict_json.load(like.path / "config.json", finite=False) == like.file_config:
        copy_files(like.path, directory, ("config.json",))
    else:
        io.write_new_json(directory / "config.json", dict(like.file_config))
    copy_files(like.path, directory, side_files(like))


def side_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Files of a checkpoint that a child has unchanged, whether they exist or not."""
    of_processor = PROCESSOR_FILES if checkpoint.wrapper else ()
    others = (*fingerprint.templates(checkpoint.path), *license_files(checkpoint.path))
    return ("generation_config.json", *fingerprint.TOKENIZER_FILES, *of_processor, *others)


def copy_files(source: Path, directory: Path, names: tuple[str, ...]) -> None:
    """Copy, byte for byte, those of the files that exist."""
    for name in names:
        if (source / name).is_file():
            io.make_dirs((directory / name).parent)
            io.write_new(directory / name, (source / name).read_bytes())
