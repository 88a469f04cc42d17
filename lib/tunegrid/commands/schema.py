"""Write the record's JSON schema: `tunegrid schema` writes reports/schema.json, generated from the record's classes."""

import argparse
import json
from pathlib import Path

from tunegrid import ROOT
from tunegrid.record import schema

SCHEMA = ROOT / "reports" / "schema.json"


def text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=2) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the file; return the exit code."""
    parser = argparse.ArgumentParser(prog="tunegrid schema", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=SCHEMA, metavar="OUT.json", help="default: reports/schema.json")
    options = parser.parse_args(arguments)
    options.output.write_text(text())
    print(f"wrote {options.output}")
    return 0
