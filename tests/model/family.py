"""Members of the family at the size of `tiny`: every head, fusion and memory that a configuration can ask for."""

from typing import Any

from rfedge.config import PolicyConfig, head_of_kind, preset

CHANGES: dict[str, dict[str, Any]] = {
    "gpt": {"head": "gpt"},
    "mlp": {"head": "mlp"},
    "mlp-with-history": {"head": "mlp", "media_frames": 3},
    "mlp-with-history-pre": {"head": "mlp", "media_frames": 4, "fusion": "pre"},
    "pre": {"fusion": "pre", "pooling": "average"},
    "two-way": {"fusion": "two_way"},
    "two-way-gpt-chunks": {"fusion": "two_way", "head": "gpt", "chunk_size": 3},
    "proprioception": {"proprioception": True, "time_keeping": "carry"},
    "proprioception-history": {"proprioception": True, "media_frames": 2, "time_keeping": "carry"},
}


def member(name: str) -> PolicyConfig:
    """Return one member; windows are short, so that every history is both growing and full within a few frames."""
    base = preset("tiny")
    changes = dict(CHANGES[name])
    head = head_of_kind(changes.pop("head", "lstm"), base.head)
    return PolicyConfig.model_validate(
        {**base.model_dump(), "name": name, "window": 5, "head": head.model_dump(), **changes}
    )
