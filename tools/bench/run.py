"""Our worker and Celery's side by side: both in turns, each round with a Redis of its own; medians and ratios.

    make bench                             # every row, five rounds
    make bench ROWS='drain|latency' ROUNDS=3

A row is chosen by a part of its name. Only ratios carry over to other machines; the load says how quiet this one was.
"""

import argparse
import json
import os
import re
import statistics

from rows import all_rows

KINDS = ("orchestra", "celery")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="", help="a regular expression")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of tasks")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--out", help="a file for all figures, as JSON")
    options = parser.parse_args()
    rows = {name: row for name, row in all_rows(options.scale).items() if re.search(options.rows, name)}
    figures, loads = {name: {kind: [] for kind in KINDS} for name in rows}, []
    for turn in range(options.rounds):
        for name, row in rows.items():
            for kind in KINDS if options.only is None else (options.only,):
                loads.append(os.getloadavg()[0])
                figures[name][kind].append(row(kind))
                print(f"round {turn + 1}  {name}  {kind}  {figures[name][kind][-1]}", flush=True)
    print(f"\n{options.rounds} rounds, medians; load before a run {min(loads):.1f} to {max(loads):.1f}\n")
    print("| row | figure | orchestra | Celery prefork | ratio |\n| --- | --- | --- | --- | --- |")
    for name in rows:
        table(name, *(medians(figures[name][kind]) for kind in KINDS))
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"loads": loads, "figures": figures}, file, indent=1)


def medians(runs):
    names = {name: None for run in runs for name in run}
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def table(name, ours, theirs):
    for figure in {**ours, **theirs}:
        values = [side.get(figure) for side in (ours, theirs)]
        ratio = "" if None in values or not min(values) else f"{max(values) / min(values):.3g}"
        shown = ["" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
        print(f"| {name} | {figure} | {shown[0]} | {shown[1]} | {ratio} |")


main()
