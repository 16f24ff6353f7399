"""The layering of the modules, read from their imports, and what `zsseg --help` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zsseg

PACKAGE = Path(zsseg.__file__).parent

# Each module may import modules of lower layers only, at the top or inside a function; those of one layer only where
# `SIDEWAYS` says so. A new module is placed here first.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("tables", "seeds", "api"),
    ("sweep", "lr_range"),
    ("fetch", "embed", "split", "train", "evaluate", "predict", "visualize", "report"),
    ("checkpoint",),
    ("state", "objective"),
    ("task", "gallery"),
    ("probe", "selftrain", "open_vocabulary", "export", "info"),
    ("batches", "inference", "folders", "voc"),
    ("calibration", "features", "optimizer"),
    ("dataset", "sources", "pictures", "slices", "studies", "curve", "difficulty", "recipe"),
    ("models", "losses", "metrics", "sample", "downloads", "kinship", "matlab", "charts"),
    ("words",),
    (
        "images",
        "hardware",
        "threads",
        "vectors",
        "wordnet",
        "sentences",
        "audit",
        "bilinear",
        "projection",
        "presence",
        "search_space",
        "winners",
    ),
    ("artifacts", "archives", "tensors", "distributed"),
    ("contents",),
    ("schema", "config", "classes", "errors", "progress"),
)
FRONT = "__init__"  # the version, that all may read, and `load`, that reaches down to inference
SIDEWAYS = {("models", "models"), ("tables", "metrics")}
VERBS = LAYERS[4]
HEAVY = (
    "torch", "torchvision", "timm", "numpy", "h5py", "PIL", "gensim", "sklearn", "scipy", "matplotlib", "requests",
    "pooch", "pyarrow", "nltk", "transformers", "tokenizers", "open_clip", "optuna", "sqlalchemy",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Return every file of the package by its dotted name without the package's."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, typing_too: bool = False) -> set[str]:
    """Return the dotted names of all modules that a file imports, wherever in it, `a.b` for `from a import b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {id(node) for top in ast.walk(tree) if _is_for_typing(top) and not typing_too for node in ast.walk(top)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports of this package are absolute"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_for_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> int:
    """Return the number of a module's layer; that of the top is 0."""
    return next(index for index, names in enumerate(LAYERS) if module.split(".")[0] in names)


def own(names: set[str]) -> set[str]:
    """Keep the modules of the package, without its name."""
    known = set(modules()) | {"models"}
    return {name.removeprefix("zsseg.") for name in names if name.removeprefix("zsseg.") in known and name != "zsseg"}


@pytest.mark.parametrize("module", sorted(set(modules()) - {FRONT}))
def test_every_module_has_its_layer(module: str) -> None:
    """The table names every module, so that none escapes the rule."""
    assert module.split(".")[0] in {name for names in LAYERS for name in names}


def test_the_table_names_no_module_that_is_gone() -> None:
    """A removed or renamed module leaves the table, too."""
    assert {name for names in LAYERS for name in names} == {module.split(".")[0] for module in modules()} - {FRONT}


@pytest.mark.parametrize("module", sorted(set(modules()) - {FRONT}))
def test_imports_go_down_only(module: str) -> None:
    """No module imports one of its own or a higher layer."""
    wrong = [
        other
        for other in own(imports(modules()[module]))
        if other != module
        and layer(other) <= layer(module)
        and (module.split(".")[0], other.split(".")[0]) not in SIDEWAYS
        and (layer(other), layer(module)) != (len(LAYERS) - 1,) * 2
    ]
    assert wrong == []


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_never_import_one_another(verb: str) -> None:
    """What two verbs share lies below them, also for type checking."""
    assert own(imports(modules()[verb], typing_too=True)).isdisjoint(set(VERBS) - {verb})


def test_only_artifacts_imports_h5py() -> None:
    """One module knows HDF5."""
    assert [
        name for name, path in modules().items() if any(each.split(".")[0] == "h5py" for each in imports(path))
    ] == ["artifacts"]


def test_settings_and_errors_are_free_of_heavy_packages() -> None:
    """What the command line loads at once costs nothing."""
    for module in ("__init__", "cli", "config", "classes", "errors", "progress", "schema"):
        assert {name.split(".")[0] for name in imports(modules()[module])}.isdisjoint(HEAVY)


def test_metrics_know_numpy_only() -> None:
    """Scores derive from one matrix, without torch."""
    assert {name.split(".")[0] for name in imports(modules()["metrics"])}.isdisjoint(set(HEAVY) - {"numpy"})


def test_only_the_command_line_prints() -> None:
    """No other module calls print, writes to sys.stdout or sys.stderr, or exits."""
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert "print" not in [call.id for call in calls if isinstance(call, ast.Name)], name
        if name != "cli":
            streams = [
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys"
            ]
            assert not {"stdout", "stderr", "exit"} & set(streams), name


def test_nothing_is_unpickled() -> None:
    """No module imports pickle or joblib, loads objects with NumPy, or loads a checkpoint without weights_only."""
    for name, path in modules().items():
        assert {each.split(".")[0] for each in imports(path)}.isdisjoint({"pickle", "joblib", "dill", "shelve"}), name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle" or ast.literal_eval(node.value) is False, name
                assert node.arg != "weights_only" or ast.literal_eval(node.value) is True, name
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only" in [keyword.arg for keyword in node.keywords], name


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["train", "--dim", "0"]])
def test_help_loads_no_heavy_package(words: list[str]) -> None:
    """The help of the tool and of a command, and a usage error, load neither torch nor any other heavy package."""
    code = (
        "import sys\n"
        "from zsseg.cli import main\n"
        f"sys.argv = ['zsseg', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        f"print('loaded', code, *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ("loaded 2" if "0" in words else "loaded 0")


def test_import_zsseg_loads_no_heavy_package() -> None:
    """`import zsseg` is quick; `zsseg.load` loads what it needs."""
    code = f"import sys, zsseg; print(zsseg.__all__, *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['Model', 'Result', '__version__', 'load']"
