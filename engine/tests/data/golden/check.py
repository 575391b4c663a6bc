#!/usr/bin/env python3
"""Compare a job's JSON-lines output with a golden Nexmark result (see README.md beside this file)."""
import argparse
import collections
import gzip
import json
import pathlib
import re
import sys

# Columns that are compared; the others may legally differ (ties).
COMPARED = {"q19": (0, 2, 7)}
TIMESTAMP = re.compile(r"^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)?$")


def canonical(value):
    """The text by which a value is compared: one form for timestamps, decimals, booleans and nulls."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    stamp = TIMESTAMP.match(text)
    if stamp:
        day, minute, second, fraction, _ = stamp.groups()
        return f"{day}T{minute}{second or ':00'}{(fraction or '.').rstrip('0').rstrip('.')}"
    if re.fullmatch(r"-?\d+\.\d+", text):
        return text.rstrip("0").rstrip(".")
    return text


def golden_rows(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield tuple(canonical(field) for field in line.rstrip("\n").split("\t"))


def output_files(paths):
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not any(
                part.startswith((".", "_")) for part in p.relative_to(path).parts))
        elif path.exists():
            yield path
        else:
            sys.exit(f"no such output: {path}")


def output_rows(paths, columns):
    """The net multiset of rows that the output adds up to."""
    net = collections.Counter()

    def row(record):
        names = columns or record.keys()
        return tuple(canonical(record[name]) for name in names)

    for path in output_files(paths):
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line, parse_float=str)
                except json.JSONDecodeError as error:
                    sys.exit(f"{path}:{number}: not JSON: {error}")
                envelope = record.get("payload", record)
                if "op" in envelope and ("after" in envelope or "before" in envelope):
                    if envelope.get("before") is not None:
                        net[row(envelope["before"])] -= 1
                    if envelope.get("after") is not None:
                        net[row(envelope["after"])] += 1
                else:
                    net[row(record)] += 1
    for key, count in net.items():
        if count < 0:
            sys.exit(f"a row was retracted more often than inserted ({count}): {key}")
    return +net


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--golden", required=True, help="folder with qN.tsv.gz")
    parser.add_argument("--query", required=True, help="q0 … q22")
    parser.add_argument("--columns", help="the output's fields, in the order of the golden columns")
    parser.add_argument("output", nargs="+", help="JSON-lines files or folders of them")
    args = parser.parse_args()
    expected = collections.Counter(golden_rows(pathlib.Path(args.golden) / f"{args.query}.tsv.gz"))
    actual = output_rows(args.output, args.columns.split(",") if args.columns else None)
    keep = COMPARED.get(args.query)
    if keep:
        project = lambda rows: collections.Counter(
            x for r, n in rows.items() for x in [tuple(r[i] for i in keep)] for _ in range(n))
        expected, actual = project(expected), project(actual)
    missing, extra = expected - actual, actual - expected
    if not missing and not extra:
        print(f"{args.query} OK {sum(expected.values())} rows")
        return 0
    print(f"{args.query} DIFFERS: {sum(missing.values())} of {sum(expected.values())} rows missing, {sum(extra.values())} too many")
    for label, rows in (("missing", missing), ("too many", extra)):
        for r, n in list(rows.items())[:3]:
            print(f"  {label} ×{n}: " + " | ".join(r)[:300])
    return 1


if __name__ == "__main__":
    sys.exit(main())
