"""Writes a tiny random Llama model as a GGUF file: `make_gguf.py OUT`. Needs nothing but Python.

The text it generates means nothing; its server schedules, caches and counts tokens like that of any model.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3."""

import array
import random
import struct
import sys

U32, F32_VALUE, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
F32_TENSOR = 0
ALIGNMENT = 32
NORMAL, CONTROL = 1, 3

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 2, 64, 2, 1, 32, 128
CONTEXT = 65_536
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "i n", "e r", "a n"]
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def byte_tokens():
    """GPT-2's names for the 256 bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    names = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, one):
    if kind == STRING:
        return string(one)
    return struct.pack({U32: "<I", I32: "<i", F32_VALUE: "<f", BOOL: "<?"}[kind], one)


def pair(key, kind, one):
    return string(key) + struct.pack("<I", kind) + value(kind, one)


def pairs(key, kind, many):
    return string(key) + struct.pack("<IIQ", ARRAY, kind, len(many)) + b"".join(value(kind, one) for one in many)


def metadata(tokens):
    def llama(name, kind, one):
        return pair("llama." + name, kind, one)

    types = [CONTROL if token in SPECIAL else NORMAL for token in tokens]
    return [
        pair("general.architecture", STRING, "llama"),
        pair("general.name", STRING, "tiny-random"),
        pair("general.alignment", U32, ALIGNMENT),
        llama("context_length", U32, CONTEXT),
        llama("embedding_length", U32, HIDDEN),
        llama("block_count", U32, LAYERS),
        llama("feed_forward_length", U32, INTERMEDIATE),
        llama("attention.head_count", U32, HEADS),
        llama("attention.head_count_kv", U32, KV_HEADS),
        llama("attention.key_length", U32, HEAD_DIM),
        llama("attention.value_length", U32, HEAD_DIM),
        llama("attention.layer_norm_rms_epsilon", F32_VALUE, 1e-5),
        llama("rope.dimension_count", U32, HEAD_DIM),
        llama("rope.freq_base", F32_VALUE, 10_000.0),
        llama("vocab_size", U32, len(tokens)),
        pair("tokenizer.ggml.model", STRING, "gpt2"),
        pair("tokenizer.ggml.pre", STRING, "gpt-2"),
        pairs("tokenizer.ggml.tokens", STRING, tokens),
        pairs("tokenizer.ggml.token_type", I32, types),
        pairs("tokenizer.ggml.merges", STRING, MERGES),
        pair("tokenizer.ggml.bos_token_id", U32, tokens.index("<s>")),
        pair("tokenizer.ggml.eos_token_id", U32, tokens.index("</s>")),
        pair("tokenizer.ggml.padding_token_id", U32, tokens.index("<pad>")),
        pair("tokenizer.ggml.add_bos_token", BOOL, False),
        pair("tokenizer.chat_template", STRING, TEMPLATE),
    ]


def shapes(vocabulary):
    """Names and dimensions, the length of a row first."""
    yield "token_embd.weight", (HIDDEN, vocabulary)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (HIDDEN,)
        yield block + "attn_q.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield block + "attn_k.weight", (HIDDEN, KV_HEADS * HEAD_DIM)
        yield block + "attn_v.weight", (HIDDEN, KV_HEADS * HEAD_DIM)
        yield block + "attn_output.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield block + "ffn_norm.weight", (HIDDEN,)
        yield block + "ffn_gate.weight", (HIDDEN, INTERMEDIATE)
        yield block + "ffn_up.weight", (HIDDEN, INTERMEDIATE)
        yield block + "ffn_down.weight", (INTERMEDIATE, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    yield "output.weight", (HIDDEN, vocabulary)


def numbers(name, dimensions, chance):
    count = 1
    for dimension in dimensions:
        count *= dimension
    if "norm" in name:
        return array.array("f", [1.0] * count)
    return array.array("f", (chance.gauss(0, 0.2) for _ in range(count)))


def main():
    chance = random.Random(0)
    tokens = byte_tokens() + [merge.replace(" ", "") for merge in MERGES] + SPECIAL
    entries = metadata(tokens)
    infos, data = [], b""
    for name, dimensions in shapes(len(tokens)):
        infos.append(string(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
                     + struct.pack("<IQ", F32_TENSOR, len(data)))
        data += numbers(name, dimensions, chance).tobytes()
        data += b"\0" * (-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries) + b"".join(infos)
    with open(sys.argv[1], "wb") as out:
        out.write(head + b"\0" * (-len(head) % ALIGNMENT) + data)


if __name__ == "__main__":
    main()
