//! What the configs of families beyond the basic form say, in the spellings of published checkpoints.

use salsa_engine::{BlockNorms, LayerOptions, NormSpan, Rotary};

use super::*;

fn spec_of(config: Value) -> ModelSpec {
    config::parse(&config).unwrap().1
}

fn layers(kinds: &[(bool, Rotary)]) -> Vec<LayerOptions> {
    kinds.iter().map(|&(windowed, rotary)| LayerOptions { windowed, rotary }).collect()
}

#[test]
fn gemma2_and_gemma3_alternate_windows() {
    let base = spec_of(json!({ "model_type": "gemma2", "num_hidden_layers": 3 }));
    let options = &base.options;
    assert_eq!((options.attention_softcap, options.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((options.attention_scale, options.norms), (Some(0.0625), BlockNorms::Both));
    let main = |windowed| (windowed, Rotary::Main);
    assert_eq!((base.sliding_window, &options.layers), (Some(4096), &layers(&[true, false, true].map(main))));
    let none = spec_of(json!({ "model_type": "gemma2", "attn_logit_softcapping": null, "sliding_window": null }));
    assert!(none.options.attention_softcap.is_none() && none.options.layers.is_empty());

    let base = spec_of(json!({ "model_type": "gemma3_text", "num_hidden_layers": 7 }));
    let local = (true, Rotary::Local);
    let expected = [local, local, local, local, local, (false, Rotary::Main), local];
    assert_eq!(base.options.layers, layers(&expected));
    assert_eq!((base.rope.theta, base.options.local_rope.unwrap().theta, base.qk_norm), (1e6, 1e4, true));
}

#[test]
fn the_ropes_of_gemma3_in_both_spellings() {
    let scaled = json!({ "rope_type": "linear", "factor": 8.0 });
    let older = json!({
        "model_type": "gemma3_text", "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": scaled,
    });
    let newer = json!({ "model_type": "gemma3_text", "rope_parameters": {
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
    } });
    let spec = spec_of(older);
    assert_eq!(spec, spec_of(newer));
    let linear = RopeScaling::Linear { factor: 8.0 };
    assert_eq!(spec.rope, Rope { theta: 5e5, scaling: linear });
    assert_eq!(spec.options.local_rope.clone(), Some(Rope { theta: 2e4, scaling: RopeScaling::None }));
    // Both spellings are written, and either is enough.
    let written = save_config::config(Family::Gemma3, &spec, &tokens(), Dtype::F32).unwrap();
    for absent in ["rope_parameters", "rope_scaling"] {
        let mut part = written.clone();
        part.remove(absent);
        assert_eq!(spec_of(Value::Object(part)), spec, "without {absent}");
    }
    let classes = [Head::LanguageModel, Head::Scalar].map(|head| Family::Gemma3.class(head));
    assert_eq!(classes, ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"]);
}

#[test]
fn the_norms_of_olmo2_and_the_factors_of_granite() {
    let olmo = spec_of(json!({ "model_type": "olmo2" }));
    assert_eq!((olmo.options.norms, olmo.options.qk_norm_span), (BlockNorms::After, NormSpan::Projection));
    assert_eq!((olmo.qk_norm, olmo.rms_norm_eps), (true, 1e-5));
    let granite = spec_of(json!({
        "model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.0078125,
        "residual_multiplier": 0.22, "logits_scaling": 16.0, "attention_bias": true,
    }));
    let options = &granite.options;
    assert_eq!((granite.embedding_scale, options.attention_scale), (12.0, Some(0.0078125)));
    assert_eq!((options.residual_scale, options.logit_divisor), (0.22, 16.0));
    assert!(granite.qkv_bias && options.output_bias);
}

#[test]
fn layers_of_smollm3_without_rope() {
    let spec = spec_of(json!({ "model_type": "smollm3", "num_hidden_layers": 4 }));
    let expected = [Rotary::Main, Rotary::Main, Rotary::Main, Rotary::None].map(|rotary| (true, rotary));
    assert_eq!((spec.sliding_window, &spec.options.layers), (None, &layers(&expected)));
    let spec = spec_of(json!({
        "model_type": "smollm3", "num_hidden_layers": 2, "no_rope_layers": [1, 0, 1], "use_sliding_window": true,
        "sliding_window": 9,
    }));
    assert_eq!(spec.sliding_window, Some(9));
    assert_eq!(spec.options.layers, layers(&[(false, Rotary::Main), (true, Rotary::None)]));
}

#[test]
fn longrope_of_phi3() {
    let factors = |first: f64| (0..6).map(|i| first + f64::from(i)).collect::<Vec<_>>();
    let table = json!({ "type": "su", "short_factor": factors(1.0), "long_factor": factors(2.0) });
    let spec = spec_of(json!({
        "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 2, "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "rope_scaling": table,
        "sliding_window": 262_144,
    }));
    assert_eq!((spec.rotary_dim(), spec.head_dim, spec.sliding_window), (12, 16, Some(262_144)));
    let attention_factor = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    let scaling = RopeScaling::LongRope {
        short: factors(1.0),
        long: factors(2.0),
        attention_factor,
        original_max_positions: 4096,
    };
    assert_eq!(spec.rope, Rope { theta: 1e4, scaling });
    // transformers 4 takes exactly three keys.
    let written = save_config::config(Family::Phi3, &spec, &tokens(), Dtype::F32).unwrap();
    let keys: Vec<&String> = written["rope_scaling"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "short_factor", "long_factor"]);
    assert_eq!(spec_of(Value::Object(written)), spec);
    let names: Vec<String> = spec.tensors().into_iter().map(|tensor| tensor.name).collect();
    assert!(names.iter().any(|name| name == "model.layers.0.self_attn.qkv_proj.weight"));
    assert!(!names.iter().any(|name| name.contains("q_proj") || name.contains("up_proj") && !name.contains("gate_up")));
}

#[test]
fn scaled_ropes_come_back_with_their_context() {
    let yarn = |changes: Value| {
        let mut config = json!({
            "model_type": "qwen2", "max_position_embeddings": 32_768,
            "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768 },
        });
        changes.as_object().unwrap().iter().for_each(|(key, value)| config["rope_scaling"][key] = value.clone());
        spec_of(config)
    };
    let factor = |spec: &ModelSpec| match spec.rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => panic!("no yarn"),
    };
    let plain = yarn(json!({}));
    assert_eq!(plain.max_positions, 131_072);
    assert_eq!(factor(&plain), 0.1 * 4f64.ln() + 1.0);
    assert_eq!(factor(&yarn(json!({ "attention_factor": 1.5 }))), 1.5);
    let both = yarn(json!({ "mscale": 2.0, "mscale_all_dim": 0.5 }));
    assert_eq!(factor(&both), (0.2 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0));
    let dynamic = spec_of(json!({
        "model_type": "llama", "max_position_embeddings": 2048, "rope_scaling": { "type": "dynamic", "factor": 2.5 },
    }));
    assert_eq!(dynamic.max_positions, 5120);
    for (family, spec) in [(Family::Qwen2, plain), (Family::Qwen2, both), (Family::Llama, dynamic)] {
        let written = save_config::config(family, &spec, &tokens(), Dtype::F32).unwrap();
        assert_eq!(spec_of(Value::Object(written)), spec);
    }
}

#[test]
fn windows_of_some_layers_of_qwen2_come_back() {
    let spec = spec_of(json!({
        "model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 4,
        "max_window_layers": 1,
    }));
    let expected = [false, true, true].map(|windowed| (windowed, Rotary::Main));
    assert_eq!((spec.sliding_window, &spec.options.layers), (Some(4), &layers(&expected)));
    let written = save_config::config(Family::Qwen2, &spec, &tokens(), Dtype::F32).unwrap();
    assert_eq!(spec_of(Value::Object(written)), spec);
}

#[test]
fn a_family_refuses_what_it_cannot_say() {
    let refused = |family: Family, of: Family| {
        let refusal = save_config::config(family, &tiny(of), &tokens(), Dtype::F32);
        refusal.unwrap_err().to_string()
    };
    assert_has(&refused(Family::Llama, Family::Gemma2), &["cannot be saved as llama", "its norms"]);
    assert_has(&refused(Family::Llama, Family::Phi3), &["cannot be saved as llama"]);
    assert_has(&refused(Family::Llama, Family::Granite), &["its options"]);
    assert_eq!(Family::for_spec(&tiny(Family::SmolLm3)), Family::SmolLm3);
    assert_eq!(Family::for_spec(&tiny(Family::Gemma3)), Family::Gemma3);
}
