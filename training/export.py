"""Writes a trained model as a Hugging Face directory: BF16 safetensors, configuration, tokenizer, chat template."""

import json
import os
import pathlib
import struct

import torch
import tokenizer

MAX_BYTES = 16_000_000  # of model.safetensors, header included

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def write_atomically(path, content):
    """Writes bytes or text, so that the file is the old one or the new one whole."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def hf_tensors(model):
    """The weights under the names of Qwen3MoeForCausalLM; the embedding is the output layer too."""
    config, tensors = model.config, {"model.embed_tokens.weight": model.embedding.weight}
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}"
        tensors[f"{prefix}.input_layernorm.weight"] = layer.attention_norm.weight
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = getattr(layer.attention, name).weight
        tensors[f"{prefix}.post_attention_layernorm.weight"] = layer.experts_norm.weight
        tensors[f"{prefix}.mlp.gate.weight"] = layer.experts.router.weight
        for e in range(config.num_experts):
            own = slice(e * config.expert_size, (e + 1) * config.expert_size)
            expert = f"{prefix}.mlp.experts.{e}"
            tensors[f"{expert}.gate_proj.weight"] = layer.experts.gate_proj.weight[own]
            tensors[f"{expert}.up_proj.weight"] = layer.experts.up_proj.weight[own]
            tensors[f"{expert}.down_proj.weight"] = layer.experts.down_proj.weight[:, own]
    tensors["model.norm.weight"] = model.norm.weight
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def safetensors_bytes(tensors):
    """A safetensors file of the tensors, rounded to BF16."""
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        content = tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(content)]}
        data.append(content)
        offset += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data)


def hf_config(config, coder):
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.num_experts * config.expert_size,  # no layer is dense
        "moe_intermediate_size": config.expert_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.rms_eps,
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "output_router_logits": False,
        "bos_token_id": coder.end_of_text,
        "eos_token_id": coder.im_end,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer_config(config):
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": tokenizer.IM_END,
        "pad_token": tokenizer.END_OF_TEXT,
        "unk_token": None,
        "errors": "replace",
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_positions,
    }


def write_model(model, folder):
    """Writes the directory; a file that is there is replaced whole."""
    coder = tokenizer.build()
    weights = safetensors_bytes(hf_tensors(model))
    if len(weights) > MAX_BYTES:
        raise ValueError(f"model.safetensors would take {len(weights)} bytes, more than {MAX_BYTES}")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generation = {
        "do_sample": False,
        "bos_token_id": coder.end_of_text,
        "eos_token_id": [coder.im_end, coder.end_of_text],
        "pad_token_id": coder.end_of_text,
    }
    for name, content in {
        "model.safetensors": weights,
        "config.json": json.dumps(hf_config(model.config, coder), indent=2) + "\n",
        "tokenizer.json": coder.to_json() + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_config(model.config), indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
    }.items():
        write_atomically(folder / name, content)
