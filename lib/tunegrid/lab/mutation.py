"""Makes small changes to Python code, and applies them to functions that are already loaded.

A change alters an operator, a number, a slice, the border of a comparison, a default, a reduction
or an in-place line, or detaches or rounds a value; few of these crash. Changed code first calls the function
CALL_NAME to show that it was reached; `builtins` must hold this function, which must return None,
and HELPERS. Docstrings, logging, assertions, annotations and raised expressions are never changed.
"""

import ast
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

CALL_NAME = "__tunegrid_mutant__"
LOGGING = ("logger", "logging", "warnings", "warn", "print")
SKIPPED = (ast.Assert, ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.pattern)
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list", "defaults", "kw_defaults")
REMOVED = "in-place line removed"
DEFAULT = "default"
OF_TENSORS = ("detach", "dtype")  # kinds of changes that change tensors alone
# Builtin functions of changed code, by name: they change a value if it is a floating-point tensor.
DETACH, ROUND = "__tunegrid_detach__", "__tunegrid_round__"
REDUCTIONS = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "amax": "amin"}
OPPOSITES = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
)
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {}
for first, second in OPPOSITES:
    OPERATORS[first] = second
    OPERATORS[second] = first


class Mutation(NamedTuple):
    """One change to a syntax tree."""

    kind: str
    node: ast.expr | ast.stmt
    replacement: ast.AST

    @property
    def texts(self) -> tuple[str, str]:
        """The source of the node and of its replacement."""
        after = "pass" if self.kind == REMOVED else ast.unparse(self.replacement)
        if self.kind == DEFAULT:
            [condition] = [self.replacement]
            assert isinstance(condition, ast.If)
            return ast.unparse(condition.test), ast.unparse(condition.body[-1])
        return ast.unparse(self.node), after


def find_changes(tree: ast.AST) -> Iterator[Mutation]:
    """Yield all possible changes to a tree, outer nodes first."""
    for node in changeable_nodes(tree):
        if isinstance(node, ast.expr | ast.stmt):
            for kind, replacement in [*expression_changes(node), *statement_changes(node)]:
                ast.copy_location(replacement, node)
                yield Mutation(kind, node, ast.fix_missing_locations(replacement))
        if isinstance(node, ast.FunctionDef):
            has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
            first = node.body[1 if has_docstring else 0]
            for condition in other_defaults(node):
                for part in ast.walk(condition):
                    ast.copy_location(part, first)
                yield Mutation(DEFAULT, first, condition)


def changeable_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all nodes within it that may change."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in SKIPPED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED) or is_logging(child):
                continue
            yield from changeable_nodes(child)


def is_logging(node: ast.AST) -> bool:
    """Checks whether a statement calls a logger, `print` or a function of `warnings`."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    name = node.value.func
    while isinstance(name, ast.Attribute):
        name = name.value
    return isinstance(name, ast.Name) and name.id in LOGGING


def expression_changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind and replacement of each possible change to an expression."""
    match node:
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield "operator", changed(node, op=OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.USub()):
            yield "operator", changed(node.operand)
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                if type(operator) in OPERATORS:
                    operators: list[ast.AST] = [*node.ops]
                    operators[number] = OPERATORS[type(operator)]()
                    yield "border", changed(node, ops=operators)
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            for other in other_numbers(value):
                yield "constant", ast.Constant(other)
        case ast.Call(func=ast.Attribute(attr=name)) if name in REDUCTIONS:
            yield "reduction", changed(node, func=changed(node.func, attr=REDUCTIONS[name]))
        case ast.Slice():
            for bound in ("lower", "upper"):
                place = getattr(node, bound)
                if place is not None and not isinstance(place, ast.Constant):
                    neighbour = ast.BinOp(place, ast.Add(), ast.Constant(1))
                    yield "slice", changed(node, **{bound: neighbour})


def other_numbers(value: float) -> list[float]:
    """A number that is 1 % or 10 % larger, or has another sign; an integer's two neighbours."""
    if isinstance(value, int):
        others: list[float] = [value + 1, value - 1]
    else:
        others = [value * 1.01, value * 1.1] if value else [0.01]
    return [*others, -value] if value else others


def statement_changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind and replacement of each possible change to a statement."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))) if is_in_place(name):
            # Under `if False`, names of outer functions stay bound.
            yield REMOVED, ast.If(ast.Constant(False), [changed(node)], [])
        case ast.AugAssign():
            yield REMOVED, ast.If(ast.Constant(False), [changed(node)], [])
            if type(node.op) in OPERATORS:
                yield "operator", changed(node, op=OPERATORS[type(node.op)]())
        case ast.Assign(targets=[ast.Name()], value=value) | ast.Return(value=ast.expr() as value):
            for kind, helper in zip(OF_TENSORS, (DETACH, ROUND), strict=True):
                call = ast.Call(ast.Name(helper, ast.Load()), [value], [])
                yield kind, changed(node, value=call)


def is_in_place(name: str) -> bool:
    """Checks whether a method's name says that it works in place, as `add_` does."""
    return name.endswith("_") and not name.endswith("__")


def numeric_defaults(node: ast.FunctionDef) -> Iterator[tuple[str, bool | int | float]]:
    """Yield the name and the default of each argument whose default is a number or a flag."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) :]
    pairs = [*zip(named, arguments.defaults, strict=False)]
    for argument, default in [
        *pairs,
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]:
        match default:
            case ast.Constant(value=int(value) | float(value)):
                yield argument.arg, value


def other_defaults(node: ast.FunctionDef) -> Iterator[ast.If]:
    """Yield statements that give an argument another value where it has its default.

    Code objects hold no defaults, so the change stands at the beginning of the function.
    """
    for name, value in numeric_defaults(node):
        others = [not value] if isinstance(value, bool) else other_numbers(value)
        for other in others:
            source = f"if type({name}) is {type(value).__name__} and {name} == {value!r}: pass"
            [condition] = ast.parse(source).body
            assert isinstance(condition, ast.If)
            condition.body = [*ast.parse(f"{CALL_NAME}()\n{name} = {other!r}").body]
            yield condition


def changed(node: ast.AST, **fields: object) -> Any:
    """Copy a node with some fields replaced."""
    return type(node)(**(vars(node) | fields))


class Replacing(ast.NodeTransformer):
    """Applies one change to a tree, and inserts a call to CALL_NAME before the changed code."""

    def __init__(self, change: Mutation) -> None:
        """Store the change to apply."""
        self._change = change

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        """Replace the changed node and keep all others."""
        kind, old, new = self._change
        if node is not old:
            return self.generic_visit(node)
        if kind == DEFAULT:  # its own statement, which says by itself that it acts
            return [new, node]
        call = ast.Call(ast.Name(CALL_NAME, ast.Load()), [], [])
        if isinstance(new, ast.expr):
            return ast.copy_location(ast.BoolOp(ast.Or(), [call, new]), new)
        return [ast.copy_location(ast.Expr(call), new), new]


def detach(value: Any) -> Any:
    """Detaches a tensor that has a gradient; gives all else as it is."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def round_to_bf16(value: Any) -> Any:
    """Rounds an fp32 tensor to bf16 and back; gives all else as it is."""
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return value.bfloat16().float()
    return value


HELPERS: dict[str, Callable[[Any], Any]] = {DETACH: detach, ROUND: round_to_bf16}
Functions = dict[tuple[str, int], CodeType]  # by qualified name and first line


def functions_in(path: Path, number: int | None = None) -> Functions:
    """The code of a module's functions, with change `number` applied unless it is None.

    Functions with the same name and line, such as two lambdas, are omitted.
    """
    tree = ast.parse(path.read_bytes())
    if number is not None:
        changes = [*find_changes(tree)]
        Replacing(changes[number]).visit(tree)
    module = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    functions = {}
    counts = Counter[tuple[str, int]]()
    for code in nested(module):
        key = code.co_qualname, code.co_firstlineno
        functions[key] = code
        counts[key] += 1
    return {key: code for key, code in functions.items() if counts[key] == 1}


def nested(code: CodeType) -> Iterator[CodeType]:
    """Yield all code objects nested within another."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested(constant)


def can_replace(before: Functions, after: Functions) -> bool:
    """Checks whether some code changed and all code reads the same variables of outer functions.

    Live functions reject code that reads a different number of them.
    """
    if before == after or before.keys() != after.keys():
        return False
    return all(code.co_freevars == after[key].co_freevars for key, code in before.items())


def replace_live(functions: Functions) -> None:
    """Replace the code of all live functions that have the same file, name and first line."""
    files = {code.co_filename for code in functions.values()}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename in files:
            code = function.__code__
            function.__code__ = functions.get((code.co_qualname, code.co_firstlineno), code)
