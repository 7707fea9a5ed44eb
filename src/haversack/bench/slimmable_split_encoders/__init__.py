"""The bench of slimmable split encoders: one resident model whose width and bits change frame by frame.

quality.py: every mode's mAP, against the teacher and against JPEG. device.py: times, switching, memory.
links.py: the controllers over emulated links, and over real sockets. training.py: static encoders and
ablations, trained as the shipped network was. published.py: published detectors as teachers, at their real
size.
"""

from __future__ import annotations

from haversack.bench.slimmable_split_encoders import device, links, published, quality, training
from haversack.bench.slimmable_split_encoders._bench import bench

__all__ = ["bench", "device", "links", "published", "quality", "training"]
