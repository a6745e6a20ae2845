r"""Idioms of chat templates, and what transformers makes of each.

    python crates/salsa-rlhf/tests/idioms.py             compares transformers with crates/salsa-rlhf/tests/idioms.jsonl
    python crates/salsa-rlhf/tests/idioms.py --write     writes that file anew

The Rust test `chat::tests::idioms_of_transformers` reads the same file: each line is a template and the text that
transformers renders, or null where it refuses. Every template sees two messages, two special tokens and the arguments
ARGUMENTS; the clock stands at 26 July 2024. Needs transformers (5) and jinja2 (3.1).
"""

import argparse
import datetime
import json
import pathlib
import re
import sys

from transformers.utils import chat_template_utils

MESSAGES = [
    {"role": "user", "content": 'Say "é" <b>\n  twice '},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nÉ é!"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ARGUMENTS = {
    "tool": {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather\nof a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "enum": ["Köln", "Bonn"]},
                    "days": {"type": ["integer", "null"], "default": 3, "minimum": 1.0},
                },
                "required": ["place"],
            },
        },
    },
    "data": {"b": 2, "a": 1, "C": [1, 2.5, True, None, "x'y"], "items": "own", "nested": {"k": {"z": 0}}},
    "list": [3, 1, 2],
    "words": ["b", "A", "c"],
    "rows": [{"n": "x", "v": 2, "d": {"p": 1}}, {"n": "y", "v": 1, "d": {"p": 0}}, {"n": "z", "v": 2}],
    "text": "  One two,\tthree  ",
    "empty": "",
    "flag": True,
    "nothing": None,
    "one": 1,
    "pi": 3.14159,
    "big": 1e20,
}

IDIOMS = {
    "text of values": r"""
{{ 1 }} {{ 1.0 }} {{ 1.5 }} {{ -0.0 }} {{ 1e3 }} {{ big }} {{ 1e16 }} {{ 1e15 }} {{ 1.5e-7 }} {{ 0.0001 }} {{ pi }}
{{ true }} {{ false }} {{ none }} {{ True }} {{ False }} {{ None }} {{ flag }} {{ nothing }}[{{ missing }}]
{{ [1, 'a', "it's", none, true, 1.0] }}
{{ ['"', "'", '\'"', '\n\t\\', 'é', '\x00', '\u200b'] }}
{{ (1,) }} {{ (1, 'b') }} {{ () }} {{ [] }} {{ {} }}
{{ {'a': 1, 2: [3], none: {'b': ()}, true: 'x'} }}
{{ data }}
{{ tool }}
{{ messages }}
{{ messages[0] }}
{{ 'a' 'b' }} {{ "a\u00e9\x41\t|" }} {{ 'it\'s' }}
{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_000 }} {{ 1_0.5 }}
{{ 123456789012345678901234567890 }} {{ 2 ** 70 }} {{ -9223372036854775808 - 1 }}
{{ range(3) }} {{ range(1, 7, 2) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }}
{{ data.items }} {{ data['items'] }}
{{ data.keys() | list }} {{ data.values() | list }}
{{ data.keys() }}
{{ data.items() }}
{{ {'a': 1}.values() }}
{{ [missing] }}
{{ [[[]], [{}]] }} {{ [1] == [1.0] }} {{ [(1, 2)] }}
""",
    "operators": r"""
{{ 7 / 2 }} {{ 6 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ 2 ** 3 }} {{ 2 ** -1 }} {{ -2 ** 2 }}
{{ 2 ** 3 ** 2 }} {{ 2 * 3 + 4 }} {{ 2 + 3 * 4 }} {{ (2 + 3) * 4 }} {{ 10 - 3 - 2 }} {{ 8 / 4 / 2 }} {{ - 3 + 5 }} {{ 7 // 2.0 }} {{ 0.1 + 0.2 }}
{{ 1 ~ 'a' ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'a': 'b'} ~ missing }}
{{ 'a' + 'b' }} {{ 'a' * 3 }} {{ 3 * 'ab' }} {{ 'a' * 0 }}[{{ 'a' * -1 }}] {{ [1, 2] * 2 }} {{ 2 * [1] }} {{ (1,) * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ 'a' - 'b' }}
{{ [1] + (2,) }}
{{ none + 'a' }}
{{ missing + 'a' }}
{{ 'a' + missing }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1 // 0 }}
{{ 'a' * 'b' }}
{{ 'a' * 1.5 }}
{{ true + 1 }} {{ true * 'a' }} {{ -true }} {{ true + true }} {{ 1 - false }}
{{ -'a' }}
{{ -missing }}
{{ 1 < 'a' > 2 }}
{{ 2 < 1 < missing }} {{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 > 2 >= 2 == 2 }} {{ 1 == 1 != 2 }} {{ 1 in [1] == true }} {{ 'a' < 'b' < 'c' }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ 0 == false }} {{ '1' == 1 }} {{ none == false }} {{ none == missing }} {{ missing == missing }} {{ [] == () }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1.0} }} {{ '' == none }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ (1, 2) == (1, 2) }}
{{ 'a' < 'B' }} {{ 'é' > 'z' }} {{ [1, 2] < [1, 3] }} {{ (1,) < (1, 0) }} {{ 1 < 1.5 }} {{ true < 2 }} {{ 'abc' < 'abd' }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [] < {} }}
{{ missing < 1 }}
{{ {} < {} }}
{{ 'a' in 'abc' }} {{ '' in '' }} {{ 1 in [1, 2] }} {{ 1.0 in [1] }} {{ 'a' in data }} {{ 'k' in data.nested }} {{ 1 in (1,) }} {{ true in [1] }} {{ 'x' not in 'abc' }} {{ not 'x' in 'abc' }} {{ 'a' in missing }} {{ 3 in range(4) }} {{ 'a' in ['abc'] }} {{ 'b' in data.keys() }} {{ 2 in data.values() }} {{ ('a', 1) in data.items() }}
{{ 1 in 'abc' }}
{{ none in 'abc' }}
{{ 'a' in none }}
{{ 'a' in 5 }}
{{ [] in {} }}
{{ missing in 'a' }}
{{ missing in [1] }}
{{ 'a' and 'b' }} {{ '' or 'b' }} {{ 0 or none }} {{ none and 1 }} {{ [] or {} }} {{ missing or 'd' }} {{ not '' }} {{ not [0] }} {{ not missing }} {{ 1 and 2 or 3 }} {{ not none and 1 }} {{ not 0.0 }}
{{ 'a' if flag else 'b' }} {{ 'a' if nothing }}{{ 'x' if 0 else 'y' if 0 else 'z' }} {{ ('a' if flag) ~ 'b' }} {{ 'a' if missing is defined else 'c' }}
{{ ('x' if false) + 'y' }}
{{ (('x' if false) is undefined) }} {{ [('x' if false)] | length }}
{{ 'a' ~ 'b' * 2 }} {{ 1 + 2 ~ 3 }} {{ 'a' ~ 1 + 2 }} {{ 'x' ~ 'y' == 'xy' }} {{ 5 % 3 * 2 }} {{ 1 if not true else 2 }}
{{ not true == false }} {{ not (true == false) }} {{ not 1 in [2] }} {{ -1 ** 2 }} {{ (-1) ** 2 }} {{ -1 | abs }} {{ (-1) | abs }} {{ 2 | string ~ 'a' }}
{{ 5 is divisibleby 5 and not 4 is odd }} {{ 1 + list | length }} {{ 'a' ~ words | first }} {{ list | length > 2 }} {{ not words | length == 3 }}
""",
    "formatting with %": r"""
{{ '%s and %s' % ('a', 1) }} {{ '%s' % 'x' }} {{ '%s' % none }} {{ '%s' % 1.5 }} {{ '%s' % [1, 'a'] }} {{ '%s' % data.nested }} {{ '%r' % 'a' }} {{ '%r' % 1 }}
{{ '%d' % 3 }} {{ '%5d|' % 3 }} {{ '%-5d|' % 3 }} {{ '%05d' % 3 }} {{ '%+d' % 3 }} {{ '% d' % 3 }} {{ '%d' % 3.9 }} {{ '%i' % true }} {{ '%x' % 255 }} {{ '%X' % 255 }} {{ '%#x' % 255 }} {{ '%o' % 8 }} {{ '%c' % 65 }} {{ '%c' % 'z' }}
{{ '%.2f' % 3.14159 }} {{ '%8.3f|' % pi }} {{ '%f' % 1 }} {{ '%e' % 12345.678 }} {{ '%g' % 0.00001 }} {{ '%g' % 1e20 }} {{ '%.3g' % 1234.5 }} {{ '%G' % 1e-10 }} {{ '%E' % 1.5 }} {{ '%.0f' % 2.5 }} {{ '%.0f' % 3.5 }}
{{ '%5s|' % 'ab' }} {{ '%-5s|' % 'ab' }} {{ '%.2s|' % 'abc' }} {{ '%%' % () }} {{ '100%% of %s' % 'a' }} {{ '%5.1s|' % 'abc' }}
{{ '%(a)s-%(b)d' % {'a': 'x', 'b': 2} }} {{ '%(n)s' % rows[0] }}
{{ '%*d' % (5, 3) }} {{ '%.*f' % (2, 1.2345) }}
{{ '%s' % ('a', 'b') }}
{{ '%s %s' % 'a' }}
{{ '%d' % 'a' }}
{{ '%q' % 1 }}
{{ '%' % 1 }}
{{ 'abc' % () }} {{ 'abc' % {} }} {{ 'abc' % [] }}
{{ 'abc' % 1 }}
{{ 'abc' % 'x' }}
{{ '%(a)s' % 1 }}
{{ '%(a)s' % {} }}
{{ '%s' % missing }}
{{ '%s' % ((1, 2),) }} {{ '%s' % (none,) }}
{{ '%s %s' | format('a', 1) }} {{ '%.1f' | format(2.25) }} {{ '%(x)s' | format(x=1) }} {{ '%s' | format([1, 'a']) }}
{{ '%s' | format('a', 'b') }}
{{ '%5s|%-5s|' | format('é', 'é') }}
""",
    "str.format": r"""
{{ '{} {}'.format('a', 1) }} {{ '{1} {0}'.format('a', 'b') }} {{ '{x}'.format(x=2) }} {{ '{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c') }} {{ '{:*^7}'.format('é') }}
{{ '{:.2f}'.format(pi) }} {{ '{:05d}'.format(42) }} {{ '{:+}'.format(3) }} {{ '{:,}'.format(1234567) }} {{ '{:x}'.format(255) }} {{ '{:#b}'.format(5) }} {{ '{:e}'.format(1234.5) }} {{ '{:%}'.format(0.25) }} {{ '{:_}'.format(1234567) }} {{ '{:g}'.format(0.1) }} {{ '{:.3}'.format('abcdef') }} {{ '{:,.2f}'.format(1234.5) }}
{{ '{{}}-{{{}}}'.format(1) }} {{ '{!r} {!s}'.format('a', 'b') }} {{ '{0[0]} {0[1]}'.format([1, 2]) }} {{ '{0[a]}'.format({'a': 5}) }} {{ '{:{}}|'.format('a', 4) }}
{{ '{}'.format(none) }} {{ '{}'.format(true) }} {{ '{}'.format([1, 'a']) }} {{ '{}'.format(1.0) }} {{ '{}'.format({'a': none}) }}
{{ '{}'.format() }}
{{ '{a}'.format() }}
{{ '{:d}'.format('a') }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{:>5}'.format(none) }}
{{ '{} {a}'.format(1, a=2) }} {{ '{a[b]}'.format(a={'b': 1}) }} {{ '{:>6.2f}|'.format(1.005) }} {{ '{:<3}|'.format(1) }} {{ '{:^4}|'.format(true) }}
{{ '{a}'.format_map({'a': 1}) }}
""",
    "methods of text": r"""
[{{ text.strip() }}] [{{ text.lstrip() }}] [{{ text.rstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abc'.strip('ca') }}] [{{ 'a\x1fb\x1f'.strip() }}] [{{ '\u200ba\u3000'.strip() }}] [{{ 'a '.strip(none) }}]
{{ text.split() }} {{ text.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a  b'.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a b c '.rsplit(none, 1) }} {{ 'a-b'.split(sep='-') }} {{ 'a-b-c'.split('-', maxsplit=1) }} {{ ' a  b  c '.split(none, 1) }} {{ 'a\x1cb'.split() }}
{{ 'abc'.split('') }}
{{ 'a\nb\r\nc\x0bd\u2028e'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ 'a\n\nb'.splitlines() }} {{ ''.splitlines() }} {{ 'a\nb'.splitlines(keepends=true) }}
{{ 'a-b-c'.partition('-') }} {{ 'abc'.partition('-') }} {{ 'a-b-c'.rpartition('-') }}
{{ 'aXb'.lower() }} {{ 'aß'.upper() }} {{ 'hello wORLD'.capitalize() }} {{ "they're bill's".title() }} {{ 'aB'.swapcase() }} {{ 'Straße'.casefold() }} {{ 'ǆx'.title() }} {{ 'ÉCOLE'.capitalize() }} {{ 'ΑΣ'.lower() }}
{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }} {{ 'aaa'.replace('a', '', 1) }} {{ 'aaa'.replace('a', 'b', -1) }} {{ 'aaa'.replace('a', 'b', 0) }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('c') }} {{ 'abc'.endswith(('x', 'bc')) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }}
{{ 'abc'.startswith(1) }}
{{ 'abc'.startswith(['a']) }}
{{ 'abcabc'.find('c') }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('b') }} {{ 'abc'.find('x') }} {{ 'éb'.find('b') }} {{ 'abc'.find('c', 0, 2) }} {{ 'abc'.find('c', -1) }} {{ 'abc'.index('b') }} {{ 'abcb'.rindex('b') }}
{{ 'abc'.index('x') }}
{{ 'abcabc'.count('a') }} {{ 'aaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'abcabc'.count('a', 1) }} {{ 'abc'.count('a', 1, 2) }}
{{ '-'.join(['a', 'b']) }} {{ ','.join(words) }} {{ '-'.join('abc') }} {{ ''.join([]) }} {{ '-'.join(data) }} {{ '-'.join(('x', 'y')) }}
{{ '-'.join([1, 2]) }}
{{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ '12'.isdigit() }} {{ '²'.isdigit() }} {{ '²'.isdecimal() }} {{ '½'.isnumeric() }} {{ '½'.isdigit() }} {{ ' '.isspace() }} {{ ''.isspace() }} {{ 'ab'.islower() }} {{ 'aB'.islower() }} {{ 'AB1'.isupper() }} {{ 'Ab Cd'.istitle() }} {{ 'a_b'.isidentifier() }} {{ '1a'.isidentifier() }} {{ 'é'.isascii() }} {{ ''.isascii() }} {{ 'a\n'.isprintable() }} {{ ''.isalpha() }} {{ '٣'.isdecimal() }} {{ '1'.islower() }}
[{{ 'ab'.ljust(4) }}] [{{ 'ab'.rjust(4, '.') }}] [{{ 'ab'.center(5, '*') }}] [{{ 'abc'.center(6) }}] {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ '+7'.zfill(4) }} [{{ 'a'.center(4) }}]
{{ 'ab'.ljust(4, 'xy') }}
{{ 'abc'.removeprefix('ab') }} {{ 'abc'.removesuffix('bc') }} {{ 'abc'.removeprefix('x') }} {{ 'a\tb'.expandtabs() }} {{ 'a\tb'.expandtabs(4) }}
{{ 'abc'.translate({97: 'x', 98: none}) }}
{{ 'abc'.nosuch() }}
{{ 'abc'.strip(1) }}
{{ missing.strip() }}
{{ nothing.strip() }}
{{ 5 .strip() }}
{{ 'abc'.split(',').nosuch }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[1:] }} {{ 'abc'[:-1] }} {{ 'abc'[::-1] }} {{ 'abcdef'[1:5:2] }} {{ 'abcdef'[4:1:-1] }} {{ 'abcdef'[-3:] }} {{ 'abcdef'[:100] }} [{{ 'abc'[5] }}] {{ 'aéz'[1] }} {{ 'abcdef'[::-2] }} {{ 'abcdef'[10:2:-1] }} {{ 'abc'[none:none] }} {{ 'abc'[-10:2] }} [{{ 'abc'[5:] }}] [{{ 'abc'[2:1] }}]
{{ 'abc'[::0] }}
{{ 'abc'['x'] }}|
{{ 'abc'.length }}|
{{ 'a' is string }}{{ 'abc' | length }}{{ 'abc' | list }}{% for c in 'aé' %}{{ c }};{% endfor %}
{{ messages[1].content.split('</think>')[-1].lstrip('\n') }} {{ messages[1].content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{{ messages[0]['content'].strip() }} {{ messages[0].content.rstrip().endswith('twice') }}
""",
    "methods of lists and mappings": r"""
{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2, 1).count(1) }} {{ (1, 2).index(2) }} {{ [1, 2, 1].index(1, 1) }} {{ [1].copy() }}
{{ [1, 2].index(3) }}
{{ [1].append(2) }}
{% set x = [1] %}{% set _ = x.append(2) %}{{ x }}
{% set x = [1] %}{{ x.extend([2]) }}
{% set x = [1] %}{{ x.pop() }}
{% set x = [1] %}{{ x.insert(0, 2) }}
{% set x = [1] %}{{ x.sort() }}
{% set x = [1] %}{{ x.reverse() }}
{% set x = {} %}{{ x.update({'a': 1}) }}
{% set x = {} %}{{ x.setdefault('a', 1) }}
{% set x = {'a': 1} %}{{ x.pop('a') }}
{{ data.get('a') }} {{ data.get('q') }} {{ data.get('q', 'd') }} {{ data.get('nested', {}).get('k').get('z') }} {{ data.get('q', none) is none }} {{ data['nested']['k']['z'] }} {{ data.nested.k.z }} [{{ data.q }}] [{{ data['q'] }}] {{ data.copy() == data }}
{{ data.get() }}
{% for k, v in data.items() %}{{ k }}={{ v }};{% endfor %}
{% for k in data %}{{ k }};{% endfor %} {% for k in data.keys() %}{{ k }};{% endfor %} {% for v in data.nested.values() %}{{ v }};{% endfor %}
{{ data.items() | list }} {{ data.items() | length }} {{ data.keys() | length }}
{{ data.items() | first }} {{ (data.items() | list)[0][1] }}
{{ data.keys()[0] }}
{{ [1, 2, 3][1] }} {{ [1, 2, 3][-1] }} [{{ [1, 2, 3][5] }}] {{ [1, 2, 3][1:] }} {{ [1, 2, 3][::-1] }} {{ [1, 2, 3][:-1] }} {{ (1, 2, 3)[1:] }} {{ [1, 2, 3, 4][1::2] }} {{ list[-2:] }} {{ [1, 2, 3][5:] }} {{ [1, 2, 3, 4][-3:-1] }}
{{ [1, 2][true] }} {{ {'a': 1, 1: 'x'}[1] }} {{ {1: 'x'}[true] }} {{ {1: 'x'}[1.0] }} {{ {(1, 2): 'x'}[(1, 2)] }}
{{ {[1]: 2} }}
{{ [1, 2]['a'] }}|
{{ missing.a }}
{{ missing['a'] }}
{{ nothing.a }}|
{{ nothing['a'] }}|
{{ data.q.r }}
{{ data.nested.items is defined }} {{ data.nested.items is callable }} {{ data.nested.items is mapping }} {{ data.nested.keys is none }} {{ rows[0].get is string }} {{ 'yes' if data.nested.items else 'no' }} {{ data.nested.items.x is defined }} {{ data.nested.get('k').items() | list }} {{ nothing.items is defined }}
{{ missing.items }}
{% set x = messages | map(attribute='role') %}{% for r in x %}{{ r }}{% endfor %}{% for r in x %}{{ r }}{% endfor %}
{% set x = rows | selectattr('v', 'eq', 2) %}{{ x | map(attribute='n') | join }}|{{ x | list | length }} {% set y = rows | selectattr('d') | list %}{{ y | length }}{{ y | length }}
{{ rows | selectattr('d') | length }}
{{ (rows | map(attribute='n'))[0] }}|
{{ rows | map(attribute='n') | first }} {{ 'x' in rows | map(attribute='n') }} {{ (rows | map(attribute='n')) is iterable }} {{ (rows | map(attribute='n')) is sequence }} {{ (rows | map(attribute='n')) is string }} {{ (rows | map(attribute='n')) is mapping }} {{ ('a' if rows | map(attribute='n') else 'b') }}
{{ 5['a'] }}|
{{ 5.a }}
{{ one.a }}|
{{ list.0 }} {{ rows.0.n }}
{{ dict(a=1, b='x') }} {{ dict([('a', 1)]) }} {{ dict({'a': 1}, b=2) }} {{ dict(data, b=3).b }} {{ dict() }}
{{ dict.fromkeys(['a', 'b'], 0) }}
{{ dict(**data.nested) }}
{% set ns = namespace(a=1, b=[]) %}{% set ns.a = ns.a + 1 %}{% set ns.b = ns.b + [5] %}{{ ns.a }} {{ ns.b }} {{ ns.c is defined }} {{ ns['a'] }}
{% set ns = namespace() %}{% for m in messages %}{% set ns.last = m.role %}{% endfor %}{{ ns.last }}
{% set ns = namespace({'x': 1}) %}{{ ns.x }}
{% set ns = namespace(a=1) %}[{{ ns.zz }}]
{% set ns = namespace(a=1) %}{% generation %}{% set ns.a = 2 %}{% endgeneration %}{{ ns.a }} {% macro f() %}{% set ns.a = 3 %}{% endmacro %}{{ f() }}{{ ns.a }} {% macro g() %}{{ caller() }}{% endmacro %}{% call g() %}{% set ns.a = 4 %}{% endcall %}{{ ns.a }}
{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x | join(',') }} {{ ns.x + ['z'] }} {{ [] + [] }} {{ range(2) | list + [5] }}
{% set ns.x = 1 %}
{% set x = {} %}{% set x.a = 1 %}{{ x }}
{% set x = 5 %}{{ x.bit_length() }} {{ pi.is_integer() }} {{ (2.0).is_integer() }}
""",
    "tojson": r"""
{{ 'é"<\\/>\n\u2028\x7f\x00' | tojson }} {{ data | tojson }} {{ [] | tojson }} {{ {} | tojson }} {{ none | tojson }} {{ true | tojson }} {{ 1.0 | tojson }} {{ 1e20 | tojson }} {{ 1e-7 | tojson }} {{ (1, 2) | tojson }} {{ 'a' | tojson }} {{ big | tojson }} {{ 123456789012345678901234567890 | tojson }}
{{ tool | tojson }}
{{ tool | tojson(indent=2) }}
{{ tool | tojson(indent=4) }}
{{ [tool] | tojson(indent=4, separators=(',', ': ')) }}
{{ data | tojson(sort_keys=true) }} {{ data | tojson(separators=(',', ':')) }} {{ 'é' | tojson(ensure_ascii=true) }} {{ 'é' | tojson(true) }} {{ [1] | tojson(false, 2) }} {{ '\x7f🌮' | tojson(ensure_ascii=true) }}
{{ [1, [], {}] | tojson(indent=0) }} {{ [1, {'a': []}] | tojson(indent='--') }} {{ [1] | tojson(indent=none) }} {{ {'b': {'d': 1, 'c': 2}, 'a': 0} | tojson(sort_keys=true, indent=1) }}
{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}
{{ missing | tojson }}
{{ range(3) | tojson }}
{{ range(3) | list | tojson }} {{ data.keys() | list | tojson }} {{ (data.items() | list) | tojson }}
{{ data.items() | tojson }}
{{ data | tojson | length }} {{ (data | tojson) is string }} {{ data | tojson ~ 'x' }} {{ data.C | map('tojson') | join('|') }}
{{ messages | map(attribute='content') | tojson }}
{{ messages | map(attribute='content') | list | tojson }}
{{ {'a': (1, 2)} | tojson }} {{ {'a': {'b': [true, false, none]}} | tojson }} {{ -0.0 | tojson }} {{ 100.0 | tojson }} {{ 1.5e300 | tojson }}
{{ {'b': 1, 2: 3} | tojson(sort_keys=true) }}
{{ tool | tojson(indent=true) }}
{{ tool | tojson(foo=1) }}
""",
    "filters": r"""
{{ text | trim }}| {{ 'xax' | trim('x') }} {{ 'aBC' | lower }} {{ 'abc' | upper }} {{ 'hello wORLD' | capitalize }} {{ "foo bar-baz it's" | title }} {{ 'abc' | length }} {{ list | count }} {{ 5 | string }} {{ none | string }} {{ [1, 'a'] | string }} {{ 1 | trim }} {{ none | trim }} {{ true | upper }} {{ none | lower }}
{{ missing | default('d') }} {{ '' | default('d') }}{{ '' | default('d', true) }} {{ none | default('d') }} {{ none | d('x', true) }} {{ data.q | default('q') }} {{ missing | default }}| {{ 0 | default(1, boolean=true) }} {{ missing | default(default_value='z') }} {{ missing.x | default('y') }}
{{ list | join(', ') }} {{ list | join }} {{ rows | join('+', attribute='n') }} {{ rows | map(attribute='n') | join(' ') }} {{ ['a', none, 1.0, true] | join('/') }} {{ 'abc' | join('-') }} {{ data | join(',') }} {{ [[1], 'a'] | join }} {{ list | join(d='-') }} {{ [] | join(',') }}
{{ none | join(',') }}
{{ missing | join(',') }}|
{{ list | first }} {{ list | last }} {{ 'abc' | first }} {{ 'abc' | last }} [{{ [] | first }}] [{{ [] | last }}] {{ data | first }} {{ list | max }} {{ list | min }} {{ list | sum }} {{ rows | sum(attribute='v') }} {{ words | max }} {{ list | sum(start=10) }} {{ rows | max(attribute='v') }} {{ [] | max }}| {{ [1.5, 2] | sum }}
{{ list | sort }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ list | sort(reverse=true) }} {{ rows | sort(attribute='v') | map(attribute='n') | list }} {{ rows | sort(attribute='v,n', reverse=true) | map(attribute='n') | list }} {{ list | sort(true) }} {{ 'cab' | sort }} {{ data | sort }}
{{ [1, 'a'] | sort }}
{{ [none, 1] | sort }}
{{ list | reverse | list }} {{ 'abc' | reverse }} {{ list | reverse }}
{{ [1, 1, 2, 'a', 'A'] | unique | list }} {{ rows | unique(attribute='v') | map(attribute='n') | list }} {{ ['a', 'A'] | unique(case_sensitive=true) | list }}
{{ list | list }} {{ 'ab' | list }} {{ data | list }} {{ data | items | list }} {{ missing | items | list }} {{ data | dictsort }} {{ data | dictsort(true) | first }} {{ {'x': 2, 'y': 1} | dictsort(by='value') }} {{ {'x': 2, 'y': 1} | dictsort(reverse=true) }} {{ {'x': 2, 'Y': 1} | dictsort(false, 'value') }}
{{ [1] | items }}
{{ 1 | list }}
{{ none | list }}
{{ one[1:] }}
{{ nothing[1:] }}
{{ data[1:] }}
{{ nothing | selectattr('d') | list }} {{ 0 | map('string') | list }}
{{ rows | selectattr('v', 'equalto', 2) | map(attribute='n') | list }} {{ rows | selectattr('d') | list | length }} {{ rows | rejectattr('v', 'eq', 2) | map(attribute='n') | list }} {{ rows | selectattr('d', 'defined') | list | length }} {{ rows | selectattr('n', 'in', ['x', 'z']) | list | length }} {{ rows | selectattr('d.p', '==', 1) | list | length }} {{ rows | selectattr('v', '>', 1) | list | length }} {{ messages | selectattr('role', 'equalto', 'user') | first }} {{ rows | rejectattr('d') | list | length }} {{ rows | selectattr('v', 'ne', 2) | list | length }}
{{ list | select('odd') | list }} {{ list | reject('odd') | list }} {{ list | select('>', 1) | list }} {{ [0, 1, '', 'a', none] | select | list }} {{ [0, 1] | reject | list }} {{ list | select('divisibleby', 3) | list }} {{ list | select('in', [1, 2]) | list }} {{ words | select('eq', 'b') | list }} {{ [1, 'a'] | select('string') | list }}
{{ words | map('upper') | list }} {{ rows | map(attribute='d.p', default='-') | list }} {{ rows | map(attribute='q', default=0) | list }} {{ words | map('replace', 'b', 'x') | list }} {{ list | map('string') | join('') }} {{ [[3, 4]] | map('first') | list }} {{ [[3, 4]] | map(attribute=1) | list }} {{ words | map('default', 'x') | list }} {{ [[1, 2]] | map('join', '-') | list }}
{{ list | map('nosuch') | list }}
{{ list | select('nosuch') | list }}
{{ list | nosuch }}
{{ list is nosuch }}
{{ list | map }}
{{ list | map('upper') }}
{{ rows | groupby('v') | list | length }} {% for g, items in rows | groupby('v') %}{{ g }}:{{ items | map(attribute='n') | join }};{% endfor %} {% for x in rows | groupby(attribute='v') %}{{ x.grouper }}{{ x.list | length }};{% endfor %} {% for g, items in rows | groupby('d.p', default=9) %}{{ g }};{% endfor %}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }} {{ [1, 2, 3] | slice(2, 'x') | list }}
{{ 'aaa' | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 5 | replace('5', 'x') }} {{ 'a.b' | replace('.', '\n') }} {{ 'aaa' | replace('a', 'b', count=1) }} {{ 'a1' | replace(1, 2) }}
{{ 'a\nb\n\nc' | indent }} {{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }} {{ 'a\nb' | indent(width=1, first=true) }} {{ 'a\nb' | indent('--') }} {{ 'a\nb\n' | indent(2) }}| {{ '' | indent(2, true) }}|
{{ 1.55 | round(1) }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.4 | round(method='ceil') }} {{ 2.6 | round(0, 'floor') }} {{ 42 | round }} {{ 2.675 | round(2) }} {{ 1234.5 | round(-2) }} {{ -2.5 | round }} {{ -3 | abs }} {{ -1.5 | abs }} {{ 5 | round(1) }}
{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '0x1F' | int(0, 16) }} {{ 3.9 | int }} {{ ' 42 ' | int }} {{ none | int }} {{ true | int }} {{ '-3' | int }} {{ '4.5' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 3 | float }} {{ '1e3' | float }} {{ '1_000' | int }} {{ '11' | int(base=2) }} {{ 'nan' | float }} {{ none | float }}
{{ '<a href="x">&\'</a>' | escape }} {{ '<b>' | e }} {{ '<b>' | safe }} {{ '<b>' | forceescape }} {{ ('<b>' | safe) + '<c>' }} {{ '<b>' | escape | length }}
[{{ 'ab' | center(6) }}] {{ data | attr('q') }}|
{{ 'x' | list | first | upper ~ 'y' }} {{ text | trim | replace(' ', '_') | upper }} {{ (text | trim).split()[0] }} {{ list | length == 3 }} {{ 'a,b' | replace(',', '') | length }}
{{ 5 | length }}
{{ none | length }}
{{ missing | length }} {{ missing | list }} {{ missing | upper }}| {{ missing | trim }}| {{ missing | string }}| {{ missing | int }} {{ missing | first }}| {{ missing | sort }} {{ missing | join }}|
{{ none | first }}
{% filter upper %}a{{ 'b' }}{% endfilter %} {% filter trim | upper %}  x {% endfilter %}|{% filter replace('a', 'b') %}aa{% endfilter %} {% filter indent(2) %}a
b{% endfilter %}
""",
    "tests": r"""
{{ missing is defined }} {{ one is defined }} {{ missing is undefined }} {{ nothing is none }} {{ missing is none }} {{ data.q is defined }} {{ data.q is none }} {{ none is defined }} {{ data.a is not none }} {{ missing is not defined }}
{{ 'a' is string }} {{ 1 is string }} {{ 1 is number }} {{ 1.5 is number }} {{ true is number }} {{ '1' is number }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ 1 is boolean }} {{ none is string }}
{{ [] is sequence }} {{ () is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is sequence }} {{ missing is sequence }} {{ none is sequence }} {{ range(2) is sequence }} {{ data.keys() is sequence }} {{ data.items() is sequence }}
{{ [] is iterable }} {{ 'a' is iterable }} {{ {} is iterable }} {{ 1 is iterable }} {{ missing is iterable }} {{ none is iterable }} {{ range(2) is iterable }} {{ data.keys() is iterable }} {{ true is iterable }}
{{ {} is mapping }} {{ [] is mapping }} {{ 'a' is mapping }} {{ tool is mapping }} {{ missing is mapping }} {{ data.items() is mapping }}
{{ 'aB' is lower }} {{ 'ab' is lower }} {{ 'AB' is upper }} {{ 1 is odd }} {{ 2 is even }} {{ 6 is divisibleby 3 }} {{ 6 is divisibleby(4) }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }} {{ none is false }}
{{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 2 is le 2 }} {{ 3 is gt 2 }} {{ 3 is ge 4 }} {{ 1 is equalto 1 }} {{ 1 is sameas 1 }} {{ none is sameas none }} {{ true is sameas 1 }} {{ 'a' is in ['a'] }} {{ 'a' is in 'abc' }} {{ 1 is not in [2] }} {{ 5 is greaterthan 4 }} {{ 5 is lessthan 4 }} {{ 1 is == 1 }}
{{ 'upper' is filter }} {{ 'nosuch' is filter }} {{ 'odd' is test }} {{ 'nosuch' is test }} {{ raise_exception is callable }} {{ 'a' is callable }} {{ 'a' is escaped }} {{ ('a' | safe) is escaped }}
{{ 'a' is odd }}
{{ 1.5 is odd }} {{ 2.0 is even }} {{ true is odd }}
{{ not 1 is odd }} {{ 1 is odd and 2 is even }} {{ 1 is not odd }} {{ (1 is odd) is true }}
{{ 'x' is defined and 'x' is string and 'x' | length > 0 }} {{ messages[0].content is string }} {{ messages[0].tool_calls is defined }} {{ messages[0]['tool_calls'] is defined and messages[0].tool_calls is not none }}
{{ messages is iterable and messages is not string and messages is not mapping }}
""",
    "statements": r"""
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for x in [1, 2, 3] %}[{{ loop.previtem }}|{{ loop.nextitem }}]{{ loop.previtem is defined }}{% endfor %}
{% for x in list if x > 1 %}{{ x }}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %} {% for x in [] %}a{% else %}empty{% endfor %}
{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %} {% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }};{% endfor %} {% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %} {% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in none %}{% endfor %}
{% for x in missing %}a{% else %}undefined{% endfor %}
{% for x in list recursive %}{{ x }}{% if x == 3 %}{{ loop([9]) }}{% endif %}{% endfor %}
{% for i in range(2) %}{% for j in range(2) %}{{ loop.index0 }}{{ i }}{{ j }};{% endfor %}{{ loop.index0 }}{% endfor %}
{% for x in list %}{% set outer = loop %}{% for y in [0] %}{{ outer.index }}{% endfor %}{% endfor %}
{% for x in list | reverse %}{{ x }}{{ loop.length }}{% endfor %} {% for m in messages[::-1] %}{{ m.role }}{{ loop.revindex }}{% endfor %} {% for x in list | map('string') %}{{ x }}{{ loop.last }}{% endfor %}
{% for m in messages %}{% if loop.nextitem and loop.nextitem.role == 'assistant' %}{{ m.role }}{% endif %}{% endfor %}
{% set x = 1 %}{% for i in range(2) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }} {% if true %}{% set x = 5 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (a, b) = (b, a) %}{{ a }}{{ b }} {% set x = 1, 2 %}{{ x }} {% set a, b = 'xy' %}{{ b }}
{% set a, b = 1 %}
{% set a, b = [1, 2, 3] %}
{% set x %}a{{ 1 + 1 }}{% endset %}[{{ x }}] {% set x | upper %}abc{% endset %}{{ x }} {% set x %}  {% endset %}{{ x | length }} {{ x is string }}
{% if a is defined %}1{% elif b is defined %}2{% else %}3{% endif %} {% if not missing %}m{% endif %} {% if '' %}a{% elif 0 %}b{% elif none %}c{% elif [] %}d{% elif {} %}e{% elif 'x' %}f{% endif %}
{% macro f(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 2) }} {{ f(1, c=3) }} {{ f(a='q', b='r') }} {{ f() }} {{ f(*[1, 2]) }} {{ f(**{'a': 5}) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=1) }}
{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(3) }} {{ f.name }}
{% macro f() %} a {% endmacro %}[{{ f() }}] [{{ f() | trim }}] {{ f() ~ 'b' }} {{ f() + 'c' }} {{ f() is string }} {{ f() | length }}
{% macro outer() %}{{ caller() }}!{% endmacro %}{% call outer() %}in{% endcall %} {% macro each(items) %}{% for i in items %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(x) each([1, 2]) %}<{{ x }}>{% endcall %}
{% macro f() %}{{ y }}{% endmacro %}{% set y = 1 %}{{ f() }} {% set y = 2 %}{{ f() }}
{% macro f() %}{{ messages | length }}{{ bos_token }}{% endmacro %}{{ f() }}
{% macro a(x) %}{{ b(x) }}{% endmacro %}{% macro b(x) %}<{{ x }}>{% endmacro %}{{ a(1) }}
{% set x = 'outer' %}{% macro f() %}{% set x = 'inner' %}{{ x }}{% endmacro %}{{ f() }}{{ x }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }} {% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}
{% block content %}a{% endblock %} {% autoescape true %}{{ '<' }}{% endautoescape %} {% raw %}{{ x }}{% if %}{% endraw %}
{% do [1].append(2) %}
{% include 'x' %}
{% import 'x' as y %}
{% extends 'x' %}
{% trans %}a{% endtrans %}
{% debug %}
{{ debug() }}
{{ cycler('a', 'b').next() }} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }} {% set j = joiner(', ') %}{{ j() }}a{{ j() }}b
{{ loop }}
{{ raise_exception('no') }}
{{ raise_exception() }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %d, %Y %H:%M:%S %A %a %j %y %m') }} {{ strftime_now('%e|%-d|%-m|%I %p|%U|%w|%u|%%|%D|%F|%T|%R|%h|%n|%C') }} {{ strftime_now('Today: %A') }}
{% generation %}a{{ 1 }}{% endgeneration %} {%- generation -%}  b  {%- endgeneration -%}  c {% generation %}{% endgeneration %}
{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ unk_token is defined }}{{ add_generation_prompt }}{{ tools is none }}{{ tools }}{{ documents is none }}
{{ {'a': 1}['a'] }} {{ {"k": [1, {"z": 2}]}.k[1].z }} {{ [1, 2, ] }} {{ {'a': 1, } }} {{ (1, ) }} {{ [[1, 2], [3]][0][1] }} {{ ((1)) }}
{{ "}}" }} {{ '{%' }} {{ '%}' }} {{- ' x ' -}} y {#- gone -#} z {# {{ no }} #}
{{ 'a' }}{# c #}{{ 'b' }}{#- c -#}  {{ 'c' }}
{{ if }}
{{ not }}
{{ a b }}
{% if %}a{% endif %}
{% endfor %}
{% for x in list %}
{{ 'a }}
{% nosuch %}
{{ 1 + }}
{{ f(1 }}
{{ namespace.x }}|
{{ _private }}|{{ __x }}|
{{ ''.__class__ }}|
{{ messages.__len__ }}|
{{ range.x }}|
{% set namespace = 5 %}{{ namespace }}
{% set true = 5 %}{{ true }}
{% set range = 1 %}{{ range }} {% set messages = [1] %}{{ messages }} {% set x = x | default(3) %}{{ x }}
{% set loop_messages = messages[1:] %}{{ loop_messages | length }} {{ messages[1:] | map(attribute='role') | join }} {{ messages[-1]['role'] }} {{ (messages | last)['role'] }} {{ messages[0:1] == [messages[0]] }}
{{ range(10) | length }} {{ range(3)[1] }} {{ range(5)[1:3] }} {{ range(3) | sum }} {{ range(2, 2) | list }} {{ range(3) | last }} {{ range(3) == range(3) }}
{{ range() }}
{{ range(1, 2, 0) }}
{{ range('a') }}
{{ 'a' is string == true }} {{ ('a', 'b') | join }} {% if 'a' in ('a', 'b') and not false %}in{% endif %}
""",
    "white space": r"""
a

{% if true %}
  b
{% endif %}

c
---
  {% if true %}  x  {% endif %}  y
---
{%- for x in [1, 2] -%}
    {{ x }}
{%- endfor -%}
   end
---
    {% set x = 1 %}
    {{ x }}
  {# comment #}
  t
---
a {%+ if true %} b {%+ endif +%} c
---
{% if true +%}
a
{% endif +%}
b
---
{{ 'a' -}}
   b   {{- 'c' }}

 d
---
a

---
{% for m in messages %}
{% if m.role == 'user' %}
U
{% else %}
A
{% endif %}
{% endfor %}
---
   {#- x -#}   a   {#- y #}   b
---
	{% if true %}	tab{% endif %}
---
{{ 'x' }}
{{ 'y' }}
---
 text {% if true %}
 more {% endif %}
 x
---
{% raw %}
 a {{ b }}
{% endraw %}
c
---
{%- raw -%}  a  {%- endraw -%}  b
---
{% macro f() %}
  x
{% endmacro %}
[{{ f() }}]
---
{% set x %}
 block
{% endset %}
[{{ x }}]
---
é {% if true %}ü{% endif %} ö
""",
}


def templates():
    """Each line is a template, but expressions that stand alone are one each; one that does not end a tag goes on."""
    for name, block in IDIOMS.items():
        if name == "white space":
            yield from block[1:-1].split("\n---\n")
            continue
        whole = ""
        for line in block.strip("\n").split("\n"):
            whole += line
            if whole.endswith("\\") or whole.count("{% filter") != whole.count("{% endfilter"):
                whole += "\n"
            elif "{%" in whole:
                yield whole
                whole = ""
            else:
                yield from re.split(r"(?<=\}\})(?: |(?=\{\{))(?=\{\{)", whole)
                whole = ""


class Clock(datetime.datetime):
    @classmethod
    def now(cls):
        return cls(2024, 7, 26)


def rendered(template):
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[MESSAGES], chat_template=template, **TOKENS, **ARGUMENTS
        )
    except Exception:
        return None
    return texts[0]


def table():
    """Texts that name an address in memory are another each time."""
    lines = ((source, rendered(source)) for source in dict.fromkeys(templates()))
    return [{"template": source, "text": text} for source, text in lines if " at 0x" not in (text or "")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    chat_template_utils.datetime = Clock
    file = pathlib.Path(__file__).with_name("idioms.jsonl")
    context = {"messages": MESSAGES, **TOKENS, "arguments": ARGUMENTS}
    lines = [json.dumps(context, ensure_ascii=False)]
    lines += [json.dumps(line, ensure_ascii=False) for line in table()]
    if arguments.write:
        file.write_text("\n".join(lines) + "\n")
        print(f"{len(lines) - 1} idioms in {file}")
        return
    kept = file.read_text().rstrip("\n").split("\n")
    other = [(old, new) for old, new in zip(kept, lines) if old != new]
    for old, new in other:
        print("", old, new, sep="\n  ")
    print(f"{len(lines) - 1} idioms, {len(other)} differ from {file.name}")
    sys.exit(bool(other) or len(kept) != len(lines))


main()
