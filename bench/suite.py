#!/usr/bin/env python3
"""Takes the figures of bench/figures/ and writes them down; bench/run starts it. README.md says what each figure is."""

import argparse
import datetime
import importlib
import json
import os
import re
import signal
import subprocess
import time
import traceback
from pathlib import Path

import plot
from common import ENGINES, Failed, Http, Process, Size, data, drop_database, fresh_database, psql, say

HERE = Path(__file__).parent
FIGURES = [
    "write_single",
    "write_bulk",
    "write_wal",
    "backfill",
    "catch_up",
    "redis_fill",
    "lag",
    "search",
    "idle_cost",
    "memory",
    "scale",
    "peer_pgsync",
    "peer_outbox",
    "peer_logstash_like",
]


def first_line(*command):
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip().split("\n")[0]


def surroundings(size):
    def version(url):
        nodes = Http(url).json("GET", "/_nodes/_local?filter_path=nodes.*.version")["nodes"]
        return next(iter(nodes.values()))["version"]

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())
    changed = first_line("git", "status", "--porcelain", "--", "../src", "../delivery", "../sql")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": first_line("git", "rev-parse", "--short", "HEAD") + (" and changes" if changed else ""),
        "size": size.name,
        "cores": os.cpu_count(),
        "processor": model[1] if model else "unknown",
        "memory_gb": round(int(memory[1]) / 1024**2) if memory else None,
        "load_before": round(os.getloadavg()[0], 1),
        "PostgreSQL": psql("SHOW server_version", "postgres").split()[0],
        **{name: version(url) for name, url in ENGINES.items()},
        "Redis": first_line("redis-server", "--version").split("v=")[1].split()[0],
    }


def number(value):
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def compared(row):
    """The figure, and the lowest and the highest round."""
    if row["by"] == "value":
        shown = number(row["figure"])
        return shown if row["low"] == row["high"] else f"{shown} ({number(row['low'])}–{number(row['high'])})"
    sign = "+" if row["by"] == "difference" else ""
    digits = ".2f" if row["by"] == "ratio" else ".1f"
    return f"{row['figure']:{sign}{digits}} ({row['low']:{sign}{digits}}–{row['high']:{sign}{digits}})"


def table(rows):
    lines = ["| what | pg_fanout | against | ratio (rounds) | goal |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        against = f"{number(row['peer'])} {row['unit']}, {row['against']}" if row["peer"] is not None else ""
        goal = (
            ""
            if not row["goal"]
            else row["goal"].replace("<=", "≤").replace(">=", "≥") + ("" if row["met"] else ", **missed**")
        )
        ours = "" if row["unit"] == "slope" else f"{number(row['ours'])} {row['unit']}"
        lines.append(f"| {row['what']} | {ours} | {against} | {compared(row)} | {goal} |")
    notes = [f"{row['what']}: {row['note']}." for row in rows if row["note"]]
    return lines + ([""] + notes if notes else [])


def machine(where):
    return (
        f"{where['date']}, commit {where['commit']}, size {where['size']}; {where['cores']} cores "
        f"({where['processor']}), {where['memory_gb']} GB, "
        f"load average {where['load_before']} before and {where['load_after']} after; "
        f"PostgreSQL {where['PostgreSQL']}, OpenSearch {where['OpenSearch']}, Elasticsearch {where['Elasticsearch']}, "
        f"Redis {where['Redis']}. Took {where['seconds']} s."
    )


def between_marks(path, name, lines):
    text = path.read_text()
    block = "\n".join([f"<!-- {name} -->", "", *lines, "", f"<!-- end of {name} -->"])
    path.write_text(re.sub(f"<!-- {name} -->.*?<!-- end of {name} -->", lambda _: block, text, flags=re.DOTALL))


def record(folder, name, result):
    """Puts one figure into the results; the others keep theirs."""
    path = folder / "latest.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = result
    path.write_text(json.dumps({name: results[name] for name in FIGURES if name in results}, indent=1) + "\n")
    return results


def plots(folder, name, title, rows, more):
    drawn = {name: plot.ratios(title, rows)} if name not in more else {}
    drawn |= {name: plot.lines(*of) for name, of in more.items()}
    for name, text in drawn.items():
        if text:
            (folder / f"{name}.svg").write_text(text)
    return [f"![{name}](results/{name}.svg)" for name, text in drawn.items() if text]


def summary(results):
    """What the README shows: of each figure what is furthest from its goal, how many goals are met, and the plots."""
    lines = [
        "| figure | goals met | furthest from its goal | ratio (rounds) | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in FIGURES:
        rows = [row for row in results.get(name, {}).get("rows", []) if row["goal"]]
        if not rows:
            continue

        def room(row):
            relation, bound = row["goal"].split()
            bound = float(bound)
            short = (row["figure"] - bound) if relation == "<=" else (bound - row["figure"])
            return short / max(abs(bound), 0.01)

        worst = max(rows, key=room)
        goal = worst["goal"].replace("<=", "≤").replace(">=", "≥")
        met = sum(row["met"] for row in rows)
        lines.append(
            f"| [{name}](bench/README.md#{name}) | {met} of {len(rows)} | {worst['what']} | {compared(worst)} "
            f"| {goal} |"
        )
    commits = sorted({result["where"]["commit"] for result in results.values()})
    drawn = [name for name in FIGURES if (HERE / "results" / f"{name}.svg").exists()]
    return lines + [
        "",
        f"Taken at commit {', '.join(commits)}; bench/README.md has all of it.",
        "",
        "<details><summary>Plots</summary>",
        "",
        *(f"![{name}](bench/results/{name}.svg)" for name in drawn),
        "",
        "</details>",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog="Figures: " + ", ".join(FIGURES))
    parser.add_argument("figure", nargs="*", choices=[*FIGURES, []], help="all of them if none is named")
    parser.add_argument("--size", choices=["tiny", "quick", "full", "long"], default="full")
    arguments = parser.parse_args()
    # Stopped by either, it leaves nothing behind; without a terminal the shell has it ignore the first.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    size = Size(arguments.size)
    # Only the full sizes are worth being shown.
    keep = size.name in ("full", "long")
    folder = HERE / "results" / ("" if keep else size.name)
    folder.mkdir(parents=True, exist_ok=True)
    failed, begun_all = [], time.perf_counter()
    say(f"{size.rows:,} rows are made")
    data(size)
    try:
        for name in arguments.figure or FIGURES:
            figure = importlib.import_module(f"figures.{name}")
            title = figure.__doc__.strip().split("\n\n")[0].replace("\n", " ")
            say(f"\n{name}: {title}")
            where, begun = surroundings(size), time.perf_counter()
            try:
                fresh_database()
                rows = figure.measure(size)
            except (Failed, AssertionError, OSError, subprocess.SubprocessError) as error:
                # One figure that fails costs no other.
                failed.append(name)
                say(f"  {name} was not taken: {''.join(traceback.format_exception(error))}")
                continue
            finally:
                for process in list(Process.running):
                    process.stop()
            rows, more = rows if isinstance(rows, tuple) else (rows, {})
            where |= {"seconds": round(time.perf_counter() - begun), "load_after": round(os.getloadavg()[0], 1)}
            say("\n" + "\n".join(table(rows)) + f"\n{where['seconds']} s")
            results = record(folder, name, {"where": where, "rows": rows})
            pictures = plots(folder, name, title, rows, more)
            if keep:
                between_marks(HERE / "README.md", name, [*table(rows), "", *pictures, "", machine(where)])
                between_marks(HERE.parent / "README.md", "figures", summary(results))
    finally:
        drop_database()
        psql("DROP DATABASE IF EXISTS fanout_bench_data", "postgres")
    say(
        f"\nTook {time.perf_counter() - begun_all:.0f} s; "
        f"the figures are in {folder.relative_to(HERE.parent)}/latest.json"
        + (", bench/README.md and README.md" if keep else "")
    )
    if failed:
        raise SystemExit(f"bench: not taken: {', '.join(failed)}")


main()
