#!/usr/bin/env python3
"""Writes tests/golden/chat_template.json: conversations as jinja2 renders them, set up as transformers sets it up.

    pip install jinja2==3.1.6
    python tools/make_chat_goldens.py tests/golden/chat_template.json
"""
import json
import sys

import jinja2
import jinja2.sandbox

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

# Spellings that render the same as one of the two.
SAME = {
    "smollm2": [
        SMOLLM2, SMOLLM2.replace("\n", "\\n"), SMOLLM2 + "\n", SMOLLM2.replace("'", '"'),
        SMOLLM2.replace("message['role']", "message.role").replace("messages[0]['role']", "messages[0].role"),
        SMOLLM2.replace("{% if add", "\n{% if add").replace("{% for", "{#- SmolLM2 #}\n{% for"),
        """{%- for message in messages %}
    {%- if loop.first and messages[0]["role"] != "system" %}
        {{- "<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
    ],
    "chatml": [
        CHATML, CHATML.replace("\n", "\\n"), CHATML.replace(" + '<|im_end|>' + '\n'", " + '<|im_end|>\\n'"),
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" + CHATML,
        CHATML.replace(" + ", " ~ "),
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}",
        """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
        """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}{{- message.content -}}{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
""",
    ],
}
# These render something else, if only for some conversations, or are no templates at all.
OTHER = [
    "hello", "{{ messages }}", CHATML.replace("<|im_end|>", "</s>"), CHATML.replace("assistant", "bot"),
    CHATML.replace("message['content']", "message['content'] | trim"), CHATML.replace("'\n'}}", "'\n\n'}}"),
    CHATML.replace("message['content']", "(message['content'] or '')"), SMOLLM2.replace("SmolLM, ", "SmolLM3, "),
    SMOLLM2.replace("!= 'system'", "== 'system'"), SMOLLM2.replace("loop.first and ", ""), CHATML + " ",
    CHATML.replace("{% endfor %}", "{% endfor %}\n\n"), CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"),
    "{{ bos_token }}" + CHATML, CHATML.split("{% if add")[0], "{% for message in messages", "{{ 'a", "{%", "{{", "{#",
    "{{ '{%' }}", CHATML.replace("message['role']", "message[role]"), CHATML.replace(" + '\n' + ", " - '\n' + "),
]

QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = [
    [], [QUESTION], [QUESTION, ANSWER], [SYSTEM], [SYSTEM, QUESTION], [SYSTEM, QUESTION, ANSWER],
    [QUESTION, ANSWER, QUESTION, ANSWER], [QUESTION, SYSTEM, ANSWER], [ANSWER], [ANSWER, QUESTION], [SYSTEM, SYSTEM],
    [QUESTION, QUESTION], [QUESTION, ANSWER, {"role": "tool", "content": '{"result": 4}'}],
    [{"role": "tool", "content": "x"}], [{"role": "developer", "content": "x"}], [{"role": "", "content": ""}],
    [{"role": "System", "content": "not a system role"}], [{"role": "user", "content": ""}],
    [{"role": "user", "content": "\n"}], [{"role": "user", "content": "\nfirst\n\nlast\n"}],
    [{"role": "user", "content": "  spaces  "}, {"role": "assistant", "content": "  more "}],
    [{"role": "user", "content": "a\r\nb\tc"}], [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\nno"}],
    [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} {# no #}"}], [{"role": "user", "content": "'quoted' \"text\" \\n"}],
    [{"role": "user", "content": "<b>&amp;</b>"}], [{"role": "user", "content": "\u65e5\u672c\u8a9e \U0001f600 \u00e9"}],
    [{"role": "user", "content": "\u2028\u0085\u00a0"}], [{"role": "system", "content": ""}, QUESTION],
    [{"role": "user\n", "content": "odd role"}],
]


def main():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def render(template, messages, prompt):
        return environment.from_string(template).render(messages=messages, add_generation_prompt=prompt, bos_token="<s>")

    for templates in SAME.values():
        for template in templates:
            for messages in CONVERSATIONS:
                for prompt in (False, True):
                    assert render(template, messages, prompt) == render(templates[0], messages, prompt), template
    for template in OTHER:
        if "or ''" in template:
            continue  # differs only for a content of none
        try:
            texts = [render(template, messages, prompt) for messages in CONVERSATIONS for prompt in (False, True)]
        except (jinja2.TemplateError, TypeError):
            continue
        for templates in SAME.values():
            assert texts != [render(templates[0], m, prompt) for m in CONVERSATIONS for prompt in (False, True)], template
    cases = [{"messages": messages,
              **{name: [render(templates[0], messages, prompt) for prompt in (False, True)]
                 for name, templates in SAME.items()}} for messages in CONVERSATIONS]
    with open(sys.argv[1], "w") as out:
        json.dump({"made_by": f"tools/make_chat_goldens.py, jinja2 {jinja2.__version__}", "same": SAME, "other": OTHER,
                   "conversations": cases}, out, indent=0)
        out.write("\n")


main()
