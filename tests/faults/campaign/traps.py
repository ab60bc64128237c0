"""Traps: models, templates, data, tasks, recipes and directories whose reading could run code."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.faults.campaign.canaries import Trap
from tests.faults.campaign.malformed_files import TASK, reading, with_task
from tests.faults.campaign.malformed_models import CHAT, GENERATION, IMPORTANCE, start, with_chats
from tests.faults.campaign.programs import Started, program
from tests.faults.campaign.setting import RECIPE

INSPECT = ("inspect", "model")
MODEL = (INSPECT, IMPORTANCE)


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.canary), "w")


def code_for(canary: Path) -> str:
    """Python source that makes a file."""
    return f"open({str(canary)!r}, 'w').close()\n"


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def traps() -> Iterator[Trap]:
    """All of them."""
    for makers in (pickles, remote_code, strings, templates, data, documents, tasks, shadows):
        yield from makers()


PICKLED = (
    *("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("consolidated.00.pth", "model.ckpt", "tokenizer.pkl", "tokenizer.model", "spiece.model", "vocab.pkl"),
)


def pickles() -> Iterator[Trap]:
    """Pickles beside, instead of, and named like weights."""
    for name in PICKLED:
        yield Trap(f"{name} beside the weights", partial(_pickle, name), MODEL, start)
    yield Trap("pickled weights alone", partial(_pickle, "pytorch_model.bin", instead=True), MODEL, start)
    yield Trap("a pickle called model.safetensors", partial(_pickle, "model.safetensors"), MODEL, start)
    yield Trap("an index that names a pickle", partial(_index, "pytorch_model-1.bin"), MODEL, start)
    yield Trap("an index that climbs to a pickle", partial(_index, "../text/pytorch_model-1.bin"), MODEL, start)
    yield Trap("a pickled index", partial(_pickle, "model.safetensors.index.json", instead=True), MODEL, start)


def _pickle(name: str, root: Path, canary: Path, *, instead: bool = False) -> None:
    (root / "model" / name).write_bytes(pickle.dumps(Payload(canary)))
    if instead:
        (root / "model/model.safetensors").unlink()


def _index(name: str, root: Path, canary: Path) -> None:
    _pickle(name, root, canary, instead=True)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    for file in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (root / "model" / file).write_text(json.dumps(index))


def remote_code() -> Iterator[Trap]:
    """Modules in a model directory that its files name."""
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    for name in names:
        yield Trap(f"auto_map in config.json: {name}", partial(_auto_map, "config.json", name), MODEL, start)
    for kind in ("AutoTokenizer", "AutoProcessor"):
        yield Trap(
            f"auto_map in the tokenizer: {kind}", partial(_auto_map, "tokenizer_config.json", kind), MODEL, start
        )
    yield Trap(
        "auto_map of an unknown model type", partial(_auto_map, "config.json", "AutoConfig", type_="evil"), MODEL, start
    )
    yield Trap(
        "a tokenizer class of its own",
        partial(_fields, "tokenizer_config.json", tokenizer_class="evil.Evil"),
        MODEL,
        start,
    )
    yield Trap("a way to generate of its own", _custom_generate, MODEL, start)
    for method in ("evil", "torchao", "gptq", "bitsandbytes", "quark"):
        change = {"quantization_config": {"quant_method": method, "module": "evil", "modules_to_not_convert": []}}
        yield Trap(f"quantization_config: {method}", partial(_fields, "config.json", **change), MODEL, start)
    for kernel in ("evil/kernel", "./evil", "kernels-community/evil:forward"):
        for field in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            yield Trap(f"{field} = {kernel}", partial(_fields, "config.json", **{field: kernel}), MODEL[1:], start)


def _auto_map(file: str, name: str, root: Path, canary: Path, *, type_: str | None = None) -> None:
    target: Any = ["evil.Evil", "evil.Evil"] if "Tokenizer" in name else "evil.Evil"
    _fields(file, root, canary, auto_map={name: target}, trust_remote_code=True)
    if type_:
        edit(root / "model/config.json", model_type=type_)


def _fields(file: str, root: Path, canary: Path, **fields: Any) -> None:
    for name in ("evil.py", "evil/__init__.py", "modeling_llama.py", "configuration_llama.py", "tokenization_evil.py"):
        (root / "model" / name).parent.mkdir(exist_ok=True)
        (root / "model" / name).write_text(code_for(canary))
    edit(root / "model" / file, **fields)


def _custom_generate(root: Path, canary: Path) -> None:
    (root / "model/custom_generate").mkdir()
    (root / "model/custom_generate/generate.py").write_text(code_for(canary))
    (root / "model/generation_config.json").write_text(
        json.dumps({"custom_generate": "model", "trust_remote_code": True})
    )


EVALUATED = ("dtype", "torch_dtype", "hidden_act", "rope_scaling", "rope_parameters", "architectures", "layer_types")


def strings() -> Iterator[Trap]:
    """Config fields that somebody might evaluate."""
    for field in (
        "dtype",
        "torch_dtype",
        "hidden_act",
        "rope_scaling",
        "rope_parameters",
        "architectures",
        "layer_types",
    ):
        yield Trap(f"code in {field}", partial(_evaluated, field), MODEL, start)


def _evaluated(field: str, root: Path, canary: Path) -> None:
    call = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    lists = {"architectures": [call], "layer_types": [call] * 4}
    value = {"rope_type": call, "type": call} if field.startswith("rope") else lists.get(field, call)
    edit(root / "model/config.json", **{field: value})


TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ joiner.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ namespace.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ raise_exception.__globals__['__builtins__'].open('CANARY', 'w') }}",
    "{{ strftime_now.__globals__['__builtins__'].open('CANARY', 'w') }}",
    "{{ messages | attr('__class__') | attr('__init__') | attr('__globals__') }}",
    "{{ ''['__class__']['__mro__'][1]['__subclasses__']()[0]('CANARY') }}",
    "{{ ('{0.__class__.__init__.__globals__}' | string).format(messages) }}{{ open('CANARY', 'w') }}",
    "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == 'Popen' %}{{ c(['touch', 'CANARY']) }}"
    "{% endif %}{% endfor %}",
    "{% include 'evil.py' %}",
    "{% import 'evil.py' as evil %}{{ evil }}",
)


def templates() -> Iterator[Trap]:
    """Chat templates that reach for Python's internals."""
    for i, text in enumerate(TEMPLATES):
        yield Trap(f"chat template {i}", partial(_template, text), (CHAT,), with_chats)
        yield Trap(f"chat template {i} in an answer", partial(_template, GENERATION % text), (CHAT,), with_chats)


def _template(text: str, root: Path, canary: Path) -> None:
    (root / "evil.py").write_text(code_for(canary))
    (root / "model/chat_template.jinja").write_text(text.replace("CANARY", str(canary)))


def data() -> Iterator[Trap]:
    """Data files that carry objects or scripts."""
    for name in ("evil.pkl", "evil.npy", "evil.pt", "evil.bin", "evil.jsonl", "evil.parquet", "evil.arrow"):
        yield Trap(
            f"a pickle called {name}", partial(_pickled_data, name), (reading(name), reading(f"ids:{name}")), start
        )
    yield Trap(
        "a pickled type in a Parquet file", partial(_extension, "evil.parquet"), (reading("evil.parquet"),), start
    )
    yield Trap("a pickled type in an Arrow file", partial(_extension, "evil.arrow"), (reading("evil.arrow"),), start)
    yield Trap(
        "a loading script", _script, (reading("hub:evil"), reading("hub:./evil"), reading("evil/evil.py")), start
    )


def _pickled_data(name: str, root: Path, canary: Path) -> None:
    (root / name).write_bytes(pickle.dumps(Payload(canary)))


def _extension(name: str, root: Path, canary: Path) -> None:
    """pyarrow before 14.0.1 unpickled the metadata of such a type (CVE-2023-47248)."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(canary)),
    }
    schema = pa.schema([pa.field("text", pa.string(), metadata=metadata)])
    table = pa.Table.from_arrays([pa.array(["the cat sat"] * 90)], schema=schema)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(table, root / name)
        return
    with pa.ipc.new_stream(root / name, schema) as stream:
        stream.write_table(table)


def _script(root: Path, canary: Path) -> None:
    (root / "evil").mkdir()
    (root / "evil/evil.py").write_text(code_for(canary))
    (root / "evil/dataset_infos.json").write_text("{}")


TAGS = (
    "!!python/object/apply:os.system ['touch CANARY']",
    "!!python/object/apply:builtins.open [CANARY, w]",
    "!!python/object/new:os.system ['touch CANARY']",
    "!!python/name:os.system",
    "!!python/module:evil",
    "!function evil.run",
)


def documents() -> Iterator[Trap]:
    """YAML tags in recipes and gates, and a recipe that names a directory of tasks with code."""
    for tag in TAGS:
        yield Trap(f"recipe with {tag}", partial(_yaml, "recipe.yaml", f"{RECIPE}\nteacher: {tag}"), (RUN, DRY), start)
        words = ("eval", "--no-perplexity", "--gate", "gates.yaml")
        yield Trap(f"gates with {tag}", partial(_yaml, "gates.yaml", f"maximum: {tag}"), (words,), with_task)
    include = RECIPE.replace("evaluate: {", "evaluate: {tasks: [own], include_path: tasks, ")
    yield Trap("a recipe's include_path", partial(_recipe_with_task, include), (RUN, DRY), with_task)


RUN, DRY = ("run", "recipe.yaml"), ("run", "recipe.yaml", "--dry-run")


def _yaml(name: str, text: str, root: Path, canary: Path) -> None:
    (root / "evil.py").write_text(code_for(canary))
    (root / name).write_text(text.replace("CANARY", str(canary)))


def _recipe_with_task(text: str, root: Path, canary: Path) -> None:
    _task("doc_to_text: !function evil.run", root, canary)
    _yaml("recipe.yaml", text, root, canary)


TASK_LINES = (
    *("doc_to_text: !function evil.run", "doc_to_target: !function evil.run", "process_docs: !function evil.run"),
    *("process_results: !function evil.run", "custom_dataset: !function evil.run", "class: !function evil.Evil"),
    *("metric_list: [{metric: !function evil.run}]", "dataset_path: evil.py", "dataset_path: ./evil"),
    *("include: evil.py", "doc_to_choice: !function evil.run", "fewshot_config: {sampler: !function evil.run}"),
    *(
        "dataset_kwargs: {trust_remote_code: true, data_dir: evil}",
        "filter_list: [{filter: [{function: !function evil.run}]}]",
    ),
    *(f"doc_to_text: {json.dumps(text)}" for text in TEMPLATES[:4]),
    *(f"description: {tag}" for tag in TAGS),
)


def tasks() -> Iterator[Trap]:
    """Tasks of lm-eval with functions, scripts, templates and tags; none may run without --allow-code-execution."""
    for line in TASK_LINES:
        yield Trap(f"task with {line[:60]}", partial(_task, line), (TASK, (*TASK, "--dry-run")), with_task)
    yield Trap("a group's functions", _group, (TASK, (*TASK, "--dry-run")), with_task)
    yield Trap("a script in --task-data", _task_data, ((*TASK, "--task-data", "evil"),), with_task)


def _task(line: str, root: Path, canary: Path) -> None:
    for directory in (root, root / "tasks"):
        (directory / "evil.py").write_text(code_for(canary) + "def run(*a, **k): return ''\nclass Evil: pass\n")
    own, key = root / "tasks/own.yaml", line.partition(":")[0]
    kept = [old for old in own.read_text().splitlines() if not old.startswith(f"{key}:")]
    own.write_text("\n".join([*kept, line.replace("CANARY", str(canary))]))


def _group(root: Path, canary: Path) -> None:
    _task("doc_to_text: a", root, canary)
    (root / "tasks/other.yaml").write_text("group: own\ntask: [{task: inner, process_docs: !function evil.run}]\n")


def _task_data(root: Path, canary: Path) -> None:
    _script(root, canary)
    (root / "evil/own").mkdir()
    (root / "evil/own/own.py").write_text(code_for(canary))


def shadows() -> Iterator[Trap]:
    """Modules in the working directory and in the model's, which a program must not import."""
    names = ("torch", "json", "random", "minitron_cli", "sitecustomize", "usercustomize", "conftest", "numpy")
    yield Trap(
        "modules in the working directory", partial(_modules, "", names), (INSPECT, IMPORTANCE), start, installed
    )
    yield Trap(
        "modules in the model directory", partial(_modules, "model", names), (INSPECT, IMPORTANCE), start, installed
    )
    several = (*IMPORTANCE, "--gpus", "2", "--device", "cpu")
    yield Trap(
        "modules in the working directory of workers", partial(_modules, "", names), (several,), start, installed
    )


def _modules(directory: str, names: Sequence[str], root: Path, canary: Path) -> None:
    for name in names:
        (root / directory / f"{name}.py").write_text(code_for(canary))
    (root / directory / "evil.pth").write_text(f"import os; {code_for(canary)}")


def installed(words: Sequence[str], root: Path) -> Started:
    """Start the program that pip installs."""
    return program(words, root, command=(str(Path(sys.executable).with_name("minitron")),))
