//! `config.json` in the formats of transformers 4 and 5, defaults, and refused options.

use super::*;

fn spec_of(config: Value) -> ModelSpec {
    config::parse(&config).unwrap().1
}

fn with(base: &Value, changes: Value) -> Value {
    let mut config = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn small(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 11, "hidden_size": 12, "intermediate_size": 7,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    })
}

#[test]
fn an_empty_config_is_transformers_defaults() {
    // family, vocabulary, hidden, intermediate, layers, heads, key-value heads, head size, positions, window, tied
    let table = [
        ("llama", 32_000, 4096, 11_008, 32, 32, 32, 128, 2048, None, false),
        ("mistral", 32_000, 4096, 14_336, 32, 32, 8, 128, 131_072, Some(4096), false),
        ("gemma", 256_000, 3072, 24_576, 28, 16, 16, 256, 8192, None, true),
        ("qwen2", 151_936, 4096, 22_016, 32, 32, 32, 128, 32_768, None, false),
        ("qwen3", 151_936, 4096, 22_016, 32, 32, 32, 128, 32_768, None, false),
    ];
    for (family, vocab, hidden, inter, layers, heads, kv, dim, positions, window, tied) in table {
        let spec = spec_of(json!({ "model_type": family }));
        let sizes = [spec.vocab_size, spec.hidden_size, spec.intermediate_size, spec.layers, spec.heads, spec.kv_heads];
        assert_eq!(sizes, [vocab, hidden, inter, layers, heads, kv], "{family}");
        assert_eq!((spec.head_dim, spec.max_positions), (dim, positions), "{family}");
        assert_eq!((spec.sliding_window, spec.tied_embeddings), (window, tied), "{family}");
        assert_eq!(spec.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None }, "{family}");
        assert_eq!(spec.rms_norm_eps, 1e-6, "{family}");
        assert_eq!(spec.head, Head::LanguageModel, "{family}");
    }
}

#[test]
fn rotary_positions_in_both_spellings() {
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    let table = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let mut newer = table.clone();
    newer["rope_theta"] = json!(500_000.0);
    let cases = [
        (json!({ "rope_theta": 1e6, "rope_scaling": null }), 1e6, RopeScaling::None),
        (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 } }), 1e6, RopeScaling::None),
        (
            json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2 } }),
            5e5,
            RopeScaling::Linear { factor: 2.0 },
        ),
        (
            json!({ "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 } }),
            5e5,
            RopeScaling::Linear { factor: 2.0 },
        ),
        (json!({ "rope_theta": 5e5, "rope_scaling": table }), 5e5, llama3.clone()),
        (json!({ "rope_parameters": newer }), 5e5, llama3.clone()),
        (json!({ "rope_theta": 5e5, "rope_scaling": table, "rope_parameters": newer }), 5e5, llama3),
        (json!({ "rope_parameters": null }), 1e4, RopeScaling::None),
    ];
    for (changes, theta, scaling) in cases {
        let spec = spec_of(with(&small("llama"), changes.clone()));
        assert_eq!(spec.rope, Rope { theta, scaling }, "{changes}");
        // The written config is read back as the same.
        let mut written = serde_json::Map::new();
        rope::write(&spec.rope, &mut written);
        assert_eq!(rope::parse(&Value::Object(written.clone()), Family::Llama).unwrap(), spec.rope);
        written.remove("rope_parameters");
        assert_eq!(rope::parse(&Value::Object(written.clone()), Family::Llama).unwrap(), spec.rope);
    }
}

#[test]
fn linear_scaling_lengthens_the_context() {
    let linear = |factor: f64| json!({ "rope_scaling": { "type": "linear", "factor": factor } });
    let longest = |changes: Value| spec_of(with(&small("llama"), changes)).max_positions;
    assert_eq!(longest(json!({})), 64);
    assert_eq!(longest(linear(4.0)), 256);
    assert_eq!(longest(linear(1.5)), 96);
    assert_eq!(longest(linear(0.5)), 64);
    let mut vicuna = linear(4.0);
    vicuna["max_sequence_length"] = json!(200);
    assert_eq!(longest(vicuna.clone()), 200);
    // Without scaling the key has no effect.
    assert_eq!(longest(json!({ "max_sequence_length": 200 })), 64);
    // The written config is read back as the same, and equals the file's where that determines it.
    for (changes, written, longest) in [
        (linear(4.0), 64, None),
        (vicuna, 50, None),
        (json!({ "rope_scaling": linear(3.0)["rope_scaling"], "max_sequence_length": 100 }), 34, Some(100)),
        (linear(0.5), 64, None),
    ] {
        let spec = spec_of(with(&small("llama"), changes.clone()));
        let config = save_config::config(Family::Llama, &spec, &tokens(), Dtype::F32).unwrap();
        assert_eq!(config["max_position_embeddings"], written, "{changes}");
        assert_eq!(config.get("max_sequence_length"), longest.map(|n: usize| json!(n)).as_ref(), "{changes}");
        assert_eq!(spec_of(Value::Object(config)), spec, "{changes}");
    }
}

#[test]
fn a_quantization_that_says_nothing_is_none() {
    for nothing in [json!({}), Value::Null] {
        spec_of(with(&small("llama"), json!({ "quantization_config": nothing })));
    }
}

#[test]
fn what_differs_between_the_families() {
    let window = json!({ "use_sliding_window": false, "sliding_window": 16, "max_window_layers": 1 });
    assert_eq!(spec_of(with(&small("qwen2"), window.clone())).sliding_window, None);
    assert_eq!(spec_of(with(&small("llama"), window)).sliding_window, None);
    let all = json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 0 });
    assert_eq!(spec_of(with(&small("qwen3"), all.clone())).sliding_window, Some(16));
    let none = json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 2 });
    assert_eq!(spec_of(with(&small("qwen2"), none)).sliding_window, None);
    let types = json!({ "layer_types": ["full_attention", "full_attention"] });
    assert_eq!(spec_of(with(&with(&small("qwen2"), all), types)).sliding_window, None);
    assert_eq!(spec_of(with(&small("mistral"), json!({ "sliding_window": null }))).sliding_window, None);
    assert_eq!(spec_of(with(&small("mistral"), json!({ "sliding_window": 5 }))).sliding_window, Some(5));

    let gemma = spec_of(with(&small("gemma"), json!({ "hidden_act": "gelu" })));
    assert_eq!((gemma.activation, gemma.norm), (Activation::GeluTanh, NormWeight::OnePlus));
    assert_eq!((gemma.embedding_scale, gemma.head_dim, gemma.tied_embeddings), (12f32.sqrt(), 256, true));
    let act = json!({ "hidden_act": "gelu", "hidden_activation": null });
    assert_eq!(spec_of(with(&small("gemma"), act)).activation, Activation::GeluTanh);

    assert_eq!(spec_of(with(&small("llama"), json!({ "head_dim": null }))).head_dim, 6);
    assert_eq!(spec_of(with(&small("llama"), json!({ "head_dim": 4 }))).head_dim, 4);
    assert_eq!(spec_of(with(&small("llama"), json!({ "num_key_value_heads": null }))).kv_heads, 2);
    assert_eq!(spec_of(small("qwen3")).head_dim, 128);
    assert!(spec_of(small("qwen2")).qkv_bias && spec_of(small("qwen3")).qk_norm);
    let label = json!({ "architectures": ["Qwen2ForSequenceClassification"], "id2label": { "0": "LABEL_0" } });
    assert_eq!(spec_of(with(&small("qwen2"), label)).head, Head::Scalar);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let table: &[(&str, Value, &[&str])] = &[
        ("gpt2", json!({}), &["model_type \"gpt2\"", "llama, mistral, gemma, qwen2, qwen3"]),
        ("llama", json!({ "model_type": null }), &["model_type is missing"]),
        ("llama", json!({ "mlp_bias": true }), &["mlp_bias"]),
        ("gemma", json!({ "final_logit_softcapping": 30.0 }), &["final_logit_softcapping"]),
        ("gemma", json!({ "attn_logit_softcapping": 50.0 }), &["attn_logit_softcapping"]),
        ("gemma", json!({ "use_bidirectional_attention": true }), &["use_bidirectional_attention"]),
        ("llama", json!({ "quantization_config": { "bits": 4 } }), &["quantization_config"]),
        ("llama", json!({ "quantization_config": true }), &["quantization_config"]),
        (
            "llama",
            json!({ "max_position_embeddings": 1u64 << 60 }),
            &["max_position_embeddings is 1152921504606846976"],
        ),
        ("llama", json!({ "max_position_embeddings": 0 }), &["max_position_embeddings is 0"]),
        ("mistral", json!({ "sliding_window": u64::MAX }), &["sliding_window is 18446744073709551615"]),
        ("mistral", json!({ "sliding_window": 0 }), &["sliding_window is 0"]),
        ("llama", json!({ "head_dim": 1u64 << 60 }), &["head_dim"]),
        ("llama", json!({ "hidden_size": 1u64 << 60 }), &["hidden_size"]),
        ("llama", json!({ "num_key_value_heads": 0 }), &["num_key_value_heads is 0"]),
        ("llama", json!({ "rope_theta": 1e-300 }), &["rope_theta is"]),
        ("llama", json!({ "rope_theta": 1e300 }), &["rope_theta is"]),
        ("llama", json!({ "rope_scaling": { "rope_type": "linear", "factor": 1e-300 } }), &["factor is"]),
        ("llama", json!({ "rope_scaling": { "rope_type": "linear", "factor": 1e300 } }), &["factor is"]),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": "linear", "factor": 1e9 } }),
            &["max_position_embeddings is 64000000000"],
        ),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": "ntk", "factor": 2.0 } }),
            &["rope_scaling", "\"ntk\"", "yarn"],
        ),
        ("llama", json!({ "rope_scaling": { "type": "dynamic" } }), &["factor is missing"]),
        ("llama", json!({ "rope_parameters": { "rope_type": "longrope" } }), &["rope_parameters", "short_factor"]),
        ("llama", json!({ "rope_scaling": { "type": "yarn", "factor": 2.0, "beta_fast": -1 } }), &["beta_fast is -1"]),
        ("phi3", json!({ "partial_rotary_factor": 1.5 }), &["partial_rotary_factor is 1.5"]),
        ("gemma2", json!({ "layer_types": ["full_attention"] }), &["layer_types has 1", "num_hidden_layers is 2"]),
        ("gemma2", json!({ "layer_types": ["full_attention", "chunked"] }), &["layer_types names \"chunked\""]),
        ("gemma2", json!({ "attn_logit_softcapping": -1.0 }), &["attn_logit_softcapping is -1"]),
        ("gemma3_text", json!({ "attn_logit_softcapping": 50.0 }), &["attn_logit_softcapping is set"]),
        ("gemma3_text", json!({ "sliding_window_pattern": 0 }), &["sliding_window_pattern is 0"]),
        ("smollm3", json!({ "no_rope_layers": [1] }), &["no_rope_layers", "2 layers"]),
        ("smollm3", json!({ "no_rope_layers": [1, 2] }), &["no_rope_layers has 2"]),
        ("granite", json!({ "residual_multiplier": 0.0 }), &["residual_multiplier is 0"]),
        ("olmo2", json!({ "query_pre_attn_scalar": 4 }), &["query_pre_attn_scalar", "olmo2"]),
        ("llama", json!({ "rope_parameters": { "full_attention": { "rope_theta": 1.0 } } }), &["full_attention"]),
        ("llama", json!({ "rope_scaling": { "rope_type": "linear" } }), &["factor is missing"]),
        ("llama", json!({ "rope_scaling": { "rope_type": "linear", "factor": 0 } }), &["factor is 0"]),
        ("llama", json!({ "rope_scaling": 2.0 }), &["rope_scaling is 2.0"]),
        ("llama", json!({ "rope_theta": -1.0 }), &["rope_theta is -1"]),
        ("llama", json!({ "partial_rotary_factor": 0.5 }), &["partial_rotary_factor is 0.5"]),
        ("llama", json!({ "hidden_act": "gelu" }), &["hidden_act \"gelu\""]),
        ("llama", json!({ "hidden_act": "relu" }), &["hidden_act \"relu\""]),
        ("llama", json!({ "architectures": ["LlamaModel"] }), &["LlamaModel", "LlamaForCausalLM"]),
        ("llama", json!({ "architectures": ["MistralForCausalLM"] }), &["MistralForCausalLM"]),
        ("llama", json!({ "architectures": 3 }), &["architectures"]),
        (
            "llama",
            json!({ "architectures": ["LlamaForSequenceClassification"], "id2label": { "0": "a", "1": "b" } }),
            &["2 labels"],
        ),
        ("llama", json!({ "architectures": ["LlamaForSequenceClassification"], "num_labels": 3 }), &["3 labels"]),
        ("llama", json!({ "hidden_size": 13 }), &["hidden_size 13", "num_attention_heads 2"]),
        ("llama", json!({ "hidden_size": 0, "head_dim": 4 }), &["hidden_size is 0"]),
        ("llama", json!({ "hidden_size": -1 }), &["hidden_size is -1", "whole number"]),
        ("llama", json!({ "hidden_size": 4.5 }), &["hidden_size is 4.5"]),
        ("llama", json!({ "vocab_size": u64::MAX }), &["vocab_size"]),
        ("llama", json!({ "num_hidden_layers": 1_000_000_000 }), &["num_hidden_layers"]),
        (
            "llama",
            json!({ "num_hidden_layers": 9999, "hidden_size": 1 << 20, "intermediate_size": 1 << 20 }),
            &["damaged"],
        ),
        ("llama", json!({ "num_attention_heads": 0 }), &["num_attention_heads"]),
        ("llama", json!({ "rms_norm_eps": "small" }), &["rms_norm_eps"]),
        ("llama", json!({ "rms_norm_eps": 0.0 }), &["rms_norm_eps is 0"]),
        ("llama", json!({ "tie_word_embeddings": "yes" }), &["tie_word_embeddings"]),
    ];
    for (family, changes, parts) in table {
        let error = config::parse(&with(&small(family), changes.clone())).unwrap_err();
        assert_has(&format!("{error:#}"), parts);
    }
    assert_has(&config::parse(&json!([])).unwrap_err().to_string(), &["no JSON object"]);
}

#[test]
fn a_written_config_is_read_as_the_same_model() {
    for family in Family::ALL {
        for head in [Head::LanguageModel, Head::Scalar] {
            let spec = ModelSpec { rms_norm_eps: 1e-5, tied_embeddings: true, ..tiny(family) }.with_head(head);
            let config = save_config::config(family, &spec, &tokens(), Dtype::BF16).unwrap();
            assert_eq!(config::parse(&Value::Object(config.clone())).unwrap(), (family, spec));
            assert_eq!(config["rms_norm_eps"].to_string(), "0.00001");
        }
    }
}
