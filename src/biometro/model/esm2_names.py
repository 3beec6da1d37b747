"""What transformers calls the layers of ESM-2, and which encoders are none."""

from __future__ import annotations

from biometro.model.encoder import EncoderConfig

# (theirs, ours) within one layer; q, k and v are one matrix here.
HUGGINGFACE_LAYER = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "attention.out", "attention.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.up", "output.dense": "ffn.down", "LayerNorm": "ffn_norm",
}  # fmt: skip


def obstacles(config: EncoderConfig) -> dict[str, bool]:
    """What of an encoder ESM-2 cannot express, and whether it is so here."""
    return {
        "positions is alibi": config.positions != "rotary",
        "ffn is swiglu": config.ffn != "gelu",
        "norm is rmsnorm": config.norm != "layernorm",
        "there are no biases": not config.bias,
        "embedding_width differs from width": config.embedding_width not in (None, config.width),
    }
