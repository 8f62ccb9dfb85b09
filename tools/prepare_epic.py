"""EPIC-Kitchens-100: the official annotation tables -> our JSON for verbs, nouns and actions.

    python tools/prepare_epic.py epic-kitchens-100-annotations data/epic_kitchens/annotations

SOURCE holds EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_video_info.csv, EPIC_100_verb_classes.csv and
EPIC_100_noun_classes.csv.  Writes epic_kitchens_100_{verb,noun,action}.json.  See docs/datasets.md.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import refuse_existing, some_path
from libs.core.errors import run_main
from libs.datasets.prepare.epic import annotation_file, convert_epic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", help="the official annotation tables")
    parser.add_argument("out", type=some_path, metavar="OUT", help="folder to write to, e.g. data/epic_kitchens/annotations")
    parser.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
    args = parser.parse_args()
    documents = convert_epic(args.source)
    paths = {task: annotation_file(args.out, task) for task in documents}
    for path in paths.values():
        refuse_existing(path, args.overwrite)
    contents = {task: document.content() for task, document in documents.items()}  # any error comes before the first file
    for task, document in documents.items():
        document.write(paths[task], contents[task])
        print("\n  ".join([f"{paths[task]}:", *document.summary()]))


if __name__ == "__main__":
    run_main(main)
