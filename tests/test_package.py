import ast
import errno
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

import quadtree_attention
from quadtree_attention.extras import install_command, require
from quadtree_attention.files import atomic_write, check_output, walk, write_text

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "quadtree_attention"
FLOORS = (  # of the house, from the top: patterns of modules; the first that fits counts
    r"__main__",
    r"cli",
    r"app",
    r"tasks",
    r"evaluation",
    r"bench",
    r"viz",
    r"predict",
    r"weights",
    r"models",
    r"data",
    r"nn",
    r"ops",
    r"table",
    r"extras|files|formats",
    r"errors|compat",
)


def loaded_by(code: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh interpreter after ``code``."""
    code += "\nimport sys; print('modules', *{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(out.splitlines()[-1].split()[1:])


def test_public_names():
    for name in quadtree_attention.__all__:
        assert callable(getattr(quadtree_attention, name))
        assert name in dir(quadtree_attention)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = quadtree_attention.nothing


def test_import_loads_torch_and_numpy_at_most():
    heavy = {"timm", "numba", "cv2", "lightning", "torchvision", "matplotlib", "PIL", "safetensors", "typer", "triton"}
    loaded = loaded_by("from quadtree_attention import quadtree_attention, token_pyramid, QuadtreeAttention")
    assert "torch" in loaded
    assert not loaded & heavy


def test_match_loads_only_what_it_needs(tmp_path, random_weights, photo):
    from quadtree_attention.viz.drawing import save_picture

    save_picture(photo, tmp_path / "a.png")
    arguments = ["match", str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--model", str(random_weights)]
    loaded = loaded_by(f"from quadtree_attention.__main__ import main\nassert main({arguments}) == 0")
    assert not loaded & {"cv2", "lightning", "torchvision", "matplotlib", "timm", "rich", "pandas", "sympy"}


def test_help_does_not_load_torch():
    assert "torch" not in loaded_by(
        "from quadtree_attention.__main__ import main\nassert main(['match', '--help']) == 0"
    )


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours that a file imports anywhere but for type checkers, by name below the package, and the lines."""
    found: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while found:
        node = found.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found.extend(node.orelse)
            continue
        found.extend(ast.iter_child_nodes(node))
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("quadtree_attention", *path.relative_to(PACKAGE).parent.parts)
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        for name in names:
            top, *parts = name.split(".")
            if top == "quadtree_attention" and parts:
                whole = PACKAGE.joinpath(*parts)  # a module, or what one defines
                is_module = whole.is_dir() or whole.with_suffix(".py").is_file()
                yield ".".join(parts if is_module else parts[:-1]), node.lineno


def floor(module: str) -> int:
    return next(n for n, pattern in enumerate(FLOORS) if re.fullmatch(rf"({pattern})(\..*)?", module))


def test_imports_go_down_only():
    """From the command at the top to the errors at the bottom, in the order of `FLOORS`. Any floor may be passed over.

    Labels and what images go through are data's: models know them. All may import compat, private names of libraries; ops does for torch and Numba.
    """
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for other, line in imports(path):
            if other and (module == "__init__" or floor(other) < floor(module)):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "category", "fails"),
    [
        ("quadtree_attention", RuntimeWarning, True),
        ("quadtree_attention.ops.tree", UserWarning, True),
        ("tests.ops.test_operator", UserWarning, True),  # ours, with a stacklevel that points to the caller
        ("quadtree_attention.ops.tree", FutureWarning, False),
        ("quadtree_attention.ops.tree", DeprecationWarning, False),
        ("torch.nn.functional", UserWarning, False),
        ("quadtree_attentions", UserWarning, False),
    ],
)
def test_warnings_of_ours_fail_tests_and_no_others(module, category, fails):
    """As pyproject.toml says. The module of a warning is the one whose line it is about."""
    code = compile(f"import warnings; warnings.warn('made up', {category.__name__})", "made_up.py", "exec")
    with warnings.catch_warnings(record=True) as caught:  # with pytest's filters
        if fails:
            with pytest.raises(category, match="made up"):
                exec(code, {"__name__": module})
        else:
            exec(code, {"__name__": module})
    assert len(caught) == (not fails)


def required() -> Iterator[tuple[str, str, str]]:
    """Each `require` of the package: top-level module and extra, as written, and where."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
                module, extra = node.args
                first = module.values[0] if isinstance(module, ast.JoinedStr) else module  # f"PIL.{name}"
                choices = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                for choice in choices:
                    where = f"{path.relative_to(PACKAGE)}:{node.lineno}"
                    yield ast.literal_eval(choice).partition(".")[0], ast.literal_eval(extra), where


def installed_by(extra: str) -> set[str]:
    """Distributions that an extra installs: those it names, and what these need themselves."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    for requirement in project["optional-dependencies"][extra]:
        name, extras = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?.*", requirement).groups()
        if name == project["name"]:
            found |= {distribution for other in extras.split(",") for distribution in installed_by(other)}
        else:
            needs = [need for need in metadata.requires(name) or [] if "extra ==" not in need]
            found |= {name, *(re.match(r"[\w.-]+", need).group() for need in needs)}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def test_the_extra_that_a_message_names_installs_what_is_missing():
    owners = metadata.packages_distributions()
    places = [place for place in required() if place[1] != "app" or "gradio" in owners]  # which make test does without
    assert {"cv2", "timm", "lightning", "pycolmap", "h5py"} <= {module for module, _, _ in places}
    for module, extra, where in places:
        owner = {re.sub(r"[-_.]+", "-", name).lower() for name in owners[module]}
        assert owner & installed_by(extra), f"{where}: {module} does not come with the extra {extra!r}"


def test_extras_named_in_texts_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {}
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.py")]:
        for names in re.findall(r"(?:quadtree-attention|-e '?\.|'\.)\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            named |= dict.fromkeys(names.split(","), path.name)
    assert len(named) > 5
    assert named.keys() <= project["optional-dependencies"].keys()


def test_the_core_needs_three_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.match(r"\w+", name).group() for name in project["dependencies"]] == ["torch", "numpy", "numba"]


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"cv2 is not installed; install it with: pip install .*\[vision\]'$"):
        require("cv2", "vision")


def test_hints_install_from_where_the_package_came(monkeypatch):
    """It is on no index: from a folder, `pip install quadtree-attention[...]` would find nothing, or something else."""

    class Installed:
        origin: str | None = None

        def read_text(self, name):
            return self.origin

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert install_command("sfm") == "pip install 'quadtree-attention[sfm]'"
    for editable, flag in ((True, "-e "), (False, "")):
        Installed.origin = json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": editable}})
        assert install_command("sfm") == f"pip install {flag}'{ROOT}[sfm]'"
    Installed.origin = json.dumps({"url": "file:///gone/away", "dir_info": {}})
    assert install_command("sfm") == "pip install 'quadtree-attention[sfm]'"

    def missing(name):
        raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert install_command("sfm") == f"pip install -e '{ROOT}[sfm]'"


def test_a_module_that_fails_inside_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import surely_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_there"):
        require("half_there", "vision")


def test_output_is_checked_without_a_trace(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("kept")
    for name in ("new.json", "old.json", "UPPER.JSON"):
        assert check_output(tmp_path / name, (".json",)) == tmp_path / name
    assert old.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [old]
    with pytest.raises(ValueError, match=r"unknown suffix '.txt', expected .json or .csv"):
        check_output(tmp_path / "a.txt", (".json", ".csv"))
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        check_output(tmp_path / "none" / "a.json", (".json",))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_output(tmp_path / "folder.json", (".json",))
    with pytest.raises(OSError, match="cannot be written"):
        check_output("/proc/a.json", (".json",))


def test_atomic_write_is_all_or_nothing(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    (tmp_path / "link.txt").symlink_to(target)
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "link.txt"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path, monkeypatch):
    """In containers, numbers of processes come again."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_write(tmp_path / "a.txt") as left, atomic_write(tmp_path / "a.txt") as temporary:
        assert temporary != left
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        left.unlink()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_outputs_may_be_read_by_whom_the_umask_says(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize(
    "problem",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("17600 requested and 4464 written")],
    ids=["system", "numpy"],
)
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, problem):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_write(tmp_path / "a.npy"):
        raise problem
    assert caught.value.filename == str(tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(OSError, match="of a library"), atomic_write(tmp_path / "a.npy"):
        raise OSError("of a library")


def test_text_takes_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"b\xfc.jpg")
    write_text(tmp_path / "a.json", json.dumps([name, "\u00fc"], ensure_ascii=False))
    assert (tmp_path / "a.json").read_bytes() == b'["b\\udcfc.jpg", "\xc3\xbc"]'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[0] == name


def test_links_to_folders_are_followed_once(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for file in ("b/x.txt", "b/.hidden.txt", ".git/y.txt", "c.txt"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    other.mkdir()
    (other / "z.txt").touch()
    (other / "up").symlink_to(root)  # a loop
    (root / "a").symlink_to(root / "b")  # twice the same: it keeps its own name
    (root / "link").symlink_to(other)
    (root / "broken").symlink_to(root / "nowhere")
    assert [path.relative_to(root).as_posix() for path in walk(root)] == ["b/x.txt", "c.txt", "link/z.txt"]
