"""The layers of a block, one file a kind: `forward(layer, x, ...)` of the record of the same name."""
