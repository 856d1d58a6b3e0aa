"""The rules of the house (docs/design.md), kept by machine."""

import ast
import graphlib
import gzip
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import nplex

SRC = Path(nplex.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(SRC.rglob("*.py"))

FLOORS = {
    "on_start": 0, "algebra": 0, "ops": 1, "nn": 2, "convert": 2.5, "files": 3, "counting": 3, "optim": 3,
    "pretrained": 3.2, "estimating": 3.3, "model_card": 3.1, "huggingface": 3.3, "on_import": 3.4,
    "model_state": 2.9, "model_folder": 3.4, "adapters": 3.1,
    "distributed": 3, "rule_names": 3, "figures": 3.2, "stored": 3.5, "stored_rules": 3.5, "terminal": 0,
    "lab.checked": 4.8, "lab.fields": 4.9, "lab.results": 5.25,
    "lab.checkpoint": 5, "lab.environment": 5, "lab.run_folder": 5, "lab.data": 5, "lab.text": 5, "lab.scores": 5,
    "lab.generation": 5, "lab.train": 5.1, "lab.summary": 5.2, "lab.plot": 5.3, "lab.recipes": 5.4,
    "lab.products": 5.4, "lab.scored": 5.45, "lab.public_sets": 5.5, "lab.experiment": 5.5, "lab.loading": 5.5,
    "lab.tuning": 5.55, "lab.reproduction": 5.6, "lab.reporting": 5.6,
    "lab.cli": 5.8, "cli": 5.7,
}  # fmt: skip
EXEMPT_FROM_FLOORS = {
    "nplex": "the front door shows names of several floors",
    "nplex.__main__": "starts the command line, and nothing imports it",
    "nplex.lab": "the laboratory's front door",
    "nplex.cli": "adds the laboratory's verbs: the one import of the library from above",
    "nplex.cli.rule": "as nplex.cli",
}
MANY_ARGUMENTS: dict[str, str] = {
    "nplex.nn.conv.Conv.__init__": "torch.nn.Conv2d's signature, and rule and method",
    "nplex.nn.conv.ConvTranspose.__init__": "torch.nn.ConvTranspose2d's signature, and rule",
    "nplex.nn.embedding.Embedding.__init__": "torch.nn.Embedding's signature, and rule",
    "nplex.nn.embedding.EmbeddingBag.__init__": "torch.nn.EmbeddingBag's signature, and rule",
    "nplex.nn.embedding.EmbeddingBag.from_pretrained": "torch.nn.EmbeddingBag's signature, and rule",
    "nplex.nn.recurrent.RNN.__init__": "torch.nn.RNN's signature, and rule",
    "nplex.nn.recurrent.LSTM.__init__": "torch.nn.LSTM's signature, and rule",
    "nplex.nn.recurrent.GRU.__init__": "torch.nn.GRU's signature, and rule",
    "nplex.nn.attention.MultiheadAttention.__init__": "torch.nn.MultiheadAttention's signature, rule and method",
    "nplex.nn.transformer._Layer.__init__": "torch.nn.TransformerEncoderLayer's and DecoderLayer's, rule and method",
    "nplex.nn.transformer.Transformer.__init__": "torch.nn.Transformer's signature, rule and method",
    "nplex.cli.estimating.estimate": "each is an option of the command line",
    "nplex.cli.models.convert": "each is an option of the command line",
    "nplex.cli.adapting.adapt": "each is an option of the command line",
    "nplex.lab.cli.experiments.compare": "each is an option of the command line",
    "nplex.lab.cli.experiments.run": "each is an option of the command line",
    "nplex.lab.cli.reproducing.reproduce": "each is an option of the command line",
    "nplex.lab.cli.tuning.tune": "each is an option of the command line",
    "nplex.ops.kernels.mixing_kernel": "a kernel of Triton takes sizes and strides one by one",
    "nplex.ops.kernels.decoding_kernel": "as mixing_kernel",
    "nplex.ops.kernels.table_gradients_kernel": "as mixing_kernel",
    "nplex.ops.plan.plan_for": "what is planned: two widths, four sizes, two circumstances, a machine",
}
STAR_ARGUMENTS = {
    "nplex.convert.where.only": 'reads as a list of patterns: only("encoder.*", "*.linear1")',
    "nplex.convert.where.all_but": "as only",
    "nplex.convert.where.all_of": "as only, a list of conditions",
    "nplex.ops.tracing.is_eager": "as many tensors as a call has",
    "nplex.ops.fused.suits": "as is_eager",
    "nplex.ops.cache.kept_for": "as many tensors as a weight has beside its components",
    "nplex.huggingface.NplexConfig.from_dict": "as transformers calls it",
    "nplex.huggingface.NplexQuantizer.__init__": "as transformers calls it",
    "nplex.nn.arguments.check_widths": "the keywords are the names that the message gives",
}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "core", "types"}
THIRD_PARTY = {
    "torch": None, "jaxtyping": None, "safetensors": None, "rich": ("nplex.cli", "nplex.terminal"),
    "typer": ("nplex.cli", "nplex.terminal", "nplex.lab.cli"),
    "transformers": "nplex.huggingface", "triton": "nplex.ops.kernels",
}  # fmt: skip
OLD_NAMES = {
    "place": "ownership of a rule, RunFolder, blocks or device", "evened": "balanced", "held": "constrained",
    "told": "summary or description", "_told": "summary or description", "fresh_rule": "new_like",
    "turns": "lock", "choosing": "Classification", "writing": "Seq2Seq", "front": "pareto",
    "check_same_place": "check_same_dtype_and_device", "stays": "skipped", "aligned": "text_table",
}  # fmt: skip
OLD_PHRASES = {
    r"(?<!there )(?<!There )\bis no (?!longer|more)[a-z]": "is not a",
    "Without more said": "By default", r"\bmend(s|ed)?\b": "fix",
    "commoner": "majority class", "of its kind alone": "only", "on to the same bits": "resumes bit for bit",
}  # fmt: skip
HOME = re.compile(r"/home/\w|/Users/\w|/root/|/work/|/tmp/|[A-Z]:\\Users", re.IGNORECASE)

PUBLIC = {
    "nplex": [
        "adapters", "algebra", "ops", "nn", "optim", "preview", "estimate", "convert_", "compress_", "heal", "check",
        "fold_", "factorize_", "unfactorize_", "record", "convert_like_", "only", "all_but", "all_of", "sensible",
        "count", "show", "identify", "save", "load",
    ],
    "nplex.algebra": [
        "Algebra", "named", "real", "complex_", "split_complex", "dual", "quaternion", "split_quaternion", "octonion",
        "sedenion", "clifford", "cyclic", "matrices", "direct", "BilinearAlgorithm", "as_table", "generic_rank",
        "known_algorithm", "find", "Search", "lower_bound", "LowerBound", "round_off", "ExactAlgorithm", "formulas",
        "additions", "identify", "Identification",
    ],
    "nplex.ops": ["product", "plan_for", "Plan", "Cost", "Machine", "measure", "METHODS", "expand"],
    "nplex.nn": [
        "Linear", "LowRankLinear", "Bilinear", "Embedding", "EmbeddingBag", "Conv1d", "Conv2d", "Conv3d",
        "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
        "RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell",
        "MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "TransformerEncoder",
        "TransformerDecoder", "Transformer",
        "Rule", "LearnedRule", "FixedRule", "as_rule", "share", "missing_rules", "cached",
    ],
    "nplex.nn.init": ["like_"],
    "nplex.convert": [
        "preview", "convert_", "check", "fold_", "factorize_", "unfactorize_", "only", "all_but", "all_of",
        "sensible", "parse_rule", "Conversion", "Rules", "Where", "Layers", "Report", "Row", "FoldReport", "FoldRow",
        "FactorReport", "FactorRow", "CheckReport", "CheckRow",
    ],
    "nplex.estimating": ["estimate", "Estimate", "RuleEstimate", "LayerEstimate"],
    "nplex.adapters": [
        "add_", "use_", "remove_", "merge_", "unmerge_", "save", "load", "AdapterReport", "AdapterRow",
    ],
    "nplex.distributed": ["shard_placement", "ColwiseParallel", "RowwiseParallel"],
    "nplex.optim": ["param_groups", "explain", "factor", "Explanation", "Step"],
    "nplex.pretrained": ["compress_", "heal", "Healing", "HealingReport", "HealingRow"],
    "nplex.files": [
        "save", "load", "replace_file", "write_text", "write_json", "read_json", "write_tensors", "read_tensors",
        "read_model", "tensors_of", "fill",
    ],
    "nplex.figures": ["show", "table", "weight", "factors", "new_figure", "write_figure"],
    "nplex.stored_rules": ["stored_rules", "table_of_json", "learning_ends", "LEARNED"],
    "nplex.terminal": [
        "messages", "refuse", "refusing", "print_table", "STOPPED", "TWIN", "EXTRAS", "debugging", "own_code",
    ],
    "nplex.lab": [
        "fit", "Schedule", "Task", "Loss", "greedy", "beam", "agreement", "inference", "translation", "style",
        "language", "recipe_of", "run", "compare", "RunFolder", "tune", "load_run", "LoadedRun", "Recipe",
        "Data", "Outcome",
    ],
}  # fmt: skip


def module_of(path):
    parts = ("nplex", *path.relative_to(SRC).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def definitions(name, kinds, nested=True):
    """(qualified name, node) of functions or classes of a module; those inside functions where nested."""

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function or isinstance(child, ast.ClassDef):
                if isinstance(child, kinds):
                    yield f"{prefix}.{child.name}", child
                if nested or not is_function:
                    yield from walk(child, f"{prefix}.{child.name}")
            else:
                yield from walk(child, prefix)

    return list(walk(TREES[name], name))


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = [found for name in MODULES for found in definitions(name, FUNCTION)]
OUTER_FUNCTIONS = [found for name in MODULES for found in definitions(name, FUNCTION, nested=False)]
CLASSES = [found for name in MODULES for found in definitions(name, ast.ClassDef, nested=False)]


def is_public(qualified):
    """No part of the name is private; `__init__` and the like count as public."""
    return not any(part.startswith("_") and not part.startswith("__") for part in qualified.split("."))


def arguments(node):
    every = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in every if name not in ("self", "cls")]


def imports(name):
    """Every `nplex` module that a module imports, wherever in it; an import of a name counts for its module."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "nplex")
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source.split(".")[0] == "nplex":
                for alias in node.names:
                    yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source


GRAPH = {name: set(imports(name)) - {name} for name in MODULES}


def room(name):
    """The part of the house that a module belongs to: `ops`, or within the laboratory `lab.text`."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2] if parts[0] == "lab" else parts[:1])


def floor(name):
    return FLOORS[room(name)]


def folder(name):
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


def lines(modules):
    return sum(len(MODULES[name].read_text("utf-8").splitlines()) for name in modules)


def in_lab(name):
    return name.startswith("nplex.lab")


def test_the_house_is_looked_at():
    """The tests below would pass on nothing."""
    assert len(FILES) > 20
    assert len(FUNCTIONS) > 100
    assert any(name == "nplex.ops.dispatch.product" for name, _ in FUNCTIONS)
    assert GRAPH["nplex.ops.dispatch"] >= {"nplex.ops.methods", "nplex.algebra.bilinear"}
    assert GRAPH["nplex.lab.cli.experiments"] >= {"nplex.lab.experiment", "nplex.lab.train"}


@pytest.mark.parametrize(
    ("part", "most"), [(lambda name: not in_lab(name), 19_131), (in_lab, 7_301)], ids=["library", "laboratory"]
)
def test_lines_in_all(part, most):
    """A new capability moves the limit; nothing else does."""
    assert lines(filter(part, MODULES)) <= most


def test_files_have_300_lines_at_most():
    lengths = {module: len(path.read_text("utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 300} == {}


def test_functions_have_60_lines_at_most():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in FUNCTIONS}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_functions_have_8_arguments_at_most():
    counts = {name: len(arguments(node)) for name, node in FUNCTIONS}
    assert {name: count for name, count in counts.items() if count > 8 and name not in MANY_ARGUMENTS} == {}


def test_public_functions_have_no_star_arguments():
    found = {name for name, node in FUNCTIONS if is_public(name) and (node.args.vararg or node.args.kwarg)}
    assert found - STAR_ARGUMENTS.keys() == set()


@pytest.mark.parametrize("name", [*MANY_ARGUMENTS, *STAR_ARGUMENTS])
def test_exceptions_are_still_needed(name):
    node = dict(FUNCTIONS)[name]
    if name in MANY_ARGUMENTS:
        assert len(arguments(node)) > 8
    else:
        assert node.args.vararg or node.args.kwarg


def test_modules_are_called_after_what_they_do():
    parts = {part for path in SRC.rglob("*") for part in path.relative_to(SRC).with_suffix("").parts}
    assert parts & FORBIDDEN_NAMES == set()


def test_every_module_has_a_floor():
    assert {room(name) for name in MODULES if name not in EXEMPT_FROM_FLOORS} - FLOORS.keys() == set()


def together(first, second):
    """In one folder, or in folders inside one folder of the house."""
    return folder(first) == folder(second) or first.split(".")[1] == second.split(".")[1]


def test_imports_go_down_or_stay_in_their_folder():
    """The modules of one folder of the house, and of folders inside it, may stand on one floor."""
    upward = {
        f"{name} -> {target}"
        for name, targets in GRAPH.items()
        if name not in EXEMPT_FROM_FLOORS
        for target in targets
        if not (target == "nplex" and in_lab(name))
        if target in EXEMPT_FROM_FLOORS
        or (floor(target) > floor(name))
        or (floor(target) == floor(name) and not together(target, name))
    }
    assert upward == set()


def test_the_library_does_not_know_the_laboratory():
    found = {name for name, targets in GRAPH.items() if not in_lab(name) and any(map(in_lab, targets))}
    assert found == {"nplex.cli", "nplex.cli.rule"}, "only the command line adds the laboratory's verbs"


def imported_names(name):
    """(module, name) of every `from nplex... import name` in a module."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nplex":
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_laboratory_uses_public_names_of_the_library_alone():
    private = {
        f"{name}: from {source} import {wanted}"
        for name in filter(in_lab, MODULES)
        for source, wanted in imported_names(name)
        if not in_lab(source)
        and not in_lab(f"{source}.{wanted}")
        and f"{source}.{wanted}" not in PUBLIC
        and wanted not in PUBLIC.get(source, [])
    }
    assert private == set()


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_no_name_shadows_a_module(package):
    """`import nplex.ops.plan as m` gives the module, not a function that its package shows."""
    inside = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    module = importlib.import_module(package)
    shadowed = {name for name in inside if not isinstance(getattr(module, name, module), types.ModuleType)}
    assert shadowed == set()


def test_private_names_of_torch_stand_in_one_file():
    private = re.compile(r"\btorch(\.\w+)*\._[a-z]|from torch[\w.]* import _|from torch\._")
    found = {name for name, path in MODULES.items() if private.search(path.read_text("utf-8"))}
    assert found <= {"nplex.ops.tracing"}


def names(tree):
    """Every name that a module defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (*FUNCTION, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("word", OLD_NAMES)
def test_names_have_one_meaning(word):
    found = {name for name, tree in TREES.items() if word in map(str.lower, names(tree))}
    assert found == set(), f"{word} is now {OLD_NAMES[word]}"


@pytest.mark.parametrize("phrase", OLD_PHRASES)
def test_sentences_are_plain(phrase):
    pages = [*SRC.rglob("*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = {str(page.relative_to(ROOT)) for page in pages if re.search(phrase, page.read_text("utf-8"))}
    assert found == set(), f"{phrase}: say it as {OLD_PHRASES[phrase]}"


def tree_of_design():
    """The files that docs/design.md lists, each with its folder, by the tree's indentation."""
    text = (ROOT / "docs" / "design.md").read_text("utf-8").partition("    src/nplex/\n")[2]
    folders: list[tuple[int, str]] = []
    for line in text.splitlines():
        if not line.strip():
            return
        depth = len(line) - len(line.lstrip())
        folders = [(other, folder) for other, folder in folders if other < depth]
        above = "".join(folder for _, folder in folders)
        if name := re.match(r"\s*([\w/]+/)(\s|$)", line):
            folders.append((depth, name[1]))
            above += name[1]
        yield from (f"{above}{name}" for name in re.findall(r"\b\w+\.py\b", line))


def test_the_tree_in_the_design_is_the_tree():
    told = list(tree_of_design())
    assert len(told) == len(set(told))
    there = {str(path.relative_to(SRC)) for path in FILES if path.name not in ("__init__.py", "__main__.py")}
    assert set(told) == there


def test_no_module_imports_itself_through_others():
    list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the circle


def test_no_module_imports_its_own_package():
    """`from nplex.ops import product` inside ops works or fails with the order of lines in `__init__`."""
    found = {name: folder(name) for name in MODULES if folder(name) != name and folder(name) in GRAPH[name]}
    assert found == {}


def test_everything_public_has_a_docstring():
    modules = [(name, TREES[name]) for name in MODULES]
    documented = (*modules, *CLASSES, *OUTER_FUNCTIONS)
    bare = {name for name, node in documented if is_public(name) and not ast.get_docstring(node)}
    bare -= {name for name, node in OUTER_FUNCTIONS if any("overload" in ast.unparse(d) for d in node.decorator_list)}
    assert {name for name in bare if not re.search(r"\.__\w+__$", name)} == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    module = importlib.import_module(name)
    assert module.__all__ == PUBLIC[name]
    assert [public for public in PUBLIC[name] if not hasattr(module, public)] == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if MODULES[name].name == "__init__.py"])
def test_public_names_are_all_that_a_package_imports(name):
    """What `__init__` takes in and does not list would be public by accident."""
    tree = TREES[name]
    imported = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert imported == set(PUBLIC[name])


def test_no_file_holds_somebodys_folder():
    found = {}
    for path in SRC.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if hit := HOME.search(data.decode("utf-8", "replace")):
                found[str(path.relative_to(SRC))] = hit.group()
    assert found == {}


def test_third_party_modules_at_the_top_of_files():
    """What an extra brings is imported where it is used, in a function."""
    wrong = set()
    for name, tree in TREES.items():
        for node in tree.body:
            sources = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            sources += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for source in {source.split(".")[0] for source in sources} - sys.stdlib_module_names - {"nplex"}:
                if source not in THIRD_PARTY or not name.startswith(THIRD_PARTY[source] or name):
                    wrong.add(f"{name} imports {source}")
    assert wrong == set()


def loaded_by(statement):
    """The names of all top-level modules after a statement in a fresh process."""
    code = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_torch_jaxtyping_safetensors_and_nothing_else():
    ours = loaded_by("import nplex")
    needed = loaded_by("import torch, torch.nn, jaxtyping, safetensors, safetensors.torch")
    assert ours - needed - sys.stdlib_module_names == {"nplex"}
    assert ours & {"typer", "click", "rich", "accelerate", "matplotlib", "transformers", "scipy", "triton"} == set()


def test_import_of_the_command_line_loads_no_extra():
    """`nplex --help` and `nplex plan` work without nplex[train]."""
    assert loaded_by("import nplex.cli") & {"accelerate", "matplotlib"} == set()
