"""Tests of a model's weights are collected where the weights are."""

from haversack.models._bundled import bundled_names

collect_ignore = [] if "code-moe" in bundled_names() else ["test_code_moe_shipped.py"]
