"""An import hook that checks the shape annotations of geomtx at every call.

jaxtyping's own hook wraps every function; this one wraps those with a shape in their signature, and dataclasses with
one in their fields. The rest is left to mypy, which costs the tests no time.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

__all__ = ["checked", "install"]

# An int is accepted where a float is wanted, as by mypy.
checked = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))

_SHAPE = re.compile(r"\b(Float|Bool|Int|UInt8)\[")


class _Decorate(ast.NodeTransformer):
    """Adds the decorator to functions and dataclasses with shapes."""

    def visit(self, node: ast.AST) -> ast.AST:
        """Leave expressions as they are: there are no definitions in them."""
        return node if isinstance(node, ast.expr) else super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Decorate a function innermost, where its annotations are those in the source."""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        if _have_shapes([node.returns, *(each.annotation for each in arguments if each is not None)]):
            node.decorator_list.append(_decorator(node))
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """Decorate a class outermost, after `@dataclass`; jaxtyping leaves other classes as they are."""
        if _have_shapes([each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]):
            node.decorator_list.insert(0, _decorator(node))
        self.generic_visit(node)
        return node


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _have_shapes(annotations: list[ast.expr | None]) -> bool:
    return any(annotation is not None and _SHAPE.search(ast.unparse(annotation)) for annotation in annotations)


def _decorator(node: ast.AST) -> ast.expr:
    expression = ast.parse("__import__('shape_checker').checked", mode="eval").body
    for each in ast.walk(expression):
        ast.copy_location(each, node)
    return expression


class _Loader(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        """Compile the source with the decorators added."""
        tree = _Decorate().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path: Any) -> Any:
        """Keep the decorated code out of the cache, which is that of the code as it is."""
        raise OSError


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find modules of geomtx."""
        if fullname.partition(".")[0] != "geomtx":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and _SHAPE.search(_read(spec.loader.path)):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Check shapes in the modules of geomtx that are imported from now on."""
    sys.meta_path.insert(0, _Finder())
