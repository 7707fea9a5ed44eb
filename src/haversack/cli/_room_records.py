"""What the commands of training, sensing, embedding, collecting and sharing print under `--json`, by name."""

from __future__ import annotations

import msgspec

from haversack.cli._collect_records import COLLECT_OUTPUTS
from haversack.cli._embed_records import EMBED_OUTPUTS
from haversack.cli._pipeline_records import PIPELINE_OUTPUTS
from haversack.cli._sense_records import SENSE_OUTPUTS
from haversack.cli._share_codec_records import CODEC_OUTPUTS
from haversack.cli._share_hera_records import STEP_OUTPUTS
from haversack.cli._share_records import SHARE_OUTPUTS
from haversack.cli._share_split_records import SHARE_SPLIT_OUTPUTS
from haversack.cli._train_records import TRAIN_OUTPUTS

ROOM_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    **CODEC_OUTPUTS,
    **COLLECT_OUTPUTS,
    **EMBED_OUTPUTS,
    **PIPELINE_OUTPUTS,
    **SENSE_OUTPUTS,
    **STEP_OUTPUTS,
    **SHARE_SPLIT_OUTPUTS,
    **SHARE_OUTPUTS,
    **TRAIN_OUTPUTS,
}
