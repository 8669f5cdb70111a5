"""Writes the published JSON Schemas beside this file (`make schemas`)."""

import json
from pathlib import Path

from autotune.records import codec
from autotune.records.hardware import Profile
from autotune.records.outlook import Outlook
from autotune.records.plan import Plan, Recipe
from autotune.records.report import Report

for kind in (Plan, Recipe, Report, Profile, Outlook):
    text = json.dumps(codec.schema(kind), indent=2, sort_keys=True) + "\n"
    (Path(__file__).parent / f"{kind.__name__.lower()}.json").write_text(text)
