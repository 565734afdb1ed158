"""Plants one small fault at a time in a source file and says which of them the tests do not see.

    uv run python scripts/mutate.py packages/nanochat-train/src/nanochat_train/muon.py \\
        --tests packages/nanochat-train/tests/test_optim.py --sample 40

A fault is a swapped operator or comparison, a number changed by one or a negated condition. The file is restored
after each; a survivor is either a missing test or a change that means the same, which a person has to tell.
"""

import argparse
import ast
import copy
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.AnnAssign, ast.Import, ast.ImportFrom)
"""Messages and types: what they say is not arithmetic."""


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """(what was changed, the changed module) for each fault that can be planted."""
    for path, node in walk(tree, ()):
        for name, change in changes(node):
            changed = copy.deepcopy(tree)
            target: ast.AST = changed
            for field, index in path:
                value = getattr(target, field)
                target = value if index is None else value[index]
            change(target)
            before = ast.unparse(node)
            yield f"line {node.lineno}: {name} in `{before[:70]}`", changed


def walk(node: ast.AST, path: tuple[tuple[str, int | None], ...]) -> Iterator[tuple[tuple, ast.AST]]:
    if isinstance(node, SKIPPED) and not isinstance(node, ast.AnnAssign):
        return
    yield path, node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if isinstance(child, ast.AST):
                yield from walk(child, (*path, (field, index)))


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    def swap(field: str, new: type[ast.AST]) -> object:
        return lambda target: setattr(target, field, new())

    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} -> {new.__name__}", swap("op", new)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {new.__name__}", lambda target: target.ops.__setitem__(0, new())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} -> {node.value + 1}", lambda target: setattr(target, "value", target.value + 1)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition negated", lambda target: setattr(target, "test", ast.UnaryOp(ast.Not(), target.test))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "minus removed", lambda target: setattr(target, "op", ast.UAdd())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--tests", nargs="+", required=True, help="what pytest shall run")
    parser.add_argument("--sample", type=int, default=0, help="only so many faults, drawn at random (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    text = args.source.read_text()
    found = list(mutants(ast.parse(text)))
    chosen = sorted(random.Random(args.seed).sample(range(len(found)), min(args.sample or len(found), len(found))))
    # A fault may make a test wait for ever: it counts as seen after a limit that no sound run comes near.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "180",
        *args.tests,
    ]
    if subprocess.run(command, capture_output=True).returncode != 0:
        raise SystemExit(f"the tests fail without a fault: {' '.join(command)}")
    survivors = []
    try:
        for done, index in enumerate(chosen, start=1):
            what, changed = found[index]
            args.source.write_text(ast.unparse(ast.fix_missing_locations(changed)))
            if subprocess.run(command, capture_output=True).returncode == 0:
                survivors.append(what)
                print(f"survived: {what}", flush=True)
            print(f"\r{done}/{len(chosen)}", end="", file=sys.stderr)
    finally:
        args.source.write_text(text)
    print(f"{args.source}: {len(chosen)} of {len(found)} faults planted, {len(survivors)} survived")


if __name__ == "__main__":
    main()
