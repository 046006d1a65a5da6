"""Writes chat_templates.json: templates and conversations with the text transformers renders, or that it refuses them.

    pip install transformers==5.24.0 jinja2==3.1.6 && python chat_templates.py
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent


def turn(role, content):
    return {"role": role, "content": content}


USER = [turn("user", "hi")]
TALK = [turn("system", "Be brief."), turn("user", " Hi <b>you</b> & 'me' "), turn("assistant", "Ho.\n"),
        turn("user", "caf\u00e9 \u4f60\u597d \U0001f642 \"q\"")]
LONGER = [turn("user", "one"), turn("assistant", "two"), turn("user", "three")]
CODE = [turn("user", "if a < b && c: print('x')\t# \\n \u2028 \x7f")]

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You have access to the following functions." }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MISTRAL3 = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}")
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
          "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SMOLLM = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
          "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
          "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' }}{% endif %}")
PHI3 = ("{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == "
        "'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if "
        "add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}")
PHI4 = ("{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + "
        "message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}")
DEEPSEEK = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
            "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
            "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
            "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
DEEPSEEK_R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = "
    "namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = "
    "false -%}{{'<\uff5cUser\uff5c>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and "
    "message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = "
    "content.split('</think>')[-1] %}{% endif %}{{'<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>'}}"
    "{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<end>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}"
    "{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}")
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
VICUNA = ("{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}{% if "
          "system_message is defined %}{{ system_message }}{% endif %}{% for message in messages %}{% set content = "
          "message['content'] %}{% if message['role'] == 'user' %}{{ 'USER: ' + content + ' ASSISTANT:' }}{% elif "
          "message['role'] == 'assistant' %}{{ content + '</s>' }}{% endif %}{% endfor %}")
COMMAND_R = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message "
             "= messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'You "
             "are Command-R' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if "
             "system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' "
             "}}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{% if message['role'] == "
             "'user' %}{{ '<|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' "
             "%}{{ '<|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}")
GRANITE = """{%- if tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>\n' }}
    {%- for tool in tools %}
    {{- tool | tojson(indent=4) }}
    {%- if not loop.last %}
        {{- '\n\n' }}
    {%- endif %}
    {%- endfor %}
    {{- '<|end_of_text|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
    {{- '<|start_of_role|>system<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- elif message['role'] == 'user' %}
    {{- '<|start_of_role|>user<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- elif message['role'] == 'assistant' %}
    {{- '<|start_of_role|>assistant<|end_of_role|>'  + message['content'] + '<|end_of_text|>\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""
SMOLLM3 = """{% for message in messages %}
{%- if message.role == "assistant" -%}
    {% generation %}
    {%- if message.content is string -%}
        {{ "<|im_start|>assistant\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" }}
    {%- endif -%}
    {% endgeneration %}
{%- else -%}
{{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endif -%}
{%- endfor %}
{%- macro close(x, n=1) -%}{{ x * n }}{%- endmacro %}
{{- close('!', n=2) }}"""

PUBLISHED = dict(llama2=LLAMA2, llama3=LLAMA3, llama31=LLAMA31, qwen25=QWEN25, qwen3=QWEN3, mistral=MISTRAL, mistral3=MISTRAL3,
                 gemma=GEMMA, gemma3=GEMMA3, chatml=CHATML, smollm=SMOLLM, phi3=PHI3, phi4=PHI4, deepseek=DEEPSEEK,
                 deepseek_r1=DEEPSEEK_R1, zephyr=ZEPHYR, vicuna=VICUNA, command_r=COMMAND_R, granite=GRANITE, smollm3=SMOLLM3)

# Template and conversation.
SNIPPETS = [
    # What is defined, and what is not.
    ("{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ custom_tools is defined }}", USER),
    ("{% if tools is not none %}T{% endif %}{% if documents is not none %}D{% endif %}{% if tools %}t{% endif %}x", USER),
    ("{{ bos_token is defined }}{{ pad_token is defined }}[{{ pad_token }}][{{ add_generation_prompt }}]", USER),
    ("{{ messages[0].name is defined }}|{{ messages[0]['name'] }}|{{ messages[0].get('name', 'n') }}", USER),
    ("{{ undefined_thing }}|{{ undefined_thing is none }}|{{ undefined_thing | default('d') }}", USER),
    ("{{ undefined_thing.x }}", USER),
    ("{{ undefined_thing + 'x' }}", USER),
    # tojson.
    ("{{ messages[0].content | tojson }}", CODE),
    ("{{ messages | tojson }}", TALK),
    ("{{ messages | tojson(indent=2) }}", TALK),
    ("{{ messages | tojson(indent=0) }}|{{ [] | tojson(indent=4) }}|{{ {} | tojson(indent=4) }}", USER),
    ("{{ messages | tojson(ensure_ascii=True) }}", TALK),
    ("{{ messages | tojson(ensure_ascii=False, indent=None) }}", TALK),
    ("{{ {'b': 1, 'a': [1, 2.5, none, true, 'x'], 'c': {'z': 1, 'y': 2}} | tojson }}", USER),
    ("{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=True) }}", USER),
    ("{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':')) }}", USER),
    ("{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(' ; ', ' = '), indent=1) }}", USER),
    ("{{ {'a': 1} | tojson(indent='\\t') }}{{ (1, 2) | tojson }}", USER),
    ("{{ [0.1, 1.0, 1e16, 1e-5, 123456789012, -3, 1.5e300] | tojson }}", USER),
    ("{{ {1: 'a', none: 'b'} | tojson }}", USER),
    ("{{ '</script>&<>\\u0001\\\\' | tojson }}", USER),
    ("{{ undefined_thing | tojson }}", USER),
    ("{{ 'x' | tojson(depth=3) }}", USER),
    # Lines and white space.
    ("{% for m in messages %}\r\n{{ m.role }}\r\n{{ m.content }}\r\n{% endfor %}\r\n", TALK),
    ("a\rb\r\nc\n\n", USER),
    ("  {% if true %}\n  a\n  {% endif %}\n\n b \n", USER),
    ("{%- if true -%}\n  a  \n{%- endif -%}\n  b", USER),
    ("a {%+ if true %} b {% endif +%} c\n", USER),
    ("{# a comment #}\nx{#- trimmed -#}\n y\n", USER),
    ("{% raw %}{{ a % b }}{% generation %}{% endraw %}|", USER),
    ("{{ 'a\\tb' }}{{ \"it's\" }}{{ 'say \\'x\\'' }}{{ '\\u00e9\\x41' }}", USER),
    # The marks of the assistant's words.
    ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", LONGER),
    ("{%- for m in messages %}\n  {%- generation -%}\n {{ m.content }} \n{%- endgeneration %}\n;{%- endfor %}", LONGER),
    ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", USER),
    # The operator %.
    ("{{ '%s: %s' % (messages[0].role, messages[0].content) }}", USER),
    ("{{ '%s' % messages[0].content }}|{{ '%d%%' % 7 }}|{{ '%.2f' % 3.14159 }}|{{ '%05d' % 42 }}|{{ '%-5s|' % 'a' }}", USER),
    ("{{ '%(role)s says %(content)s' % messages[0] }}", USER),
    ("{% set f = '<%s>' %}{{ f % messages[0].role ~ '!' }}{{ (f % 'a') | upper }}", USER),
    ("{{ 7 % 3 }} {{ -7 % 3 }} {{ 7.5 % 2 }} {{ 2 * 7 % 4 }} {{ 9 % 4 * 2 }} {{ 1 + 9 % 4 }}", USER),
    ("{% for m in messages %}{% if loop.index0 % 2 == 0 %}{{ m.content }}{% else %}-{% endif %}{% endfor %}", LONGER),
    ("{{ '%s' % ['a', 1] }}|{{ '%s and %s' % ('%', 'x') }}|{{ '%x %X %o %e' % (255, 255, 8, 12345.678) }}", USER),
    ("{{ 'no format' % () }}|{{ '%s' % none }}|{{ '%s' % true }}|{{ '%r' % 'q' }}", USER),
    ("{{ '%s %s' % ('only one',) }}", USER),
    # Python's text and methods.
    ("{{ true }} {{ none }} {{ 1.0 }} {{ [1, 'a', none] }} {{ {'a': 1} }} {{ (1,) }} {{ 10 // 3 }} {{ 7 / 2 }} {{ 2 ** 3 }}", USER),
    ("{{ 'a,b,c'.split(',') }}{{ 'a,b,c'.split(',', 1)[1] }}{{ 'a,b,c'.rsplit(',', 1)[0] }}{{ ' x '.strip() }}|", USER),
    ("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x-end'.removesuffix('-end') }}{{ 'a=b'.partition('=') }}", USER),
    ("{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'abc'.find('c') }}{{ 'aXb'.lower().title() }}", USER),
    ("{{ 'a-b'.replace('-', '+').upper() }}{{ '{} {}'.format(1, 'x') }}{{ ', '.join(['a', 'b']) }}", USER),
    ("{{ messages[-1].content }}{{ messages[::-1][0].role }}{{ messages[1:] | length }}{{ 'hello'[1:3] }}", LONGER),
    ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].keys() | list }}", USER),
    ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{{ loop.last }}{% else %}none{% endfor %}", LONGER),
    ("{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.role == 'assistant' %}{% continue %}"
     "{% endif %}{{ m.content }}{{ loop.previtem is defined }}{% endfor %}", LONGER),
    ("{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + "
     "[m.role] %}{% endfor %}{{ ns.n }}{{ ns.seen | join('/') }}", LONGER),
    ("{{ messages | map(attribute='role') | unique | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | "
     "length }}{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first }}", LONGER),
    ("{{ dict(a=1, b='x') }}{{ range(3) | list }}{{ [3, 1, 2] | sort | join }}{{ ['a', 'b'] | last }}{{ 'abc' | reverse }}", USER),
    ("{% macro say(role, text='-') %}<{{ role }}>{{ text }}{% endmacro %}{{ say('a') }}{{ say('b', text='c') }}", USER),
    ("{% if messages[0].content is string and messages is iterable and messages[0] is mapping and 1 is number %}y{% endif %}", USER),
    ("{{ messages[0].content | trim | upper | replace('H', 'J') | indent(2, true) | length }}{{ '  a b ' | trim }}|", USER),
    ("{{ 'user' in messages[0].role and 'x' not in ['y'] }}{{ 'a' ~ 1 ~ none }}{{ 'yes' if messages else 'no' }}", USER),
    ("{{ raise_exception('No ' ~ messages[0].role ~ ' here') }}", USER),
    ("{{ strftime_now('%Y') | length }}{{ strftime_now('%d %B') is string }}", USER),
    ("{% for %}", USER),
    ("{{ nosuchfunction() }}", USER),
    ("{{ 'a' 'b' }}", USER),
    ("{% set content %}a{{ messages[0].content }}b{% endset %}{{ content | upper }}", USER),
    ("{%- set roles = {'user': 'U', 'assistant': 'A'} -%}{% for m in messages %}{{ roles[m.role] }}{% endfor %}", LONGER),
    ("{{ messages[0]['content'] | string | wordcount }}{{ '%.1f' | format(2.25) }}{{ [1, 2, 3] | sum }}{{ 3.7 | int }}", USER),
    ("{% if not messages[5] is defined %}short{% endif %}{{ (messages | last).content }}{{ messages | first | tojson }}", USER),
    ("{{ 'a\nb\n'.splitlines() }}{{ '1'.isdigit() }}{{ 'x'.zfill(3) }}{{ 'ab'.center(6, '*') }}{{ 'a'.ljust(3) }}|", USER),
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template, messages, prompt):
    try:
        (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **TOKENS)
        return {"text": text}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def main():
    cases = []
    for name, template in PUBLISHED.items():
        for messages in (USER, TALK, LONGER):
            for prompt in (True, False):
                cases.append((name, template, messages, prompt))
    cases += [(f"snippet {at}", template, messages, False) for at, (template, messages) in enumerate(SNIPPETS)]
    written = {
        "written_by": f"chat_templates.py, transformers {transformers.__version__}, Jinja2 {jinja2.__version__}",
        "tokens": TOKENS,
        "templates": {name: template for name, template, _, _ in cases},
        "cases": [{"template": name, "messages": messages, "add_generation_prompt": prompt,
                   **rendered(template, messages, prompt)} for name, template, messages, prompt in cases],
    }
    (HERE / "chat_templates.json").write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), sum("refused" in case for case in written["cases"]))


main()
