"""What the commands of training, sensing, embedding and collecting print under `--json`, by name."""

from __future__ import annotations

import msgspec

from haversack.cli._collect_records import COLLECT_OUTPUTS
from haversack.cli._embed_records import EMBED_OUTPUTS
from haversack.cli._pipeline_records import PIPELINE_OUTPUTS
from haversack.cli._sense_records import SENSE_OUTPUTS
from haversack.cli._train_records import TRAIN_OUTPUTS

ROOM_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    **COLLECT_OUTPUTS,
    **EMBED_OUTPUTS,
    **PIPELINE_OUTPUTS,
    **SENSE_OUTPUTS,
    **TRAIN_OUTPUTS,
}
