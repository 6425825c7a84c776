"""Makes a small random Llama with its tokenizer, and LoRA adapters for it, wholly offline. Runs inside vLLM's venv.

The weights are drawn wide (``--init-std 0.2``), so that what a prompt's KV holds is seen in the logprobs: a small model
with usual weights says one token whatever its KV holds, and a test with it would prove nothing.
"""

import argparse
import glob
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(out: Path, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the standard library's sources: text that every machine with Python has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train(sorted(glob.glob(os.path.dirname(os.__file__) + "/*.py"))[:60], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=context, clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(out)
    return fast


def make_model(out: Path, arguments: argparse.Namespace) -> None:
    """The model's files in ``out``."""
    tokenizer = make_tokenizer(out, arguments.context)
    torch.manual_seed(arguments.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=arguments.context,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True, initializer_range=arguments.init_std,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)


def make_adapter(out: Path, seed: int) -> None:
    """A LoRA adapter on the key and value projections (so that it changes KV itself)."""
    generator = torch.Generator().manual_seed(seed)
    rank, hidden, kv = 8, 128, 64
    tensors = {}
    for layer in range(4):
        for name in ("k_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(kv, rank, generator=generator) * 0.2
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["k_proj", "v_proj"], "base_model_name_or_path": "tiny",
    }))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapter", action="store_true", help="make a LoRA adapter and not a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init-std", type=float, default=0.2)
    parser.add_argument("--context", type=int, default=16384)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.adapter:
        make_adapter(arguments.out, arguments.seed)
    else:
        make_model(arguments.out, arguments)


if __name__ == "__main__":
    main()
