"""What stays whole because the code equates it with something that does.

Slim sizes never exceed dense ones. So where a sum or a product of sizes must keep its dense value, each of its parts
must, and the reason is that of what it is equated with.
"""

from collections.abc import Iterable

from pml_extensions._slimming.algebra.axes import Leaf, Reason
from pml_extensions._slimming.algebra.integers import Attribute, Equation, Expression, Operation, atoms

Fixed = dict[Attribute, Reason]


def fix_what_follows(equations: Iterable[Equation]) -> None:
    """Freeze every leaf that an equation ties to sizes which are fixed already, and so on until nothing follows."""
    pending = [equation for equation in equations if equation.relation == "=="]
    fixed: Fixed = {}
    while pending:
        later = [equation for equation in pending if not _follow(equation, fixed)]
        if len(later) == len(pending):
            return
        pending = later


def _follow(equation: Equation, fixed: Fixed) -> bool:
    """Fix the other side of an equation one side of which is fixed; tell whether there was one."""
    for known, other in ((equation.left, equation.right), (equation.right, equation.left)):
        reason = _why_fixed(known, fixed, equation.where)
        if reason is not None:
            _fix(other, reason, fixed)
            return True
    return False


def _why_fixed(expression: Expression, fixed: Fixed, where: str) -> Reason | None:
    """Return the reason why an expression keeps its dense value, or None if it need not."""
    parts = list(atoms(expression))
    reasons = [part.frozen if isinstance(part, Leaf) else fixed.get(part) for part in parts]
    if None in reasons:
        return None
    if isinstance(expression, int):
        return Reason("a number in the code ties it down", where)
    listed = [reason for reason in reasons if reason is not None]
    return next((r for r in listed if not r.by_design), listed[0] if listed else Reason("of size one", by_design=True))


def _fix(expression: Expression, reason: Reason, fixed: Fixed) -> None:
    if isinstance(expression, Attribute):
        fixed.setdefault(expression, reason)
    elif _only_grows(expression, fixed):
        for part in atoms(expression):
            if isinstance(part, Leaf):
                part.frozen = part.frozen or reason


def _only_grows(expression: Expression, fixed: Fixed) -> bool:
    """Tell whether an expression is made of sizes by sums and products alone: it falls when any of them falls."""
    if isinstance(expression, Operation):
        return expression.symbol in {"+", "*"} and all(
            _only_grows(side, fixed) for side in (expression.left, expression.right)
        )
    return not isinstance(expression, Attribute) or expression in fixed
