//! The first inputs of the targets, written where `SALSA_FUZZ_SEEDS` says.
#![allow(dead_code, reason = "each target writes its own")]

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use flate2::{Compression as Level, write::GzEncoder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Writes seeds into the folder that the environment names, if it names one.
pub fn write(seeds: Result<Vec<Vec<u8>>>) {
    let Some(folder) = std::env::var_os("SALSA_FUZZ_SEEDS") else { return };
    for (number, seed) in seeds.expect("seeds can be made").iter().enumerate() {
        fs::write(Path::new(&folder).join(format!("seed-{number:02}")), seed).expect("the corpus can be written");
    }
}

const RECORDS: [&str; 20] = [
    r#"{"text":"a"}"#,
    r#"{"prompt":"p","completion":" c"}"#,
    r#"{"prompt":"p","chosen":"c","rejected":"r","margin":0.5,"score_chosen":8,"score_rejected":7.5}"#,
    r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"u"}]},{"role":"assistant","content":"a"}]}"#,
    r#"{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}],"system":"s"}"#,
    r#"{"conversations":{"from":["human","gpt"],"value":["u","a"]}}"#,
    r#"{"instruction":"i","input":"x","output":"o","history":[["q","r"]],"system":"s"}"#,
    r#"{"instruction":"i","context":"x","response":"o"}"#,
    r#"{"question":"q","answer":"a"}"#,
    r#"{"system":"s","question":"q","chosen":"a","rejected":"b"}"#,
    r#"{"chosen":"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: A","rejected":"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: B"}"#,
    r#"{"prompt":[{"role":"user","content":"u"}],"chosen":[{"role":"user","content":"u"},{"role":"assistant","content":"g"}],"rejected":[{"role":"user","content":"u"},{"role":"assistant","content":"b"}]}"#,
    r#"{"instruction":"i","completions":[{"response":"a","annotations":{"h":{"Rating":"5"},"t":{"Rating":"N/A"}}},{"response":"b","overall_score":3}]}"#,
    r#"{"prompt":"i","responses":["a","b"],"ratings":[3,7.5]}"#,
    r#"{"info":{"post":"P","title":"T","subreddit":"s"},"summaries":[{"text":"a"},{"text":"b"}],"choice":1}"#,
    r#"{"info":{"article":"A","title":"T"},"summaries":[{"text":"a"},{"text":"b"}],"choice":0}"#,
    r#"{"subreddit":"s","title":"T","post":"P","summary":"S"}"#,
    r#"{"data":["u","a","v","b"]}"#,
    r#"{"prompt":"p","label":"l"}"#,
    r#"{"turns":["first","second"]}"#,
];

/// Files of every kind and layout, behind the byte that says which.
pub fn data() -> Result<Vec<Vec<u8>>> {
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let mut seeds = Vec::new();
    for record in RECORDS {
        seeds.push(with(0, format!("{record}\n\n{record}\n").as_bytes()));
    }
    seeds.push(with(1, format!("[{},\n{}]", RECORDS[0], RECORDS[0]).as_bytes()));
    let mut packed = GzEncoder::new(Vec::new(), Level::default());
    packed.write_all(RECORDS[1].as_bytes())?;
    seeds.push(with(2, &packed.finish()?));
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            seeds.push(with(3, &table(compression, version)?));
        }
    }
    seeds.push(with(4, b"plain text"));
    Ok(seeds)
}

/// Two rows of prompt, messages and a score.
fn table(compression: Compression, version: WriterVersion) -> Result<Vec<u8>> {
    let schema = "message schema {
        optional binary prompt (STRING);
        optional group chosen (LIST) { repeated group list { optional group element {
            optional binary content (STRING); optional binary role (STRING); } } }
        optional group rejected (LIST) { repeated group list { optional group element {
            optional binary content (STRING); optional binary role (STRING); } } }
        optional double score_chosen; }";
    let properties = WriterProperties::builder().set_compression(compression).set_writer_version(version).build();
    let mut file = SerializedFileWriter::new(Vec::new(), Arc::new(parse_message_type(schema)?), Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    let roles = ["user", "assistant", "user", "assistant"];
    let columns: [(&[&str], &[i16], Option<&[i16]>); 5] = [
        (&["u", "v"], &[1, 1], None),
        (&["u", "good", "v", "fine"], &[4; 4], Some(&[0, 1, 0, 1])),
        (&roles, &[4; 4], Some(&[0, 1, 0, 1])),
        (&["u", "bad", "v", "worse"], &[4; 4], Some(&[0, 1, 0, 1])),
        (&roles, &[4; 4], Some(&[0, 1, 0, 1])),
    ];
    for (texts, defined, repeated) in columns {
        let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
        let mut column = group.next_column()?.ok_or("the schema has more columns")?;
        column.typed::<ByteArrayType>().write_batch(&values, Some(defined), repeated)?;
        column.close()?;
    }
    let mut column = group.next_column()?.ok_or("the schema has more columns")?;
    column.typed::<DoubleType>().write_batch(&[8.5], Some(&[1, 0]), None)?;
    column.close()?;
    group.close()?;
    Ok(file.into_inner()?)
}

/// One layer, hidden size 2, for each family; with and without an index, in three types.
pub fn checkpoints() -> Result<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for (number, family) in ["llama", "mistral", "gemma", "qwen2", "qwen3"].into_iter().enumerate() {
        for indexed in [false, true] {
            seeds.push(checkpoint(family, ["F32", "BF16", "F16"][number % 3], indexed));
        }
    }
    Ok(seeds)
}

fn checkpoint(family: &str, dtype: &str, indexed: bool) -> Vec<u8> {
    let config = format!(
        r#"{{"model_type":"{family}","hidden_size":2,"intermediate_size":3,"num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"head_dim":2,"vocab_size":3,"max_position_embeddings":8,"rms_norm_eps":1e-5,"tie_word_embeddings":false,"rope_theta":10000.0}}"#
    );
    let layer = |name: &str| format!("model.layers.0.{name}");
    let mut tensors: Vec<(String, &[usize])> = vec![
        ("lm_head.weight".into(), &[3, 2]),
        ("model.embed_tokens.weight".into(), &[3, 2]),
        ("model.norm.weight".into(), &[2]),
        (layer("input_layernorm.weight"), &[2]),
        (layer("post_attention_layernorm.weight"), &[2]),
        (layer("mlp.down_proj.weight"), &[2, 3]),
        (layer("mlp.gate_proj.weight"), &[3, 2]),
        (layer("mlp.up_proj.weight"), &[3, 2]),
    ];
    for part in ["q", "k", "v", "o"] {
        tensors.push((layer(&format!("self_attn.{part}_proj.weight")), &[2, 2]));
        if family == "qwen2" && part != "o" {
            tensors.push((layer(&format!("self_attn.{part}_proj.bias")), &[2]));
        }
        if family == "qwen3" && (part == "q" || part == "k") {
            tensors.push((layer(&format!("self_attn.{part}_norm.weight")), &[2]));
        }
    }
    let size = if dtype == "F32" { 4 } else { 2 };
    let (mut entries, mut at) = (vec![r#""__metadata__":{"format":"pt"}"#.to_string()], 0);
    for (name, shape) in &tensors {
        let end = at + size * shape.iter().product::<usize>();
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    let header = format!("{{{}}}", entries.join(","));
    let index = if indexed {
        let file = "model-00001-of-00001.safetensors";
        let map: Vec<String> = tensors.iter().map(|(name, _)| format!(r#""{name}":"{file}""#)).collect();
        format!(r#"{{"metadata":{{"total_size":{at}}},"weight_map":{{{}}}}}"#, map.join(","))
    } else {
        String::new()
    };
    let mut bytes = format!("{config}\n---\n{index}\n---\n").into_bytes();
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + at, 0x3C);
    bytes
}

/// GGUF files of a Llama of one block: with numbers of each plain type, byte-level and SentencePiece vocabularies.
pub fn gguf() -> Result<Vec<Vec<u8>>> {
    let kinds = [(0, 4), (1, 2), (30, 2)];
    Ok(kinds.iter().flat_map(|(id, size)| [true, false].map(|bytes| gguf_file(*id, *size, bytes))).collect())
}

fn gguf_file(kind: u32, size: usize, byte_level: bool) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let list = |kind: u32, count: u64| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes()].concat();
    let texts =
        |list_: &[&str]| [list(8, list_.len() as u64), list_.iter().flat_map(|one| text(one)).collect()].concat();
    let whole = |number: u32| [4u32.to_le_bytes(), number.to_le_bytes()].concat();
    let said = |value: &str| [8u32.to_le_bytes().to_vec(), text(value)].concat();
    let mut pairs: Vec<(&str, Vec<u8>)> = vec![
        ("general.architecture", said("llama")),
        ("llama.block_count", whole(1)),
        ("llama.context_length", whole(8)),
        ("llama.embedding_length", whole(4)),
        ("llama.feed_forward_length", whole(3)),
        ("llama.attention.head_count", whole(1)),
        ("llama.attention.layer_norm_rms_epsilon", [6u32.to_le_bytes(), 1e-5f32.to_le_bytes()].concat()),
        ("tokenizer.ggml.model", said(if byte_level { "gpt2" } else { "llama" })),
        ("tokenizer.ggml.tokens", texts(&["<s>", "a", "b", "ab"])),
        ("tokenizer.ggml.token_type", [list(5, 4), [3u32, 1, 1, 1].map(u32::to_le_bytes).concat()].concat()),
        ("tokenizer.ggml.eos_token_id", whole(0)),
        ("tokenizer.chat_template", said("{{ messages }}")),
    ];
    if byte_level {
        pairs.push(("tokenizer.ggml.pre", said("llama-bpe")));
        pairs.push(("tokenizer.ggml.merges", texts(&["a b"])));
    } else {
        pairs.push((
            "tokenizer.ggml.scores",
            [list(6, 4), [0f32, -1.0, -2.0, -3.0].map(f32::to_le_bytes).concat()].concat(),
        ));
    }
    let block = |part: &str| format!("blk.0.{part}.weight");
    let mut tensors: Vec<(String, &[u64])> =
        vec![("token_embd.weight".into(), &[4, 4]), ("output_norm.weight".into(), &[4])];
    tensors.extend(["attn_norm", "ffn_norm"].map(|part| (block(part), &[4][..])));
    tensors.extend(["attn_q", "attn_k", "attn_v", "attn_output"].map(|part| (block(part), &[4, 4][..])));
    tensors.extend([(block("ffn_gate"), &[4, 3][..]), (block("ffn_up"), &[4, 3]), (block("ffn_down"), &[3, 4])]);
    let mut bytes = [b"GGUF", &3u32.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((pairs.len() as u64).to_le_bytes());
    pairs.iter().for_each(|(key, value)| bytes.extend([text(key), value.clone()].concat()));
    let mut at = 0u64;
    for (name, shape) in &tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|side| bytes.extend(side.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(at.to_le_bytes());
        at += (shape.iter().product::<u64>() * size as u64).next_multiple_of(32);
    }
    bytes.resize(bytes.len().next_multiple_of(32) + at as usize, 0x3C);
    bytes
}

/// Templates that use all there is.
pub fn templates() -> Result<Vec<Vec<u8>>> {
    Ok(TEMPLATES.iter().map(|source| format!("{source}\n---\n Grüße \n").into_bytes()).collect())
}

const TEMPLATES: [&str; 12] = [
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages[::-1] %}{{- m.content.split('</think>')[-1].lstrip('\\n') }}{%- endfor %}",
    "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{% for m in messages %}{{ say(m) if m.role == 'assistant' else m.content }};{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}{{ loop.nextitem is defined }}{% break %}{% endfor %}{{ messages | tojson(indent=2) }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v | upper }};{% endfor %}{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{% set x %}{{ messages[0]['content'] }}{% endset %}{{ x | trim | replace('a', 'b') | indent(2) }}{{ x[1:-1] ~ x[::2] }}{{ 'abc'.startswith('a') and not none }}",
    "{%- if tools is defined and tools is not none %}{{ raise_exception('no tools') }}{%- endif %}{{ strftime_now('%d %b %Y') }}{{ {'a': [1, 2.5, true, none], 'é': {}} | tojson }}",
    "{% for i in range(3) recursive %}{{ i }}{% if i < 2 %}{{ loop([i + 1]) }}{% endif %}{% else %}none{% endfor %}{{ 7 // 2 }}{{ 2 ** 8 }}{{ -3 % 2 }}{{ 'x' * 3 }}",
    "{# a comment #}{% raw %}{{ raw }}{% endraw %}{% filter upper %}a{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}{{ messages[-1].get('name', 'none') }}{{ 'name' in messages[0] }}",
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content | default('x') | capitalize | title | wordcount }}\n  {% endif %}\n{% endfor %}\n",
];
