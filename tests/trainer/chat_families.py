"""Chat templates of the most used model families.

Those of the package trl are the published files; the others are written from what the families document. Each
has a twin that writes the same text and marks the answers with `{% generation %}`, which is what transformers
gets its own mask from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.trainer.tokenizers_for_tests import byte_level, published_template
from transformers import PreTrainedTokenizerFast

_MARKS = re.compile(r"\{%-? (end)?generation -?%\}")
_ALTERNATING = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)

WRITTEN = {
    "llama2": (
        "{% set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}"
        "{% for message in rest %}" + _ALTERNATING + "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' }}{% if loop.first and rest != messages %}"
        "{{ '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' }}{% endif %}"
        "{{ message['content'].strip() + ' [/INST]' }}{% else %}{% generation %}"
        "{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATING + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{% generation %}"
        "{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    # The system message goes into the last question.
    "mistral_v0_3": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
        "{{ bos_token }}{% for message in rest %}" + _ALTERNATING + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + (system if message == users[-1] else '') + message['content'] + '[/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
        "{% endfor %}"
    ),
    "mistral_v7": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
        "{% elif message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}{% else %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}"
        "{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # The last answer ends with the end of the text, the others with a line as well.
    "olmo2": (
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}"
        "{% endgeneration %}{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}"
        "{{ message['content'] + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
    "granite": (
        "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end_of_text|>' }}"
        "{% endgeneration %}{{ '\n' }}{% else %}{{ message['content'] + '<|end_of_text|>\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}"
        "{% endif %}{% endfor %}"
    ),
    "phi4": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'USER: ' + message['content'] + ' ' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    # ChatML with a system message of its own: SmolLM2, Yi, Hermes and others are alike.
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
"""Templates with marks around the answers, by the family's name."""

PUBLISHED = (
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "deepseekv3",
    "gemma",
    "gemma3",
    "gemma4",
    "glm4moe",
    "gptoss",
    "lfm2_v2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "nemotron_3_nano",
    "nemotron_3_ultra",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "qwen3_instruct_2507",
)
"""The names of files in the package trl."""

_WITHOUT_TWIN = {"llama3_1", "llama3_2", "gemma4"}

DEEPSEEK_USER, DEEPSEEK_ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"

CONTROL_TOKENS = (
    "<s>",
    "</s>",
    *("<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
    *(DEEPSEEK_USER, DEEPSEEK_ASSISTANT, DEEPSEEK_END),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "[gMASK]", "<sop>"),
)


@dataclass(frozen=True)
class Family:
    """A model family's chat template."""

    name: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer with the family's template."""
        written = WRITTEN.get(self.name)
        return _tokenizer(published_template(self.name) if written is None else _MARKS.sub("", written))

    @property
    def twin(self) -> PreTrainedTokenizerFast:
        """The same with marks around the answers."""
        return _tokenizer(WRITTEN.get(self.name) or published_template(f"{self.name}_training"))


FAMILIES = {name: Family(name) for name in (*WRITTEN, *PUBLISHED)}
WITH_TWIN = {name: family for name, family in FAMILIES.items() if name not in _WITHOUT_TWIN}


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    return byte_level(CONTROL_TOKENS, template=template, bos_token="<s>", eos_token="</s>")
