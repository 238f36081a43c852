"""`python -m tests.fuzz [KIND...] [--seconds N] [--seed S]`: try damaged files, and random calls of the operator, and print a table."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .judge import Case, Judge
from .kinds import Kind, all_kinds
from .operator import try_calls

SHOWN = 3  # offenders of each kind
OPERATOR = "operator"  # not a kind of files
CALLS = 10**6  # seeds of calls that a seed of the tool stands for


def main() -> int:
    kinds = all_kinds()
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Try damaged files and judge what happens."
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join([*kinds, OPERATOR])}; by default all")
    parser.add_argument("--seconds", type=float, default=60, help="of all kinds together (60)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance (0)")
    parser.add_argument("--case", help="run one case of one kind again: its number, or the name of one made by hand")
    parser.add_argument("--keep", type=Path, help="with --case: folder for its files")
    options = parser.parse_args()
    if unknown := set(options.kinds) - {*kinds, OPERATOR}:
        parser.error(f"unknown kinds {', '.join(sorted(unknown))}, expected some of {', '.join([*kinds, OPERATOR])}")
    if options.case is not None and options.kinds == [OPERATOR]:
        _, wrong = try_calls(int(options.case), lambda count: count < 1)
        print(*wrong or ["as the reference"])
        return bool(wrong)
    chosen = [kinds[name] for name in options.kinds or kinds if name != OPERATOR]
    with_operator = not options.kinds or OPERATOR in options.kinds
    with Judge() as judge:
        if options.case is not None:
            if len(chosen) != 1:
                parser.error("--case needs one KIND")
            number = int(options.case) if options.case.isdecimal() else None
            case = (
                judge.by_hand(chosen[0], options.case, options.keep)
                if number is None
                else judge.by_chance(chosen[0], options.seed, number, options.keep)
            )
            print(case if case.verdict else f"kept the rule, status {case.status}")
            return bool(case.verdict)
        return _table(judge, chosen, with_operator, options.seconds, options.seed)


def _table(judge: Judge, kinds: list[Kind], with_operator: bool, seconds: float, seed: int) -> int:
    print(f"{'kind':<16} {'files':>7} {'read':>7} {'refused':>8} {'broke the rule':>15}", flush=True)
    total, broken = 0, 0
    begin = time.monotonic()
    share = seconds / (len(kinds) + with_operator)
    for kind in kinds:
        if problem := judge.check_sound(kind):
            print(f"{kind.name:<16} {problem}", flush=True)
            broken += 1
            continue
        end = time.monotonic() + share
        cases: list[Case] = [judge.by_hand(kind, name) for name in kind.hostile]
        number = 0
        while time.monotonic() < end:
            cases.append(judge.by_chance(kind, seed, number))
            number += 1
        bad = [case for case in cases if case.verdict]
        read = sum(case.status == 0 for case in cases)
        print(f"{kind.name:<16} {len(cases):>7} {read:>7} {len(cases) - read:>8} {len(bad):>15}", flush=True)
        seen: set[str] = set()
        for case in bad:  # one of each verdict
            if (reason := case.verdict.splitlines()[0][:60]) not in seen and len(seen) < SHOWN * 4:
                seen.add(reason)
                print(f"    {str(case).splitlines()[0]}", flush=True)
        total, broken = total + len(cases), broken + len(bad)
    if with_operator:
        end = time.monotonic() + share
        calls, wrong = try_calls(seed * CALLS, lambda _: time.monotonic() < end)
        print(f"{OPERATOR:<16} {calls:>7} {calls - len(wrong):>7} {'':>8} {len(wrong):>15}", flush=True)
        print(*(f"    {OPERATOR} {line}" for line in wrong[:SHOWN]), sep="\n", end="\n" if wrong else "")
        total, broken = total + calls, broken + len(wrong)
    print(f"{total} files and calls in {time.monotonic() - begin:.0f} s, {broken} broke the rule")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
