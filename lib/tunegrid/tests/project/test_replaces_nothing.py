"""What a run measures is the libraries as their users have them: no line of the product replaces or registers their code.

Seen is what source text tells: a line that changes an attribute or an entry of what a package's import binds. What the product
sets on objects, as on a model's modules, is not: these are the cell's own, and audits look at them.
"""

import ast
import sys

from tunegrid import ROOT

LIB, FIXTURES = ROOT / "lib", ROOT / "fixtures"
PRODUCT = [path for path in (*LIB.rglob("*.py"), *FIXTURES.rglob("*.py")) if "tests" not in path.parts]
OURS = {*sys.stdlib_module_names, "tunegrid", "fixtures", "benchmarks"}
SETTERS = ("setattr", "delattr", "patch", "object", "dict")  # the builtins, pytest's monkeypatch and unittest.mock's


def is_package(name):
    return name.partition(".")[0] not in OURS


def bound_by_packages(tree):
    """Full names of what imports of packages bind, by the name that they bind."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {one.asname or one.name.partition(".")[0]: one.name for one in node.names if is_package(one.name)}
        elif isinstance(node, ast.ImportFrom) and not node.level and is_package(node.module):
            bound |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return bound


def package_name(node, bound):
    """The full name that a chain of attributes or a string gives to something in a package; empty for what a call returns."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value if "." in node.value and is_package(node.value) else ""
    names = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        names.insert(0, getattr(node, "attr", "entry"))
        node = node.value
    return ".".join([bound[node.id], *names]) if isinstance(node, ast.Name) and node.id in bound else ""


def replaced(source):
    """What of packages a module changes, by full names."""
    tree = ast.parse(source)
    bound = bound_by_packages(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield package_name(node, bound)
        elif isinstance(node, ast.Call):
            name = package_name(node.func, bound)
            yield name if name.startswith("torch.library.") or name.rpartition(".")[2].startswith("register") else ""
            if node.args and ast.unparse(node.func).rpartition(".")[2] in SETTERS:
                yield package_name(node.args[0], bound)


def test_no_line_of_the_product_replaces_a_packages_code():
    lines = "import torch\nfrom peft.tuners import lora as own\ntorch.nn.Linear.forward = quick\ndel own.Linear.forward"
    assert {*replaced(lines)} >= {"torch.nn.Linear.forward", "peft.tuners.lora.Linear.forward"}
    assert [(path.name, name) for path in PRODUCT for name in replaced(path.read_text()) if name] == []
