"""Makes a few-layer Llama with a tokenizer and a chat template of its own, in seconds and with no network.

    python examples/make_tiny_model.py DIRECTORY

The model knows nothing; it is for runs in which only the machinery matters. The same versions of Python,
torch and tokenizers give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, TURN_START, TURN_END, PAD = "<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|pad|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' +"
    " message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML after a BOS, without generation tags, as most published templates are."""


def make_tiny_model(
    directory: Path,
    *,
    tie_word_embeddings: bool = False,
    vocab_size: int = 1024,
    max_position_embeddings: int = 2048,
    seed: int = 0,
) -> Path:
    """Writes a model directory (fp32 safetensors, config, tokenizer) and returns its path.

    `vocab_size` counts tokens, special ones included, and must hold the 256 bytes and the 4 special tokens.
    `seed` decides the weights; the tokenizer does not depend on it.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
    )
    return make_llama(directory, config, seed=seed)


def make_llama(directory: Path, config: LlamaConfig, *, seed: int = 0) -> Path:
    """The same for a Llama of another shape; its special tokens become the tokenizer's."""
    tokenizer = make_tokenizer(config.vocab_size, config.max_position_embeddings)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tokenizer(vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the Python documentation that comes with Python.

    As Llama 3's does, it puts a BOS before every text it encodes with special tokens; the chat template
    writes one too.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        topics.values(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, TURN_START, TURN_END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START],
        model_max_length=model_max_length,
        chat_template=CHAT_TEMPLATE,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes a few-layer Llama with its own tokenizer.")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--tie-word-embeddings", action="store_true", help="one matrix for embedding and output"
    )
    arguments = parser.parse_args()
    print(make_tiny_model(arguments.directory, tie_word_embeddings=arguments.tie_word_embeddings))
