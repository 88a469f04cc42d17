"""Makes small changes to Python code, and applies them to functions that are already loaded.

A change alters one operator, constant, condition or statement, or the arguments of a call. Changed
code first calls the function CALL_NAME to show that it was reached; `builtins` must hold this
function, which must return None. Docstrings, logging, assertions, annotations and raised
expressions are never changed.
"""

import ast
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

CALL_NAME = "__tunegrid_mutant__"
LOGGING = ("logger", "logging", "warnings", "warn", "print")
SKIPPED = (ast.Assert, ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.pattern)
SKIPPED_FIELDS = ("annotation", "returns", "decorator_list")
REMOVABLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)
REMOVED = "statement removed"
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitXor: ast.BitAnd,
}
OPPOSITES = (
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitAnd, ast.BitOr),
    (ast.LShift, ast.RShift),
    (ast.And, ast.Or),
    (ast.Eq, ast.NotEq),
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Break, ast.Continue),
)
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
        return ast.unparse(self.node), after


def find_changes(tree: ast.AST) -> Iterator[Mutation]:
    """Yield all possible changes to a tree, outer nodes first."""
    for node in changeable_nodes(tree):
        if isinstance(node, ast.expr | ast.stmt):
            for kind, replacement in [*expression_changes(node), *statement_changes(node)]:
                ast.copy_location(replacement, node)
                yield Mutation(kind, node, ast.fix_missing_locations(replacement))
        for test in conditions(node):
            negation = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
            yield Mutation("condition", test, ast.fix_missing_locations(negation))
            for value in (True, False):
                # A loop whose condition is always true would only hang.
                if not (value and isinstance(node, ast.While)):
                    yield Mutation("condition", test, ast.copy_location(ast.Constant(value), test))


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


def conditions(node: ast.AST) -> list[ast.expr]:
    """The conditions that a node tests, except constant ones."""
    tests: list[ast.expr] = []
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        tests = [node.test]
    elif isinstance(node, ast.comprehension):
        tests = node.ifs
    return [test for test in tests if not isinstance(test, ast.Constant)]


def expression_changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind and replacement of each possible change to an expression."""
    match node:
        case ast.BinOp() | ast.BoolOp():
            yield "operator", changed(node, op=OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield "operator", changed(node.operand)
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                operators: list[ast.AST] = [*node.ops]
                operators[number] = OPERATORS[type(operator)]()
                yield "comparison", changed(node, ops=operators)
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Call():
            for number in range(len(node.args)):
                fewer = [*node.args[:number], *node.args[number + 1 :]]
                yield "argument dropped", changed(node, args=fewer)
            for number in range(len(node.keywords)):
                keywords = [*node.keywords[:number], *node.keywords[number + 1 :]]
                yield "argument dropped", changed(node, keywords=keywords)
            for number in range(1, len(node.args)):
                swapped = [*node.args]
                swapped[number - 1 : number + 1] = [node.args[number], node.args[number - 1]]
                yield "arguments swapped", changed(node, args=swapped)


def statement_changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the kind and replacement of each possible change to a statement."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if is_call or isinstance(node, REMOVABLE):
        # Under `if False`, names that the statement binds stay local, and names from outer
        # functions stay bound.
        yield REMOVED, ast.If(ast.Constant(False), [changed(node)], [])
    match node:
        case ast.AugAssign():
            yield "operator", changed(node, op=OPERATORS[type(node.op)]())
        case ast.Break() | ast.Continue():
            yield "loop", OPERATORS[type(node)]()
        case ast.For():
            yield "loop", changed(node, iter=ast.Tuple([], ast.Load()))
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield "return value", ast.Return(ast.Constant(None))


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
        _, old, new = self._change
        if node is not old:
            return self.generic_visit(node)
        call = ast.Call(ast.Name(CALL_NAME, ast.Load()), [], [])
        if isinstance(new, ast.expr):
            return ast.copy_location(ast.BoolOp(ast.Or(), [call, new]), new)
        return [ast.copy_location(ast.Expr(call), new), new]


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
