"""EPIC-Kitchens-100: fuse verb and noun predictions into actions, and evaluate these (verb, noun) pairs.

    python tools/fuse_actions.py ckpt/epic_slowfast_verb_run/eval/epoch_021_ema/predictions.json \
        ckpt/epic_slowfast_noun_run/eval/epoch_021_ema/predictions.json --out actions.json

libs/utils/evaluation/action_fusion.py has the formula.  The annotations are the three files of tools/prepare_epic.py.
"""
from __future__ import annotations

import argparse

from libs.core.arguments import refuse_same, refuse_source
from libs.core.errors import UserError, run_main
from libs.datasets.annotations import Annotations, load_annotations
from libs.datasets.prepare.epic import NOUNS, TASKS, annotation_file
from libs.datasets.presets import get_preset
from libs.utils.evaluation.action_fusion import ActionFusion, fuse_actions
from libs.utils.evaluation.metrics import evaluate_detections
from libs.utils.evaluation.predictions import GroundTruth, read_predictions, write_predictions
from libs.utils.files.io import write_json_atomic


def parse() -> argparse.Namespace:
    default = ActionFusion()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", metavar="VERB_PREDICTIONS", help="JSON, CSV or pickle, as eval.py writes them")
    parser.add_argument("nouns", metavar="NOUN_PREDICTIONS")
    parser.add_argument("--annotations", default="data/epic_kitchens/annotations", metavar="FOLDER",
                        help="of epic_kitchens_100_{verb,noun,action}.json (default: data/epic_kitchens/annotations)")
    parser.add_argument("--split", default="validation", metavar="NAME", help="subset to score on (default: validation)")
    parser.add_argument("--out", metavar="FILE", help="write the actions: .json, .csv or .pkl")
    parser.add_argument("--json", metavar="FILE", help="write the scores (rates as fractions of 1)")
    parser.add_argument("--min-tiou", type=float, default=default.min_tiou, help=f"least tIoU of a pair ({default.min_tiou})")
    parser.add_argument("--verb-share", type=float, default=default.verb_share,
                        help=f"exponent of the verb's score, the noun's is one minus it ({default.verb_share})")
    parser.add_argument("--per-video", type=int, default=default.per_video,
                        help=f"best verbs and best nouns of a video to pair ({default.per_video})")
    parser.add_argument("-t", "--topk", type=int, default=default.max_seg_num,
                        help=f"actions kept per video ({default.max_seg_num})")
    return parser.parse_args()


def main() -> None:
    args = parse()
    for output in (args.out, args.json):
        refuse_source(output, args.verbs, args.nouns, *(annotation_file(args.annotations, task) for task in TASKS))
    refuse_same(args.out, args.json)
    verb, noun, action = (load_annotations(annotation_file(args.annotations, task)) for task in TASKS)
    settings = ActionFusion(args.min_tiou, args.verb_share, args.per_video, max_seg_num=args.topk)
    verbs, nouns = read_predictions(args.verbs, verb.label_ids), read_predictions(args.nouns, noun.label_ids)
    actions = fuse_actions(verbs, nouns, NOUNS, settings)
    names = {i: f"{_name(verb, i // NOUNS)} {_name(noun, i % NOUNS)}" for i in set(actions.label.tolist())}
    print(f"{len(verbs)} verb and {len(nouns)} noun segments give {len(actions)} actions of {len(names)} pairs", flush=True)
    if args.out:
        write_predictions(args.out, actions, names)
    split = args.split.lower()
    videos = action.of_subset((split,))
    if not videos:
        raise UserError(f"{action.path}: has no split {args.split!r}; it has {', '.join(sorted(action.subset_counts()))}")
    ground_truth = GroundTruth.from_videos(((v.id, v.segments, v.labels) for v in videos), action.path)
    scores = evaluate_detections(actions, ground_truth, get_preset("epic").tious, label_names=names)
    print(f"split {split}: {len(ground_truth)} segments of {len(scores.class_ids)} actions, {len(videos)} videos (percent)")
    print(scores.table())
    if args.json:
        write_json_atomic(args.json, {"verbs": args.verbs, "nouns": args.nouns, "annotations": args.annotations, "split": split,
                                      **scores.as_dict()})


def _name(annotations: Annotations, label: int) -> str:
    """The name of a class, or its id as text."""
    return next((name for name, i in annotations.label_ids.items() if i == label), str(label))


if __name__ == "__main__":
    run_main(main)
