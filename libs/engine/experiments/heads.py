"""The head of a configuration, its leading comment in a fixed form, and the stored result that it names.

    # UCI HAPT, the setting to use.                                     what it is: the lines before the first field
    # Paper: Zhang et al., ECCV 2022 (ActionFormer)
    # Data: data/hapt, by python tools/prepare_hapt.py HAPT.zip data/hapt (docs/datasets.md#hapt)
    # Run: python tools/run_seeds.py configs/hapt.yaml --seeds 3
    # Expected: average mAP 90.11 +- 0.65 over 3 seeds, measured here (benchmarks/results/hapt.json: hapt_ema)
    # Cost: not measured

A field goes on in comment lines that are indented by three spaces.  "as in FILE" is the same field of FILE, beside this one.
Expected is one of

    average mAP M +- S over N seeds, measured here (FILE: ROW; spread of FILE)
    average mAP M, published (WHERE), not measured here
    not measured yet

S is the standard deviation of the seeds; of one seed ("over 1 seed"), that of seeds of the rows of the second FILE, pooled.
Where the second FILE is named, those rows also say how far off a new run may be, since runs of one study spread alike.
"over N folds" is the same for the folds of a dataset.
"""
from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.core.errors import UserError
from libs.core.files import read_text
from libs.engine.experiments.launch import ROOT
from libs.engine.experiments.repeats import pooled_deviation, t_975
from libs.utils.files.io import read_json

FIELDS = ("Paper", "Data", "Run", "Expected", "Cost")
FIELD = re.compile(rf"# ({'|'.join(FIELDS)}): (.*)")
STORED = r"benchmarks/results/\w+\.json"
MEASURED = re.compile(r"average mAP ([\d.]+) \+- ([\d.]+) over (?:1 seed|(\d+) (?:seed|(fold))s), measured here "
                      rf"\(({STORED}): (\w+)(?:; spread of ({STORED}))?\)")
PUBLISHED = re.compile(r"average mAP ([\d.]+), published \(.+\), not measured here")
UNKNOWN = "not measured yet"


@dataclass(frozen=True)
class Expected:
    """What a head expects; average mAP in percent, None: not known."""

    mean: float | None = None
    spread: float | None = None  # None: not measured here
    file: str = ""  # of the stored result
    row: str = ""
    spread_file: str = ""  # whose rows the spread comes from; "": from the row itself
    folds: bool = False  # mean and spread are over folds, not seeds

    def seeds(self) -> list[float]:
        """The stored average mAP of seeds 0, 1, ...; UserError if there is no such row."""
        rows = stored_seeds(self.file)
        if self.row not in rows:
            raise UserError(f"{self.file}: has no row {self.row} with seeds; its rows are {', '.join(rows)}")
        return rows[self.row]

    def samples(self) -> list[list[float]]:
        """The seeds of each row that the spread comes from."""
        rows = list(stored_seeds(self.spread_file).values()) if self.spread_file else [self.seeds()]
        return [seeds for seeds in rows if len(seeds) > 1]

    def pooled_spread(self) -> float:
        """`pooled_deviation` of `samples`."""
        spread = pooled_deviation(self.samples())
        assert spread is not None  # every sample has two seeds, and a head without samples is refused
        return spread

    def freedom(self) -> int:
        """Degrees of freedom of `pooled_spread`."""
        return sum(len(seeds) - 1 for seeds in self.samples())

    def half_width(self) -> float:
        """Half the width of the 95 % prediction interval of one new run: t * spread * sqrt(1 + 1 / seeds).

        t: quantile .975 of Student's t.  Of right runs 5 % fall outside, while with 3 standard deviations of three seeds they
        would be 12 %: three seeds give a poor estimate of the spread.
        """
        return t_975(self.freedom()) * self.pooled_spread() * math.sqrt(1 + 1 / len(self.seeds()))


def stored_seeds(file: str) -> dict[str, list[float]]:
    """Row -> average mAP in percent by seed (0, 1, ...) or fold in a file of benchmarks/results; EMA weights of both."""
    rows = read_json(ROOT / file, "stored result")["rows"]
    found = {name: row.get("seeds", row.get("average_mAP", row.get("ema"))) for name, row in rows.items()}
    return {name: x if isinstance(x, list) else [x] for name, x in found.items() if x is not None}


@dataclass(frozen=True)
class Head:
    """The head of one configuration."""

    path: Path
    about: str
    fields: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Where the configuration looks for its data."""
        return self.fields["Data"].partition(",")[0]

    @property
    def expected(self) -> Expected:
        """The field Expected; UserError for a text of another form."""
        text = self.fields["Expected"]
        if match := MEASURED.fullmatch(text):
            mean, spread, several, fold, file, row, spread_file = match.groups()
            if not several and not spread_file:
                raise UserError(f"{self.path}: Expected: {text}: one seed has no spread; name a file whose rows tell that "
                                "of seeds: (FILE: ROW; spread of FILE)")
            return Expected(float(mean), float(spread), file, row, spread_file or "", fold is not None)
        if match := PUBLISHED.fullmatch(text):
            return Expected(float(match[1]))
        if text != UNKNOWN:
            raise UserError(f"{self.path}: Expected: {text}: is none of the forms in {Path(__file__).relative_to(ROOT)}")
        return Expected()


def read_head(path: str | os.PathLike) -> Head:
    """The head of a YAML file, "as in" replaced; `_*.yaml` may lack fields.  UserError for one that is not in the form."""
    path, about, fields = Path(path), [], {}
    field = None
    for line in read_text(path, "configuration").splitlines():
        if not line.startswith("#"):
            break
        if match := FIELD.fullmatch(line):
            field, text = match.groups()
            if field in fields:
                raise UserError(f"{path}: {field}: is there twice in the leading comment; keep one")
            fields[field] = text.strip()
        elif field is None:
            about.append(line.lstrip("# "))
        elif line.startswith("#   "):
            fields[field] += " " + line.lstrip("# ")
        else:
            raise UserError(f"{path}: {line}: belongs to no field; indent it by three spaces to go on with {field}, or write it "
                            "above the first field")
    for name, text in fields.items():
        if other := re.fullmatch(r"as in ([\w./-]+\.yaml)", text):
            fields[name] = read_head(path.parent / other[1]).fields.get(name, "")
    missing = [name for name in FIELDS if not fields.get(name) and (not path.name.startswith("_") or name in fields)]
    if missing or not about:
        raise UserError(f"{path}: its leading comment lacks {', '.join(missing or ['what it is'])}; write one as "
                        "configs/hapt.yaml has")
    return Head(path, " ".join(about), fields)


def all_heads(folder: Path = ROOT / "configs") -> dict[str, Head]:
    """Name (path in `folder` without .yaml) -> head of each configuration that has one and can be run (not `_*.yaml`)."""
    paths = [path for path in sorted(folder.rglob("*.yaml")) if not path.name.startswith("_")]
    return {path.relative_to(folder).with_suffix("").as_posix(): read_head(path) for path in paths
            if "\n# Expected: " in read_text(path, "configuration")}
