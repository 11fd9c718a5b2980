"""``python -m llm_forget.core.formats --write DIR`` writes the JSON Schema of every file into a folder."""

import argparse
from pathlib import Path

from llm_forget.core.formats.schemas import write_schemas


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm_forget.core.formats", description=__doc__)
    parser.add_argument("--write", metavar="DIR", type=Path, required=True, help="Folder for the schemas.")
    for path in write_schemas(parser.parse_args().write):
        print(path)


if __name__ == "__main__":
    main()
